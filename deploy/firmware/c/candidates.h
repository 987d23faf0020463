/* Candidates for the schedule of a kernel: what each is called with lies in `area`, its constants in flash. */
#ifndef CANDIDATES_H
#define CANDIDATES_H

#include <stdint.h>

enum { BUFFER_READ, BUFFER_WRITTEN, BUFFER_WORKSPACE };

/* A part of `area`; behind it lie at least GUARD_BYTES that nobody may write to. */
struct buffer {
  uint32_t offset, bytes, use;
};

struct candidate {
  int32_t (*call)(void);
  const struct buffer *buffers;
  uint32_t count;
};

enum { GUARD_BYTES = 16 };

extern const struct candidate candidates[];
extern const uint32_t candidate_count, area_bytes;
extern unsigned char area[];

#endif
