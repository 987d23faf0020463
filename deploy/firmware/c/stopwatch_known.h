/* The loop of STOPWATCH_KNOWN instructions of every Cortex-M: included once in a program, by its stopwatch. */
#ifndef STOPWATCH_KNOWN_H
#define STOPWATCH_KNOWN_H

#include "stopwatch.h"

/* 3 instructions, then 20,000 times 5. */
__attribute__((naked)) void stopwatch_known(void) {
  __asm__ volatile(
      ".syntax unified\n\t"
      "movs r0, #125\n\t"
      "movs r1, #160\n\t"
      "muls r0, r1, r0\n"
      "1:\n\t"
      "nop\n\t"
      "nop\n\t"
      "nop\n\t"
      "subs r0, #1\n\t"
      "bne 1b\n\t"
      "bx lr");
}

#endif
