/* The debugger's or emulator's files. */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stdint.h>

enum { HOST_READ = 1, HOST_WRITE = 5 }; /* fopen's "rb" and "wb" */

/* A file of the host, or a negative number. */
int32_t host_open(const char *name, int32_t mode);

/* Bytes read, fewer only at the file's end. */
uint32_t host_read(int32_t file, void *data, uint32_t bytes);

/* Bytes written. */
uint32_t host_write(int32_t file, const void *data, uint32_t bytes);

void host_close(int32_t file);

/* End the program with an exit status. */
__attribute__((noreturn)) void host_exit(uint32_t status);

#endif
