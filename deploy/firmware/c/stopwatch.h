/* Counts instructions, exactly, in an emulator whose every instruction takes one nanosecond. */
#ifndef STOPWATCH_H
#define STOPWATCH_H

#include <stdint.h>

struct mark {
  uint32_t first, sum, wraps, pending;
};

void stopwatch_start(void);
void stopwatch_stop(void);

/* Remember the time. */
void stopwatch_mark(struct mark *mark);

/* Instructions from one mark to the next, those of marking itself included: always the same number. */
uint64_t stopwatch_between(const struct mark *from, const struct mark *to);

/* A loop of exactly STOPWATCH_KNOWN instructions, its call and return not counted. */
void stopwatch_known(void);

#define STOPWATCH_KNOWN 100003u

#if !defined(__riscv)
void stopwatch_wrapped(void); /* the SysTick exception */
#endif

#endif
