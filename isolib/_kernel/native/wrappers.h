#ifndef ISOLIB_WRAPPERS_H
#define ISOLIB_WRAPPERS_H
/* The declarations of cdef.h with the types that they need: for the extension's own sources and for what cffi generates. */
#include <stddef.h>
#include <stdint.h>

#include "cdef.h"

/* launch.c: the same descriptor with a number that is no standard stream's; the one given is closed then */
int isolib_raise_fd(int fd);
#endif
