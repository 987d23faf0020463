/* Cycles of a Cortex-M: those of DWT where the processor has that counter, of SysTick otherwise. */
#include "stopwatch.h"

#include "stopwatch_known.h"

#define DEMCR (*(volatile uint32_t *)0xE000EDFCu)
#define DWT_CONTROL (*(volatile uint32_t *)0xE0001000u)
#define DWT_CYCLES (*(volatile uint32_t *)0xE0001004u)
#define DWT_LOCK (*(volatile uint32_t *)0xE0001FB0u)
#define CSR (*(volatile uint32_t *)0xE000E010u)
#define RELOAD (*(volatile uint32_t *)0xE000E014u)
#define CURRENT (*(volatile uint32_t *)0xE000E018u)
#define ICSR (*(volatile uint32_t *)0xE000ED04u)

enum { RANGE_BITS = 24 };

static volatile uint32_t wraps;
static uint32_t has_dwt;

void stopwatch_wrapped(void) { ++wraps; }

static uint32_t start_dwt(void) {
#if defined(__ARM_ARCH_6M__)
  return 0; /* ARMv6-M has none */
#else
  DEMCR |= 1u << 24;
  DWT_LOCK = 0xC5ACCE55u; /* a Cortex-M7 locks it; the others ignore this */
  DWT_CONTROL |= 1u;
  const uint32_t before = DWT_CYCLES;
  __asm__ volatile("nop\n\tnop\n\tnop\n\tnop");
  return DWT_CYCLES != before;
#endif
}

void stopwatch_start(void) {
  has_dwt = start_dwt();
  if (has_dwt) return;
  wraps = 0;
  RELOAD = (1u << RANGE_BITS) - 1u;
  CURRENT = 0;
  CSR = 7u; /* the processor's clock, with the exception */
  while (CURRENT == 0u) { /* its first step, from 0 to the top, is no wrap */
  }
}

void stopwatch_stop(void) {
  if (!has_dwt) CSR = 0;
}

/* The counter, counting upwards: its lower 32 bits in `first`, what is above in `wraps`. */
__attribute__((noinline)) void stopwatch_mark(struct mark *mark) {
  if (has_dwt) {
    mark->first = DWT_CYCLES;
    return;
  }
  __asm__ volatile("cpsid i" ::: "memory");
  uint32_t now = CURRENT, turns = wraps;
  if (ICSR & (1u << 26)) { /* it wrapped, and the exception is still to come */
    now = CURRENT;
    ++turns;
  }
  __asm__ volatile("cpsie i" ::: "memory");
  mark->first = (turns << RANGE_BITS) - now;
  mark->wraps = (turns >> (32 - RANGE_BITS)) - ((turns << RANGE_BITS) < now ? 1u : 0u);
}

/* DWT has 32 bits, so that the difference is right for less than 2^32 cycles. */
uint64_t stopwatch_between(const struct mark *from, const struct mark *to) {
  if (has_dwt) return (uint32_t)(to->first - from->first);
  return (((uint64_t)to->wraps << 32) | to->first) - (((uint64_t)from->wraps << 32) | from->first);
}
