/* SysTick as a counter of single instructions.
 *
 * A tick is TICK_NUMERATOR / TICK_DENOMINATOR ns, so that many instructions. The counter is read TICK_NUMERATOR times,
 * 7 instructions apart, which is coprime to it: the reads fall on every phase of a tick once, and Hermite's identity,
 * sum over k < n of floor((t + k) / n) = t for whole t, makes the sum of the readings tell t to the instruction.
 * What a read yields while the counter wraps is known too: a read after it is larger by the whole range.
 */
#include "stopwatch.h"

#include "stopwatch_known.h"

#define CSR (*(volatile uint32_t *)0xE000E010u)
#define RELOAD (*(volatile uint32_t *)0xE000E014u)
#define CURRENT (*(volatile uint32_t *)0xE000E018u)

#if TICK_NUMERATOR > 255 || TICK_NUMERATOR % 7 == 0
#error "a tick has at most 255 phases, and their number is no multiple of 7"
#endif

#define TEXT(number) TEXT_(number)
#define TEXT_(number) #number
#define RANGE_BITS 24u
#define WRAP_INSTRUCTIONS 5u /* of the exception's handler */

uint32_t stopwatch_wraps;

__attribute__((naked)) void stopwatch_wrapped(void) {
  __asm__ volatile(
      ".syntax unified\n\tldr r0, =stopwatch_wraps\n\tldr r1, [r0]\n\tadds r1, #1\n\tstr r1, [r0]\n\tbx lr");
}

void stopwatch_start(void) {
  stopwatch_wraps = 0;
  RELOAD = (1u << RANGE_BITS) - 1u;
  CURRENT = 0;
  CSR = 7u; /* the processor's clock, with the exception */
  while (CURRENT == 0u) { /* its first step, from 0 to the top, is no wrap */
  }
}

void stopwatch_stop(void) { CSR = 0; }

__attribute__((naked)) void stopwatch_mark(struct mark *mark) {
  (void)mark;
  __asm__ volatile(
      ".syntax unified\n\t"
      "cpsid i\n\t"
      "push {r4}\n\t"
      "ldr r1, =0xE000E018\n\t"
      "ldr r2, [r1]\n\t"
      "str r2, [r0, #0]\n\t"
      "ldr r3, =0xE000ED04\n\t" /* ICSR: is the exception of a wrap still to come? */
      "ldr r2, [r3]\n\t"
      "str r2, [r0, #12]\n\t"
      "ldr r3, =stopwatch_wraps\n\t"
      "ldr r2, [r3]\n\t"
      "str r2, [r0, #8]\n\t"
      "movs r2, #0\n\t"
      "movs r3, #" TEXT(TICK_NUMERATOR) "\n"
      "1:\n\t"
      "ldr r4, [r1]\n\t"
      "adds r2, r2, r4\n\t"
      "nop\n\t"
      "nop\n\t"
      "nop\n\t"
      "subs r3, #1\n\t"
      "bne 1b\n\t"
      "str r2, [r0, #4]\n\t"
      "pop {r4}\n\t"
      "cpsie i\n\t"
      "bx lr");
}

/* The sum of the readings as if the counter counted upwards without end. */
static uint64_t extended(const struct mark *mark) {
  const uint32_t pending = (mark->pending >> 26) & 1u, half = 1u << (RANGE_BITS - 1u);
  const uint32_t wraps = mark->wraps + (pending && mark->first > half ? 1u : 0u);
  /* How many reads came after a wrap: unsigned, for the sum is a little below or far above all reads being equal. */
  const int64_t above = (int64_t)mark->sum - (int64_t)mark->first * TICK_NUMERATOR;
  const uint64_t wrapped = above <= 0 ? 0u : ((uint64_t)above + half) >> RANGE_BITS;
  const uint64_t start = (((uint64_t)wraps + 1u) << RANGE_BITS) * TICK_NUMERATOR;
  return start + (wrapped << RANGE_BITS) - mark->sum;
}

uint64_t stopwatch_between(const struct mark *from, const struct mark *to) {
  const uint64_t handled = (uint64_t)(to->wraps - from->wraps) * WRAP_INSTRUCTIONS;
  return (extended(to) - extended(from)) / TICK_DENOMINATOR - handled;
}
