/* Vector table, reset and faults of every Cortex-M, from ARMv6-M to ARMv8.1-M. */
#include "memory.h"
#include "stopwatch.h"

#define CPACR (*(volatile uint32_t *)0xE000ED88u)
#define CFSR (*(volatile uint32_t *)0xE000ED28u)
#define ICSR (*(volatile uint32_t *)0xE000ED04u)

__attribute__((noreturn)) void reset(void);

void reset(void) {
#if (defined(__ARM_FP) && __ARM_FP) || defined(__ARM_FEATURE_MVE)
  CPACR |= 0xFu << 20; /* the coprocessors 10 and 11: floating point and Helium */
  __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
  start();
}

__attribute__((noreturn, used)) static void fault(const uint32_t *frame) {
#if defined(__ARM_ARCH_6M__)
  const uint32_t reason = 0u; /* ARMv6-M does not tell */
#else
  const uint32_t reason = CFSR;
#endif
  const uint32_t words[] = {ICSR & 0x1FFu, frame[6], frame[5], reason};
  report_fault("exception, at, called from, reason", words, 4u);
}

/* The frame that the processor stacked; SP is the main stack's, the only one in use. */
__attribute__((naked, noreturn)) static void fault_entry(void) {
  __asm__ volatile(".syntax unified\n\tmrs r0, msp\n\tldr r1, =fault\n\tbx r1");
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))stack_top, reset, fault_entry, fault_entry, fault_entry, fault_entry, fault_entry, fault_entry,
    0, 0, 0, fault_entry, fault_entry, 0, fault_entry, stopwatch_wrapped,
};
