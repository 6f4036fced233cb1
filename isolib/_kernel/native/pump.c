/*
 * Feeding and draining a process until it ends: input, both outputs, the status socket and the pidfd in one poll loop, in one
 * call without the GIL.  The state is the caller's, so that what was captured before a time-out or a signal is kept.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "wrappers.h"

enum { CHUNK = 65536 };

int64_t isolib_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/*
 * Where the host is PID 1 or a child subreaper the process became its child: then it is reaped here; else there is nothing.
 * It has ended, so this waits for nobody but a debugger, who may look at it first; a signal is not kept waiting for that.
 */
int isolib_reap(int pidfd) {
    siginfo_t info;
    return waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | __WALL);
}

static int make_room(struct isolib_stream *stream) {
    uint64_t capacity = stream->capacity * 2 < CHUNK ? CHUNK : stream->capacity * 2;
    uint8_t *data;
    if (!stream->data) {
        stream->data = stream->first;
        stream->capacity = sizeof(stream->first);
    }
    if (stream->capacity - stream->size >= stream->capacity / 2)
        return 0;
    data = realloc(stream->data == stream->first ? NULL : stream->data, capacity);
    if (!data)
        return -1;
    if (stream->data == stream->first)
        memcpy(data, stream->first, stream->size);
    stream->data = data;
    stream->capacity = capacity;
    return 0;
}

static void end_stream(struct isolib_stream *stream) {
    if (!stream->capacity) /* what was captured is nothing; that nothing was to be captured is something else */
        make_room(stream);
    close(stream->fd);
    stream->fd = -1;
}

/* One read; what exceeds the limit is dropped, so that the writer is never held up. */
static int drain(struct isolib_stream *stream) {
    ssize_t got;
    if (make_room(stream) < 0)
        return -1;
    got = read(stream->fd, stream->data + stream->size, stream->capacity - stream->size);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (got <= 0) { /* the end; EIO is a terminal's */
        end_stream(stream);
        return 0;
    }
    stream->size += (uint64_t)got;
    if (stream->size > stream->limit) {
        stream->size = stream->limit;
        stream->overflow = 1;
    }
    return 0;
}

