/* The measuring program over a serial line, for a program that has start-up code of its own. */
#ifndef SERIAL_HARNESS_H
#define SERIAL_HARNESS_H

/* Answer requests, for ever. Call it when clocks and the functions of board.h are ready. */
__attribute__((noreturn)) void harness_serve(void);

#endif
