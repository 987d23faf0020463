/* Calls candidates for the schedules of kernels and tells the host what each took and gave, by semihosting.
 *
 * The file "numbers" holds the number of each candidate to call; "outputs" gets its outputs and "answer" lines of a word
 * and a number in hexadecimal: "candidate" before the call, "took" (instructions) after one that went well. The host
 * calls the others again where one ends the program or runs for ever.
 */
#include "candidates.h"

#include <string.h>

#include "memory.h"
#include "semihosting.h"
#include "stopwatch.h"

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

static void give_outputs(const struct candidate *candidate, int32_t outputs) {
  for (uint32_t i = 0; i < candidate->count; ++i) {
    const struct buffer *buffer = &candidate->buffers[i];
    if (buffer->use == BUFFER_WRITTEN) (void)host_write(outputs, area + buffer->offset, buffer->bytes);
  }
}

static void measure(uint32_t number, int32_t outputs) {
  const struct candidate *candidate = &candidates[number];
  int32_t status;
  candidate_prepare(candidate);
  say_fact("candidate", number);
  const uint64_t instructions = candidate_call(candidate, &status);
  if (status != 0)
    say_fact("status", (uint32_t)status);
  else if (!candidate_kept(candidate))
    say_fact("past", 1u);
  else
    say_fact("took", instructions);
  give_outputs(candidate, outputs);
}

static void harness(void) {
  uint32_t number;
  answer = host_open("answer", HOST_WRITE);
  const int32_t numbers = host_open("numbers", HOST_READ), outputs = host_open("outputs", HOST_WRITE);
  if (answer < 0 || numbers < 0 || outputs < 0) host_exit(1);
  say_fact("known", candidates_begin());
  while (host_read(numbers, &number, sizeof number) == sizeof number && number < candidate_count) measure(number, outputs);
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