static void feed(struct isolib_pump *pump) {
    uint64_t left = pump->input_size - pump->input_done;
    ssize_t put = left ? write(pump->stdin_fd, pump->input + pump->input_done, left) : 0;
    if (put > 0)
        pump->input_done += (uint64_t)put;
    if (put < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (put < 0 || pump->input_done == pump->input_size) { /* EPIPE: it does not want more, as in subprocess */
        close(pump->stdin_fd);
        pump->stdin_fd = -1;
    }
}

static void hear(struct isolib_pump *pump) {
    struct isolib_message message;
    ssize_t got = recv(pump->status, &message, sizeof(message), MSG_DONTWAIT);
    if (got == (ssize_t)sizeof(message) && message.type == ISOLIB_EXITED) {
        pump->exit = message;
        pump->has_exit = 1;
        pump->ended_ns = isolib_monotonic_ns();
        /* Whose child it is must be reaped when it has ended. */
        if (pump->early && isolib_reap(pump->pidfd) < 0)
            pump->gone = 1;
    } else if (got == (ssize_t)sizeof(message) && message.type == ISOLIB_FAILED) {
        pump->failure = message;
        pump->has_failure = 1;
    } else if (got == 0) {
        pump->status = -1; /* the caller's to close: another thread may be about to write to it */
    }
}

static void part(struct isolib_pump *pump) {
    if (pump->status >= 0)
        hear(pump);
    if (!pump->ended_ns)
        pump->ended_ns = isolib_monotonic_ns();
    isolib_reap(pump->pidfd);
    pump->gone = 1;
}

static int is_done(const struct isolib_pump *pump, int until) {
    if ((until & ISOLIB_UNTIL_STREAMS) && (pump->out.fd >= 0 || pump->err.fd >= 0))
        return 0;
    return !(until & ISOLIB_UNTIL_EXIT) || pump->gone;
}

enum { POLLED_IN, POLLED_OUT, POLLED_ERR, POLLED_STATUS, POLLED_PIDFD, POLLED };

static int wait_for_news(const struct isolib_pump *pump, struct pollfd polled[POLLED], int64_t deadline) {
    struct timespec left, *limit = NULL;
    polled[POLLED_IN] = (struct pollfd){pump->stdin_fd, POLLOUT, 0};
    polled[POLLED_OUT] = (struct pollfd){pump->out.fd, POLLIN, 0};
    polled[POLLED_ERR] = (struct pollfd){pump->err.fd, POLLIN, 0};
    polled[POLLED_STATUS] = (struct pollfd){pump->status, POLLIN, 0};
    polled[POLLED_PIDFD] = (struct pollfd){pump->gone ? -1 : pump->pidfd, POLLIN, 0};
    if (pump->gone) {
        left = (struct timespec){0, 0}; /* nobody writes any more: take what is in the pipes and leave */
        limit = &left;
    } else if (deadline >= 0) {
        int64_t ns = deadline - isolib_monotonic_ns();
        ns = ns < 0 ? 0 : ns;
        left = (struct timespec){ns / 1000000000, ns % 1000000000};
        limit = &left;
    }
    return ppoll(polled, POLLED, limit, NULL);
}

static int step(struct isolib_pump *pump, int until, int64_t deadline) {
    struct pollfd polled[POLLED];
    int overflow = pump->out.overflow + pump->err.overflow;
    int ready = wait_for_news(pump, polled, deadline);
    if (ready < 0)
        return errno == EINTR ? ISOLIB_PUMP_SIGNAL : -errno;
    if (ready == 0 && pump->gone) {
        if (pump->out.fd >= 0)
            end_stream(&pump->out);
        if (pump->err.fd >= 0)
            end_stream(&pump->err);
    } else if (ready == 0) {
        return ISOLIB_PUMP_TIMEOUT;
    }
    if (polled[POLLED_IN].revents)
        feed(pump);
    if ((polled[POLLED_OUT].revents && drain(&pump->out) < 0) || (polled[POLLED_ERR].revents && drain(&pump->err) < 0))
        return -ENOMEM;
    if (polled[POLLED_STATUS].revents)
        hear(pump);
    if (polled[POLLED_PIDFD].revents)
        part(pump);
    if (is_done(pump, until))
        return ISOLIB_PUMP_DONE;
    return pump->out.overflow + pump->err.overflow > overflow ? ISOLIB_PUMP_OVERFLOW : -EAGAIN;
}

static void set_blocking(int fd, int blocking) {
    int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);
    if (flags >= 0)
        fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

int isolib_pump_run(struct isolib_pump *pump, int until, int64_t timeout_ns) {
    int64_t deadline = timeout_ns < 0 ? -1 : isolib_monotonic_ns() + timeout_ns;
    int result = is_done(pump, until) ? ISOLIB_PUMP_DONE : -EAGAIN;
    set_blocking(pump->stdin_fd, 0);
    while (result == -EAGAIN)
        result = step(pump, until, deadline);
    set_blocking(pump->stdin_fd, 1);
    return result;
}

void isolib_pump_attach(struct isolib_pump *pump, struct isolib_launch *launch) {
    int32_t *streams[3] = {&pump->stdin_fd, &pump->out.fd, &pump->err.fd};
    if (pump->pidfd < 0) {
        pump->status = launch->status;
        pump->pidfd = launch->pidfd;
        pump->has_exit = launch->has_exit;
        pump->exit = launch->exit;
        pump->early = launch->quiet;
        if (pump->has_exit) {
            pump->ended_ns = isolib_monotonic_ns();
            pump->gone = pump->early && isolib_reap(pump->pidfd) < 0;
        }
    }
    for (int i = 0; i < 3; i++) {
        if (launch->pipes[i] < 0)
            continue;
        *streams[i] = launch->pipes[i];
        launch->pipes[i] = -1;
    }
}

static void close_all(const int32_t *fds, int count) {
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

void isolib_pump_close(struct isolib_pump *pump) {
    int32_t fds[3] = {pump->stdin_fd, pump->out.fd, pump->err.fd};
    pump->stdin_fd = pump->out.fd = pump->err.fd = -1;
    close_all(fds, 3);
}

void isolib_pump_free(struct isolib_pump *pump) {
    isolib_pump_close(pump);
    if (pump->out.data != pump->out.first)
        free(pump->out.data);
    if (pump->err.data != pump->err.first)
        free(pump->err.data);
    pump->out.data = pump->err.data = NULL;
    pump->out.size = pump->err.size = pump->out.capacity = pump->err.capacity = 0;
}

int isolib_say(int status, int word) {
    char byte = (char)word;
    return (int)send(status, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}
