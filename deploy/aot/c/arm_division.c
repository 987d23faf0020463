/* Division as LLVM calls it on 32-bit Arm without an instruction for it. GCC's library has these names; zig's has only
 * those of Arm's own standard. */
int __aeabi_idiv(int a, int b);
unsigned __aeabi_uidiv(unsigned a, unsigned b);
int __divsi3(int a, int b);
unsigned __udivsi3(unsigned a, unsigned b);

int __divsi3(int a, int b) { return __aeabi_idiv(a, b); }
unsigned __udivsi3(unsigned a, unsigned b) { return __aeabi_uidiv(a, b); }
