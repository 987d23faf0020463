/* From reset to main, for programs without a board's own start-up code; main's result goes to the emulator or debugger,
 * by semihosting. Without either of them a processor faults there. */
#include "memory.h"
#include "semihosting.h"
#include "stopwatch.h"

int main(void);

enum { FAULTED = 101 };

/* Weak, for programs that have their own. */
__attribute__((weak)) void report_fault(const char *name, const uint32_t *words, uint32_t count) {
  (void)name;
  (void)words;
  (void)count;
  host_exit(FAULTED);
}

#if !defined(__riscv)
__attribute__((weak)) void stopwatch_wrapped(void) {} /* the SysTick exception, which nobody has switched on */
#endif

void start(void) {
  const uint32_t *image = data_image;
  for (uint32_t *word = data_start; word < data_end;) *word++ = *image++;
  for (uint32_t *word = bss_start; word < bss_end;) *word++ = 0u;
  host_exit((uint32_t)main());
}
