/* Calls candidates for the schedules of kernels and tells the host what each took and gave.
 *
 * The file "inputs" holds, for each candidate to call, its number and what its inputs hold; "outputs" gets its outputs
 * and "answer" lines of a word and a number in hexadecimal: "candidate" before the call, "took" (instructions) after
 * one that went well. The host calls the others again where one ends the program or runs for ever.
 */
#include "candidates.h"

#include <string.h>

#include "memory.h"
#include "semihosting.h"
#include "stopwatch.h"

enum { GUARD_BYTE = 0xA5 };

static int32_t answer = -1;

static void say(const char *text) { (void)host_write(answer, text, (uint32_t)strlen(text)); }

static void say_fact(const char *name, uint64_t number) {
  char text[20], *at = text + sizeof text;
  *--at = '\0';
  *--at = '\n';
  do {
    *--at = "0123456789abcdef"[number & 15u];
    number >>= 4;
  } while (number != 0u);
  *--at = ' ';
  say(name);
  say(at);
}

void report_fault(const char *name, const uint32_t *words, uint32_t count) {
  (void)name;
  say_fact("fault", count > 1u ? words[1] : 0u);
  host_exit(1);
}

static void nothing(void) { __asm__ volatile(""); }

static uint64_t overhead;

__attribute__((noinline)) static uint64_t timed(int32_t (*call)(void), int32_t *status) {
  struct mark from, to;
  stopwatch_mark(&from);
  *status = call();
  stopwatch_mark(&to);
  return stopwatch_between(&from, &to) - overhead;
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

/* Whether all that a candidate may not write to is as it was. */
static int untouched(const struct candidate *candidate) {
  for (uint32_t i = 0; i < candidate->count; ++i) {
    const struct buffer *buffer = &candidate->buffers[i];
    const unsigned char *guard = area + buffer->offset + buffer->bytes;
    for (uint32_t k = 0; k < GUARD_BYTES; ++k)
      if (guard[k] != GUARD_BYTE) return 0;
  }
  return 1;
}

static void give_outputs(const struct candidate *candidate, int32_t outputs) {
  for (uint32_t i = 0; i < candidate->count; ++i) {
    const struct buffer *buffer = &candidate->buffers[i];
    if (buffer->use == BUFFER_WRITTEN) (void)host_write(outputs, area + buffer->offset, buffer->bytes);
  }
}

static void measure(uint32_t number, int32_t inputs, int32_t outputs) {
  const struct candidate *candidate = &candidates[number];
  int32_t status;
  memset(area, GUARD_BYTE, area_bytes);
  for (uint32_t i = 0; i < candidate->count; ++i) {
    const struct buffer *buffer = &candidate->buffers[i];
    if (buffer->use == BUFFER_READ) (void)host_read(inputs, area + buffer->offset, buffer->bytes);
  }
  say_fact("candidate", number);
  const uint64_t instructions = timed(candidate->call, &status);
  if (status != 0)
    say_fact("status", (uint32_t)status);
  else if (!untouched(candidate))
    say_fact("past", 1u);
  else
    say_fact("took", instructions);
  give_outputs(candidate, outputs);
}

static void harness(void) {
  uint32_t number;
  answer = host_open("answer", HOST_WRITE);
  const int32_t inputs = host_open("inputs", HOST_READ), outputs = host_open("outputs", HOST_WRITE);
  if (answer < 0 || inputs < 0 || outputs < 0) host_exit(1);
  stopwatch_start();
  overhead = timed_work(nothing);
  say_fact("known", timed_work(stopwatch_known));
  while (host_read(inputs, &number, sizeof number) == sizeof number && number < candidate_count)
    measure(number, inputs, outputs);
  stopwatch_stop();
  host_close(outputs);
  say_fact("done", 1u);
  host_exit(0);
}

void start(void) {
  const uint32_t *image = data_image;
  for (uint32_t *word = data_start; word < data_end;) *word++ = *image++;
  for (uint32_t *word = bss_start; word < bss_end;) *word++ = 0u;
  harness();
  host_exit(0);
}
