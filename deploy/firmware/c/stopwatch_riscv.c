/* The counter of retired instructions, which a RISC-V core has; with COUNT_CYCLES that of its cycles. */
#include "stopwatch.h"

#if defined(COUNT_CYCLES)
#define COUNTER "mcycle"
#else
#define COUNTER "minstret"
#endif

void stopwatch_start(void) {}

void stopwatch_stop(void) {}

/* The upper half is read on both sides of the lower one, so that `stopwatch_between` can tell to which it belongs. */
__attribute__((naked)) void stopwatch_mark(struct mark *mark) {
  (void)mark;
  __asm__ volatile(
      ".option push\n\t"
      ".option arch, +zicsr\n\t"
      "csrr t0, " COUNTER "h\n\t"
      "csrr t1, " COUNTER "\n\t"
      "csrr t2, " COUNTER "h\n\t"
      ".option pop\n\t"
      "sw t0, 8(a0)\n\t"
      "sw t1, 4(a0)\n\t"
      "sw t2, 12(a0)\n\t"
      "ret");
}

static uint64_t count(const struct mark *mark) {
  const uint32_t upper = mark->sum >> 31 ? mark->wraps : mark->pending;
  return ((uint64_t)upper << 32) | mark->sum;
}

uint64_t stopwatch_between(const struct mark *from, const struct mark *to) { return count(to) - count(from); }

/* 3 instructions, then 20,000 times 5. */
__attribute__((naked)) void stopwatch_known(void) {
  __asm__ volatile(
      "li t0, 625\n\t"
      "slli t1, t0, 5\n\t"
      "nop\n"
      "1:\n\t"
      "nop\n\t"
      "nop\n\t"
      "nop\n\t"
      "addi t1, t1, -1\n\t"
      "bnez t1, 1b\n\t"
      "ret");
}
