#ifndef ISOLIB_WRAPPERS_H
#define ISOLIB_WRAPPERS_H
/* The declarations of cdef.h with the types that they need: for the extension's own sources and for what cffi generates. */
#include <stddef.h>
#include <stdint.h>

#include "cdef.h"

/* birth.c: the same descriptor with a number that is no standard stream's; the one given is closed then */
int isolib_raise_fd(int fd);
/* Starts the launcher, or returns an errno and has done nothing; launch->call is what failed. */
int isolib_birth_begin(struct isolib_launch *launch);
/* Waits until stage 1 is gone: 0, an errno of its birth, or EINTR: ask again. */
int isolib_birth_settle(struct isolib_launch *launch);
/* Ends a stage 1 that is under way; one that has made stage 2 heeds ISOLIB_SAY_END. */
void isolib_birth_cancel(struct isolib_launch *launch);
#endif
