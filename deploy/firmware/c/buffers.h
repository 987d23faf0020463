/* What a measuring program gives a model to work with, in static memory, and what it watches of it.
 *
 * MODEL_RUN is the model's `run`, MODEL_MACRO what its macros begin with, MODEL_POOLS its list of memories besides the
 * arena where it has one.
 */
#ifndef BUFFERS_H
#define BUFFERS_H

#include <string.h>

#include "memory.h"
#include "model.h"
#include "stopwatch.h"

#define PASTE(a, b) PASTE_(a, b)
#define PASTE_(a, b) a##b
#define INPUTS PASTE(MODEL_MACRO, _INPUTS)
#define OUTPUTS PASTE(MODEL_MACRO, _OUTPUTS)
#define ARENA_BYTES PASTE(MODEL_MACRO, _ARENA_BYTES)
#define ARENA_ALIGNMENT PASTE(MODEL_MACRO, _ARENA_ALIGNMENT)
#if !defined(MODEL_POOLS)
#define MODEL_POOLS(X)
#endif

#if defined(__riscv)
#define MOVE "mv"
#else
#define MOVE "mov"
#endif

#define NO_STACK UINT32_MAX

enum { GUARD = 8, GUARD_BYTE = 0xA5, SPARE_WORDS = 32 };

/* The guards behind what the model writes must stay as they are. A full pool has no room for one. */
#if !defined(POOL_GUARD)
#define POOL_GUARD GUARD
#endif
#define INPUT(type, name, count) static type in_##name[count];
#define OUTPUT(type, name, count) static type out_##name[(count) + GUARD];
#define POOL(name, bytes, place) \
  static unsigned char pool_##name[(bytes) + POOL_GUARD] __attribute__((aligned(ARENA_ALIGNMENT), section(place)));
INPUTS(INPUT)
OUTPUTS(OUTPUT)
MODEL_POOLS(POOL)
static unsigned char arena[ARENA_BYTES + GUARD] __attribute__((aligned(ARENA_ALIGNMENT)));

#define PASS_INPUT(type, name, count) in_##name,
#define PASS_OUTPUT(type, name, count) out_##name,
#define PASS_POOL(name, bytes, place) , pool_##name, bytes
#define ARGUMENTS INPUTS(PASS_INPUT) OUTPUTS(PASS_OUTPUT) arena, ARENA_BYTES MODEL_POOLS(PASS_POOL)

__attribute__((noinline)) static int32_t infer(void) { return MODEL_RUN(ARGUMENTS); }

static inline void fill(void *data, uint32_t bytes) { memset(data, GUARD_BYTE, bytes); }

static inline void guard(void) {
#define FILL(type, name, count) fill(out_##name + (count), GUARD * sizeof(type));
#define FILL_POOL(name, bytes, place) fill(pool_##name + (bytes), POOL_GUARD);
  OUTPUTS(FILL)
  MODEL_POOLS(FILL_POOL)
  fill(arena + ARENA_BYTES, GUARD);
}

static inline int kept(const void *data, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; ++i)
    if (((const unsigned char *)data)[i] != GUARD_BYTE) return 0;
  return 1;
}

static inline int outputs_kept(void) {
  int all = 1;
#define KEPT(type, name, count) all &= kept(out_##name + (count), GUARD * sizeof(type));
  OUTPUTS(KEPT)
  return all;
}

static inline int arena_kept(void) {
  int all = kept(arena + ARENA_BYTES, GUARD);
#define KEPT_POOL(name, bytes, place) all &= kept(pool_##name + (bytes), POOL_GUARD);
  MODEL_POOLS(KEPT_POOL)
  return all;
}

/* Not inlined, so that all calls cost the same; and not every program calls all of them. */
#define APART __attribute__((noinline, unused)) static

/* Bytes of stack that an inference takes, found by painting what is free of it; NO_STACK where almost none is left. */
APART uint32_t stack_used(int32_t *status) {
  const uint32_t paint = 0xA5A5A5A5u;
  uint32_t *here;
  __asm__ volatile(MOVE " %0, sp" : "=r"(here));
  for (uint32_t *word = stack_limit; word < here; ++word) *(volatile uint32_t *)word = paint;
  *status = infer();
  uint32_t *word = stack_limit;
  while (word < here && *(volatile uint32_t *)word == paint) ++word;
  return word < stack_limit + SPARE_WORDS ? NO_STACK : (uint32_t)((unsigned char *)here - (unsigned char *)word);
}

APART uint64_t timed(void (*work)(void)) {
  struct mark from, to;
  stopwatch_mark(&from);
  work();
  stopwatch_mark(&to);
  return stopwatch_between(&from, &to);
}

static inline void nothing(void) { __asm__ volatile(""); }

#endif
