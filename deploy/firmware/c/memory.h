/* What the linker script knows, and how every core gets from its first instruction to the harness. */
#ifndef MEMORY_H
#define MEMORY_H

#include <stdint.h>

extern uint32_t data_start[], data_end[], bss_start[], bss_end[], stack_limit[], stack_top[];
extern const uint32_t data_image[];

/* Copy .data, clear .bss, run the harness; never returns. */
__attribute__((noreturn)) void start(void);

/* Tell the host of a fault and stop; `words` are what there is to know, `name` what happened. */
__attribute__((noreturn)) void report_fault(const char *name, const uint32_t *words, uint32_t count);

#endif
