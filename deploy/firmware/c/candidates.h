/* Candidates for the schedule of a kernel: what each is called with lies in `area`, its constants in flash. */
#ifndef CANDIDATES_H
#define CANDIDATES_H

#include <stdint.h>

enum { BUFFER_READ, BUFFER_WRITTEN, BUFFER_WORKSPACE };

/* A part of `area`, behind which lie at least GUARD_BYTES that nobody may write to; `values` in flash for what is read. */
struct buffer {
  uint32_t offset, bytes, use;
  const unsigned char *values;
};

struct candidate {
  int32_t (*call)(void);
  const struct buffer *buffers;
  uint32_t count;
};

enum { GUARD_BYTES = 16 };

extern const struct candidate candidates[];
extern const uint32_t candidate_count, area_bytes;
extern const uint64_t candidates_id;
extern unsigned char area[];

/* Start the stopwatch and see how long it takes itself; what it counts for the loop whose length is known. */
uint64_t candidates_begin(void);

/* Give a candidate its inputs and guards. */
void candidate_prepare(const struct candidate *candidate);

/* Call a candidate; what the stopwatch, which runs, counts. */
uint64_t candidate_call(const struct candidate *candidate, int32_t *status);

/* Whether all that a candidate may not write to is as it was. */
int candidate_kept(const struct candidate *candidate);

#endif
