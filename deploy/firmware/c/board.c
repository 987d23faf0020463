/* A board that nobody has described yet: it starts, and is silent. */
#include "board.h"

__attribute__((weak)) void board_init(void) {}

__attribute__((weak)) void board_putc(uint8_t byte) { (void)byte; }

__attribute__((weak)) int32_t board_getc(void) { return -1; }

__attribute__((weak)) void board_mark(int on) { (void)on; }

__attribute__((weak)) void board_reset(void) {
#if defined(__riscv) && defined(OWN_START)
  __asm__ volatile("j reset");
#elif !defined(__riscv)
  __asm__ volatile("dsb" ::: "memory");
  *(volatile uint32_t *)0xE000ED0Cu = 0x05FA0004u; /* AIRCR: key and SYSRESETREQ */
#endif
  for (;;) {
  }
}
