/* The host's side of a launch: what is heard of it, until the command runs or all of it is gone. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wrappers.h"

void isolib_close_fd(int32_t *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

union control {
    char bytes[CMSG_SPACE(2 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    struct cmsghdr aligned;
};

static ssize_t receive(int status, struct isolib_message *message, int fds[2], pid_t *sender, int *truncated) {
    union control control;
    struct iovec part = {message, sizeof(*message)};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(status, &header, MSG_CMSG_CLOEXEC);
    fds[0] = fds[1] = -1;
    *sender = 0;
    *truncated = got >= 0 && (header.msg_flags & MSG_CTRUNC);
    for (struct cmsghdr *c = got >= 0 ? CMSG_FIRSTHDR(&header) : NULL; c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_RIGHTS)
            memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0) > 4 ? 8 : 4);
        if (c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred credentials;
            memcpy(&credentials, CMSG_DATA(c), sizeof(credentials));
            *sender = credentials.pid;
        }
    }
    return got;
}

static void close_results(struct isolib_launch *launch) {
    isolib_close_fd(&launch->status);
    isolib_close_fd(&launch->pidfd);
    isolib_close_fd(&launch->command);
    isolib_close_fd(&launch->pty);
    for (int i = 0; i < 3; i++)
        isolib_close_fd(&launch->pipes[i]);
}

void isolib_launch_forget(struct isolib_launch *launch) {
    if (launch->nursery)
        isolib_launch_abort(launch);
    else
        close_results(launch);
}

void isolib_launch_close(struct isolib_launch *launch, int stream) {
    isolib_close_fd(stream < 3 ? &launch->pipes[stream] : &launch->pty);
}

static int give_up(struct isolib_launch *launch, int error, int step, int stage) {
    if (launch->pidfd >= 0) { /* roll-back is complete when the supervisor, and with it the namespaces, are gone */
        struct pollfd gone = {launch->pidfd, POLLIN, 0};
        isolib_close_fd(&launch->status);
        while (poll(&gone, 1, -1) < 0 && errno == EINTR)
            ;
        isolib_reap(launch->pidfd);
    } else if (launch->supervisor_pid > 0) { /* its descriptor has not come; as a child of ours it has that number still */
        siginfo_t info;
        waitid(P_PID, (id_t)launch->supervisor_pid, &info, WEXITED | __WALL);
    }
    close_results(launch);
    launch->error = error;
    launch->step = step;
    launch->stage = stage;
    return -1;
}

static void heed(struct isolib_launch *launch, const struct isolib_message *message, const int fds[2], pid_t sender) {
    switch (message->type) {
    case ISOLIB_BORN:
        launch->pidfd = fds[0];
        launch->supervisor_pid = message->value;
        break;
    case ISOLIB_COMMAND:
        launch->command_pid = sender;
        break;
    case ISOLIB_RUNNING:
        launch->command = fds[0];
        launch->pty = fds[1];
        launch->running = 1;
        break;
    case ISOLIB_HOLDING:
        launch->pty = fds[0];
        launch->running = 1;
        break;
    case ISOLIB_EXITED:
        launch->exit = *message;
        launch->has_exit = 1;
        break;
    default:
        if (launch->error) /* the first is told */
            break;
        launch->error = message->type == ISOLIB_FAILED ? message->error : EPROTO;
        launch->step = message->step;
        launch->stage = message->stage;
        launch->call = message->call;
        if (message->stage == ISOLIB_STAGE_FIRST) /* it may be all that is ever told of stage 2 */
            launch->supervisor_pid = message->value;
    }
}

static void fail_here(struct isolib_launch *launch, int error, int call) {
    launch->error = error;
    launch->step = -1;
    launch->stage = ISOLIB_STAGE_HOST;
    launch->call = call;
}

/* The middle process first: it ends when stage 1 has, which is when the supervisor watches, or when something has failed.  By
 * then everything has been said, in any order, for stage 1 and stage 2 run side by side.  After a failure the end of the socket
 * is waited for, which comes when the last of ours is gone. */
int isolib_launch_wait(struct isolib_launch *launch) {
    int error = isolib_birth_settle(launch);
    if (error == EINTR)
        return 1;
    if (error && !launch->error)
        fail_here(launch, error, launch->call);
    while (launch->pidfd < 0 || !(launch->running || launch->quiet) || launch->error) {
        struct isolib_message message;
        int fds[2];
        pid_t sender;
        int truncated;
        ssize_t got = receive(launch->status, &message, fds, &sender, &truncated);
        if (got < 0 && errno == EINTR)
            return 1;
        if (got == (ssize_t)sizeof(message)) {
            heed(launch, &message, fds, sender);
        } else if (got < 0 && !launch->error) { /* the end is listened for all the same */
            fail_here(launch, errno, __NR_recvmsg);
        } else {
            if (!launch->error) { /* it was killed */
                fail_here(launch, ECHILD, 0);
                launch->stage = ISOLIB_STAGE_INSIDE;
            }
            return give_up(launch, launch->error, launch->step, launch->stage);
        }
        if (truncated && !launch->error) /* this process could not take the descriptors: it has as many as it may */
            fail_here(launch, EMFILE, __NR_recvmsg);
        if (launch->error) /* whoever still listens, let him end */
            isolib_say(launch->status, ISOLIB_SAY_END);
    }
    return 0;
}

void isolib_launch_abort(struct isolib_launch *launch) {
    if (launch->status < 0)
        return;
    isolib_say(launch->status, ISOLIB_SAY_END);
    isolib_birth_cancel(launch);
    launch->error = EINTR;
    while (isolib_launch_wait(launch) == 1)
        ;
}

/* A plan may rest on where this process is and on what stands in "/": looking costs two system calls, planning anew far more.
 */
static int is_stale(const struct isolib_launch *launch) {
    char where[4096];
    struct stat root;
    if (launch->premise_cwd && (!getcwd(where, sizeof(where)) || strcmp(where, launch->premise_cwd) != 0))
        return 1;
    if (!launch->premise_root_ns)
        return 0;
    return stat("/", &root) < 0 || root.st_mtim.tv_sec * 1000000000LL + root.st_mtim.tv_nsec != launch->premise_root_ns;
}

int isolib_launch(struct isolib_launch *launch) {
    int error;
    launch->status = launch->pidfd = launch->command = launch->pty = -1;
    launch->pipes[0] = launch->pipes[1] = launch->pipes[2] = -1;
    launch->supervisor_pid = launch->command_pid = launch->running = launch->error = launch->has_exit = launch->call = 0;
    launch->started_ns = isolib_monotonic_ns();
    error = is_stale(launch) ? ESTALE : isolib_birth_begin(launch);
    if (error)
        return give_up(launch, error, -1, ISOLIB_STAGE_HOST);
    return isolib_launch_wait(launch);
}

int isolib_run(struct isolib_launch *launch, struct isolib_pump *pump, int64_t timeout_ns, int32_t *pumped) {
    int result;
    launch->quiet = !launch->careful;
    result = isolib_launch(launch);
    if (result != 0)
        return result;
    isolib_pump_attach(pump, launch);
    *pumped = isolib_pump_run(pump, ISOLIB_UNTIL_EXIT | ISOLIB_UNTIL_STREAMS, timeout_ns);
    if (*pumped != ISOLIB_PUMP_DONE)
        return 2;
    if (pump->has_failure) {
        static const int none[2] = {-1, -1};
        heed(launch, &pump->failure, none, 0);
    }
    close_results(launch);
    if (launch->after)
        isolib_batch_run_lent(launch->after);
    return pump->has_failure ? -1 : 0;
}
