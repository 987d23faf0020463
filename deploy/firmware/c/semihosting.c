/* Semihosting, as Arm and RISC-V specify it. */
#include "semihosting.h"

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT_EXTENDED = 0x20 };
enum { APPLICATION_EXIT = 0x20026 };

static int32_t ask(uint32_t what, const uintptr_t *arguments) {
#if defined(__riscv)
  register uintptr_t a0 __asm__("a0") = what;
  register uintptr_t a1 __asm__("a1") = (uintptr_t)arguments;
  __asm__ volatile(
      ".option push\n\t.option norvc\n\t.balign 16\n\tslli x0, x0, 0x1f\n\tebreak\n\tsrai x0, x0, 7\n\t.option pop"
      : "+r"(a0)
      : "r"(a1)
      : "memory");
  return (int32_t)a0;
#else
  register uintptr_t r0 __asm__("r0") = what;
  register uintptr_t r1 __asm__("r1") = (uintptr_t)arguments;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return (int32_t)r0;
#endif
}

int32_t host_open(const char *name, int32_t mode) {
  uintptr_t length = 0;
  while (name[length] != '\0') ++length;
  const uintptr_t arguments[] = {(uintptr_t)name, (uintptr_t)mode, length};
  return ask(SYS_OPEN, arguments);
}

uint32_t host_read(int32_t file, void *data, uint32_t bytes) {
  const uintptr_t arguments[] = {(uintptr_t)file, (uintptr_t)data, bytes};
  const int32_t left = ask(SYS_READ, arguments);
  return left < 0 || (uint32_t)left > bytes ? 0u : bytes - (uint32_t)left;
}

uint32_t host_write(int32_t file, const void *data, uint32_t bytes) {
  const uintptr_t arguments[] = {(uintptr_t)file, (uintptr_t)data, bytes};
  const int32_t left = ask(SYS_WRITE, arguments);
  return left < 0 || (uint32_t)left > bytes ? 0u : bytes - (uint32_t)left;
}

void host_close(int32_t file) {
  const uintptr_t arguments[] = {(uintptr_t)file};
  (void)ask(SYS_CLOSE, arguments);
}

void host_exit(uint32_t status) {
  const uintptr_t arguments[] = {APPLICATION_EXIT, status};
  (void)ask(SYS_EXIT_EXTENDED, arguments);
  for (;;) {
  }
}
