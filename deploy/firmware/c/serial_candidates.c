/* Calls candidates for the schedules of kernels, each when a host at the other end of a serial line asks for it.
 *
 * SELECT (number) chooses one and gives it its inputs, RUN calls it; CHECK (place in `area`, bytes: 4 each) gives the CRC
 * of what it left, READ (place: 4, bytes: 1) the bytes themselves.
 */
#include <string.h>

#include "candidates.h"
#include "frames.h"
#include "serial_session.h"
#include "stopwatch.h"

static const struct candidate *selected;

void greet(struct greeting *greeting) {
  selected = 0;
  greeting->known = candidates_begin();
  stopwatch_stop();
  greeting->build_id = candidates_id;
  greeting->input_bytes = 0;
  greeting->output_bytes = 0;
  greeting->arena_bytes = area_bytes;
  greeting->calls = candidate_count;
  greeting->name = "candidates";
}

static void run(void) {
  int32_t status;
  stopwatch_start();
  const uint64_t count = candidate_call(selected, &status);
  stopwatch_stop();
  if (status != 0)
    put_outcome(STATUS, (uint32_t)status, 0);
  else if (!candidate_kept(selected))
    put_outcome(PAST_OUTPUT, 0, 0);
  else
    put_outcome(GOOD, 0, count);
}

int carry_out(enum operation operation, uint8_t *data, uint32_t bytes) {
  if (operation == RUN && selected != 0) {
    run();
    return 1;
  }
  if (bytes < 4u) return 0;
  const uint32_t first = number_at(data);
  if (operation == SELECT && first < candidate_count) {
    selected = &candidates[first];
    candidate_prepare(selected);
    put(GOOD, 1);
    return 1;
  }
  if (first > area_bytes) return 0;
  if (operation == CHECK && bytes >= 8u && number_at(data + 4) <= area_bytes - first) {
    put(GOOD, 1);
    put(frame_crc(area + first, number_at(data + 4)), 4);
    return 1;
  }
  if (operation == READ && bytes >= 5u && data[4] <= CHUNK && data[4] <= area_bytes - first) {
    put(GOOD, 1);
    memcpy(put_room(data[4]), area + first, data[4]);
    return 1;
  }
  return 0;
}
