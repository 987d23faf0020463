/* Reset and traps of a RISC-V core in machine mode. */
  .option arch, +zicsr
  .section .vectors, "ax"
  .globl reset
reset:
  .option push
  .option norelax
  la gp, data_start + 0x800
  .option pop
  la sp, stack_top
  la t0, trap
  csrw mtvec, t0
  j start

  .balign 4
trap:
  addi sp, sp, -16
  csrr t0, mcause
  sw t0, 0(sp)
  csrr t0, mepc
  sw t0, 4(sp)
  sw ra, 8(sp)
  csrr t0, mtval
  sw t0, 12(sp)
  la a0, trap_words
  mv a1, sp
  li a2, 4
  j report_fault

  .section .rodata
trap_words:
  .string "cause, at, called from, value"
