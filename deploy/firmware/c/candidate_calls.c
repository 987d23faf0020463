/* Calling candidates for the schedules of kernels, however the host is talked to. */
#include "candidates.h"

#include <string.h>

#include "stopwatch.h"

enum { GUARD_BYTE = 0xA5 };

static void nothing(void) { __asm__ volatile(""); }

static uint64_t overhead;

__attribute__((noinline)) static uint64_t timed(int32_t (*call)(void), int32_t *status) {
  struct mark from, to;
  stopwatch_mark(&from);
  *status = call();
  stopwatch_mark(&to);
  const uint64_t cost = stopwatch_between(&from, &to);
  return cost > overhead ? cost - overhead : 1u; /* what is very short may be lost in the noise of a cache */
}

/* The time of a function that returns nothing, called as a candidate is. */
static uint64_t timed_work(void (*work)(void)) {
  union {
    void (*work)(void);
    int32_t (*call)(void);
  } same = {work};
  int32_t status;
  return timed(same.call, &status);
}

uint64_t candidates_begin(void) {
  stopwatch_start();
  overhead = 0;
  overhead = timed_work(nothing);
  return timed_work(stopwatch_known);
}

void candidate_prepare(const struct candidate *candidate) {
  memset(area, GUARD_BYTE, area_bytes);
  for (uint32_t i = 0; i < candidate->count; ++i) {
    const struct buffer *buffer = &candidate->buffers[i];
    if (buffer->use == BUFFER_READ) memcpy(area + buffer->offset, buffer->values, buffer->bytes);
  }
}

uint64_t candidate_call(const struct candidate *candidate, int32_t *status) { return timed(candidate->call, status); }

int candidate_kept(const struct candidate *candidate) {
  for (uint32_t i = 0; i < candidate->count; ++i) {
    const struct buffer *buffer = &candidate->buffers[i];
    const unsigned char *guard = area + buffer->offset + buffer->bytes;
    for (uint32_t k = 0; k < GUARD_BYTES; ++k)
      if (guard[k] != GUARD_BYTE) return 0;
  }
  return 1;
}
