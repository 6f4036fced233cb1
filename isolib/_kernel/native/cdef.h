/*
 * What C and Python say to each other: the plan that the launcher executes, the messages it sends back, and the functions of
 * the extension module.  cffi reads this file at build time, so it holds declarations only and no preprocessor lines.
 */

/* ---- the launch plan -------------------------------------------------------------------------------------------------- */

enum isolib_limits {
    ISOLIB_PLAN_MAGIC = 0x31504c49, /* "ILP1" */
    ISOLIB_PLAN_VERSION = 1,
    ISOLIB_MAX_STEPS = 16384,
    ISOLIB_MAX_SLOTS = 1024,
    ISOLIB_MAX_KEEP = 1024,
    ISOLIB_MAX_PLAN = 16777216,
    ISOLIB_NO_SLOT = -1
};

/* A step is one system call or a few, as plan.py says.  Slots hold file descriptors; texts are offsets into the text area. */
enum isolib_kind {
    STEP_CLONE = 1,  /* stage 1 makes stage 2; flags: CLONE_NEW*, fd: cgroup directory */
    STEP_MAP,        /* stage 1 writes text2 to the child's /proc/PID/text */
    STEP_MAP_HELPER, /* stage 1 runs text (newuidmap, newgidmap) with the child's pid and the strings text2 */
    STEP_GO,         /* stage 2 starts with the next step; stage 1 watches over it until it supervises or holds */
    STEP_SUPERVISE,  /* stage 2 starts the command and stays; flags: ISOLIB_SUPERVISE_*, value: deadline in ms, 0: none; fd: an
                        eventfd that tells that a cgroup is out of memory, which ends everything; but with fd2, a
                        memory.oom_control, only when that counts a kill */
    STEP_HOLD,       /* stage 2 stays without a command: it keeps its namespaces alive */
    STEP_REAP,       /* stage 2 becomes the reaper; fd: its table */
    STEP_EXEC,       /* the last: candidates text, argv and environment text2, flags: argc, value: envc */

    STEP_SETNS,
    STEP_UNSHARE,
    STEP_OPEN,   /* openat2; flags: O_*, value: mode << 32 | RESOLVE_* */
    STEP_TARGET, /* the mount point `text` beneath slot fd, made when absent; flags 1: a directory; value: mode */
    STEP_CLOSE,
    STEP_OPEN_TREE,
    STEP_MOVE_MOUNT,
    STEP_MOUNT_SETATTR, /* flags: AT_*, value: attributes set, size: cleared, size2: propagation, fd2: user namespace */
    STEP_FSOPEN,
    STEP_FSCONFIG,     /* flags: FSCONFIG_* */
    STEP_FSMOUNT,      /* flags: FSMOUNT_*, value: MOUNT_ATTR_* */
    STEP_CHECK_DEVICE, /* slot fd is the character device value (major << 32 | minor) */
    STEP_MKDIR,
    STEP_MKNOD, /* an empty file */
    STEP_SYMLINK,
    STEP_WRITE, /* text2 into the file text; flags: O_*, value: mode << 32 | RESOLVE_* */
    STEP_PUT, /* text2 into the file that slot fd is: who opened it had the right, this process need not; flags 1: the slot may
                 be empty */
    STEP_PIVOT_ROOT,
    STEP_UMOUNT,
    STEP_FCHDIR,
    STEP_CHDIR,
    STEP_SETHOSTNAME,
    STEP_SETDOMAINNAME,
    STEP_LINK_UP, /* the network interface text */
    STEP_SOCKET,  /* flags: family, value: type << 32 | protocol */
    STEP_SEND,    /* slot fd, to who has the other end of the socket that slot fd2 is */
    STEP_SETSID,
    STEP_PTY_OPEN, /* out: the master, fd2: the slot that gets the terminal */
    STEP_STDIO,    /* slot fd becomes 0, 1, 2 and, flags 1, the controlling terminal */
    STEP_FCHOWN,   /* flags: uid, value: gid */
    STEP_PRCTL,
    STEP_RLIMIT, /* size: resource, flags: soft, value: hard */
    STEP_UMASK,  /* flags 1: what it was before the first such step, else: value */
    STEP_PRIORITY,
    STEP_PERSONALITY,
    STEP_AFFINITY,
    STEP_KEYRING,
    STEP_BOUNDING, /* value: the capabilities that stay */
    STEP_SETGROUPS,
    STEP_SETGID,
    STEP_SETUID,
    STEP_CAPSET,    /* flags: permitted and effective, value: inheritable */
    STEP_AMBIENT,   /* value: the capabilities raised; all others are lowered */
    STEP_CLOSE_FDS, /* everything but 0, 1, 2 and the declared ones */
    STEP_LANDLOCK,
    STEP_SECCOMP, /* flags: SECCOMP_FILTER_FLAG_* */
    STEP_FAIL,    /* fails with errno value: for tests of the roll-back */
    STEP_KINDS
};

enum isolib_supervise {
    ISOLIB_SUPERVISE_INIT = 1 /* this process is PID 1 of its namespace: ending it ends all in it */
};

struct isolib_step {
    uint16_t kind;
    uint16_t ignore; /* an errno that is no error here, or 0 */
    int32_t fd;
    int32_t fd2;
    int32_t out;
    uint64_t flags;
    uint64_t value;
    uint32_t text;
    uint32_t size;
    uint32_t text2;
    uint32_t size2;
};

struct isolib_plan {
    uint32_t magic;
    uint32_t version;
    uint32_t step_count;
    uint32_t slot_count;
    uint32_t text_size;
    int32_t pty; /* slot of the terminal's master, or ISOLIB_NO_SLOT */
    /* the steps follow, then the text area, whose last byte is NUL */
};

/* What differs from launch to launch stands before the plan: which descriptors fill the slots. */
struct isolib_boot {
    uint32_t magic;
    uint32_t slot_count;
    uint32_t keep_count;
    uint32_t plan_offset;
    uint32_t plan_size;
    int32_t status;
    int32_t host;
    int32_t proc;
    int32_t quiet; /* tell of the end and of failures only: nobody waits for the beginning */
    int32_t reserved;
    /* int32_t slots[slot_count], keep[keep_count] follow */
};

/* ---- messages of the launcher ----------------------------------------------------------------------------------------- */

enum isolib_message_type {
    ISOLIB_BORN = 1, /* with the supervisor's pidfd; its credentials are stage 1's, `value` the pid */
    ISOLIB_COMMAND,  /* from the command before its exec: the credentials tell its pid */
    ISOLIB_RUNNING,  /* with the command's pidfd and the terminal's master */
    ISOLIB_HOLDING,  /* with the descriptor of the plan's `pty` slot, if it names one */
    ISOLIB_EXITED,
    ISOLIB_FAILED
};

/* What the host says to the supervisor: one byte.  That it closes its side, or dies, says ISOLIB_SAY_END too. */
enum isolib_saying {
    ISOLIB_SAY_END = 'e', /* kill everything */
    ISOLIB_SAY_HIDE = 'h' /* the host has taken the namespaces' descriptors: be undumpable from now on */
};

enum isolib_ending { ISOLIB_END_BY_ITSELF = 0, ISOLIB_END_DEADLINE = 1, ISOLIB_END_KILLED = 2, ISOLIB_END_OOM = 3 };

/* ---- the reaper's table ------------------------------------------------------------------------------------------------ */

enum isolib_table_limits {
    ISOLIB_TABLE_MAGIC = 0x31544c49, /* "ILT1" */
    ISOLIB_TABLE_VERSION = 1,
    ISOLIB_TABLE_ENTRIES = 16384,
    ISOLIB_TABLE_BASES = 256,      /* directories in which names live */
    ISOLIB_ENTRY_BASES = 16,       /* of one entry: one for each hierarchy of cgroups */
    ISOLIB_OWNER_DIED = 0x40000000 /* FUTEX_OWNER_DIED, which no linux/ header may be included for */
};

enum isolib_entry_kind {
    ISOLIB_ENTRY_CGROUP = 1, /* a directory of cgroups with all that it holds */
    ISOLIB_ENTRY_LINK,       /* the link whose number the name is, in the namespace of a netlink socket */
    ISOLIB_ENTRY_MOUNT,      /* a mount whose root a descriptor is open on; the name says nothing */
    ISOLIB_ENTRY_SETTING,    /* the name is what an open file of /proc/sys is given back, if it has the value that follows */
    ISOLIB_ENTRY_BESIDE      /* the same, of one that the kernel changes with another: when that has been given back */
};

/* Where those who hold a setting lock its file: holders.py says what for. */
enum isolib_setting_locks {
    ISOLIB_SETTING_DOOR = 0,       /* a byte: who has it may come or go */
    ISOLIB_SETTING_MARKS_FROM = 57 /* a power of two: from that byte on lie the marks of those who hold it */
};

/*
 * Shared memory of the host, which writes, and its reaper, which reads when the host is gone: to record a thing and to strike
 * it is a store.  The host stores an entry's state last, and when the entry is struck first.  No more order is needed:
 * what a thread has stored before it died is there for whoever has learned of its death from the kernel.
 */
struct isolib_table {
    uint32_t magic;
    uint32_t version;
    uint32_t entry_size;
    uint32_t capacity;
    uint32_t high;  /* the entries from here on have never been used */
    uint32_t owner; /* the reaper's number, a robust futex: the kernel makes it ISOLIB_OWNER_DIED when the reaper ends */
    uint32_t guard; /* the number of the reaper that the host relies on; any other has been given up */
    uint32_t reserved[9];
    /* the entries follow */
};

struct isolib_entry {
    uint32_t state; /* 0: there is none */
    uint32_t kind;
    uint32_t base_count;
    uint32_t reserved;
    uint16_t bases[16];
    char name[256]; /* NAME_MAX and a NUL */
    uint32_t padding[4];
};

/* What the host says to the reaper, with the descriptor of the directory; without one, that number is free again. */
struct isolib_base {
    uint32_t index;
    uint32_t kind;   /* ISOLIB_ENTRY_MOUNT for a mount; what anything else is, the reaper sees */
    uint32_t answer; /* not 0: when it is done, the reaper says ISOLIB_HOLDING with this value */
};

enum isolib_stage { ISOLIB_STAGE_HOST = 0, ISOLIB_STAGE_FIRST = 1, ISOLIB_STAGE_INSIDE = 2, ISOLIB_STAGE_COMMAND = 3 };

struct isolib_message {
    uint32_t type;
    int32_t step;
    int32_t error;
    int32_t value; /* the pid, or the status as wait4 gives it; of a failure in stage 1, the pid of stage 2 or 0 */
    int32_t stage;
    int32_t ending;
    int32_t call; /* the number of the system call that failed, 0: the step's own */
    int32_t padding;
    int64_t cpu_user_us;
    int64_t cpu_system_us;
    int64_t memory_peak;
    int64_t blocks_read; /* of 512 bytes */
    int64_t blocks_written;
};

/* ---- functions of the extension --------------------------------------------------------------------------------------- */

enum isolib_nobody { ISOLIB_NOBODY = 0xffffffff };

enum isolib_stdio {
    ISOLIB_STDIO_INHERIT = -1,
    ISOLIB_STDIO_PIPE = -2,
    ISOLIB_STDIO_NULL = -3,
    ISOLIB_STDIO_STDOUT = -4 /* only for stderr: where stdout goes */
};

struct isolib_launch {
    /* in */
    int32_t launcher; /* the sealed image, or -1: launcher_path */
    const char *launcher_path;
    const uint8_t *plan;
    uint32_t plan_size;
    const int32_t *slots;
    uint32_t slot_count;
    const int32_t *keep; /* survive the exec with their number */
    uint32_t keep_count;
    int32_t stdio[3];
    uint32_t stream_owner[2]; /* uid and gid that the pipes are given to; ISOLIB_NOBODY: they stay the caller's */
    int32_t host;             /* pidfd of this process */
    int32_t proc;             /* a procfs */
    /* What the plan was made for; where it is so no more, ESTALE is the error and nothing is done.  NULL, 0: nothing. */
    const char *premise_cwd;
    int64_t premise_root_ns; /* when "/" was last changed */
    int32_t quiet;           /* see struct isolib_boot; set by isolib_run */
    int32_t careful;         /* isolib_run is not quiet, and ends when the supervisor is gone, not when it tells of the end */
    struct isolib_batch *after; /* isolib_run does this when the process is gone; what becomes of it, it says itself; or NULL */
    /* out; -1 where there is none */
    int32_t status;
    int32_t pidfd;   /* of the supervisor */
    int32_t command; /* pidfd */
    int32_t pty;
    int32_t pipes[3];
    int32_t supervisor_pid;
    int32_t command_pid;
    int32_t running;
    int32_t error;
    int32_t step;
    int32_t stage;
    int32_t call;       /* the number of the system call that failed; 0: see the step */
    int64_t started_ns; /* CLOCK_MONOTONIC */
    int32_t has_exit;   /* it ended before stage 1 had said that it was born */
    struct isolib_message exit;
    struct isolib_nursery *nursery; /* not NULL while stage 1 may run */
};

/* 0: running; 1: a signal came, handle it and call isolib_launch_wait; -1: see error, step, stage */
int isolib_launch(struct isolib_launch *launch);
int isolib_launch_wait(struct isolib_launch *launch);
/* ends what was started, waits for its end and closes everything */
void isolib_launch_abort(struct isolib_launch *launch);
/* closes everything; the supervisor sees it, and ends what still runs */
void isolib_launch_forget(struct isolib_launch *launch);
/* closes one of the pipes, or for 3 the terminal */
void isolib_launch_close(struct isolib_launch *launch, int stream);
/* the name of a system call that the launcher makes, or NULL */
const char *isolib_call_name(int32_t number);

struct isolib_stream {
    int32_t fd; /* -1: closed or none */
    int32_t overflow;
    uint8_t *data;
    uint64_t size;
    uint64_t capacity;
    uint64_t limit;      /* bytes kept; what comes beyond is read and dropped */
    uint8_t first[4096]; /* what data begins as: a short output needs no other memory, and nobody to free it */
};

struct isolib_pump {
    int32_t status;
    int32_t pidfd;
    int32_t stdin_fd;
    const uint8_t *input;
    uint64_t input_size;
    uint64_t input_done;
    struct isolib_stream out;
    struct isolib_stream err;
    int32_t has_exit;
    int32_t gone;
    int32_t early; /* the end is when the supervisor tells it, all else being dead; its own end is not waited for */
    int32_t has_failure;
    struct isolib_message failure;
    int64_t ended_ns;
    struct isolib_message exit;
};

/* what isolib_pump_run returns */
enum isolib_pumped { ISOLIB_PUMP_DONE = 0, ISOLIB_PUMP_TIMEOUT = 1, ISOLIB_PUMP_SIGNAL = 2, ISOLIB_PUMP_OVERFLOW = 3 };
enum isolib_pump_until {
    ISOLIB_UNTIL_EXIT = 1,   /* the process and all it left behind are gone */
    ISOLIB_UNTIL_STREAMS = 2 /* both outputs are at their end */
};
int isolib_pump_run(struct isolib_pump *pump, int until, int64_t timeout_ns);

/*
 * From the plan to the end in one call: launch, feed and drain, wait, close everything.
 * 0: done; 1: as isolib_launch; 2: launched, but the pump returned *pumped before the end; -1: as isolib_launch.
 */
int isolib_run(struct isolib_launch *launch, struct isolib_pump *pump, int64_t timeout_ns, int32_t *pumped);
/* hands a launched process to a pump, with the pipes that are still its own */
void isolib_pump_attach(struct isolib_pump *pump, struct isolib_launch *launch);
/* closes the streams */
void isolib_pump_close(struct isolib_pump *pump);
void isolib_pump_free(struct isolib_pump *pump);

int64_t isolib_monotonic_ns(void);
int isolib_launcher_seal(const char *path);
int isolib_reap(int pidfd);
int isolib_say(int status, int word);

/* table.c: the reaper's table in a sealed memory file */
int isolib_table_new(void);
void *isolib_table_map(int fd);
void isolib_table_unmap(void *table);
int isolib_table_send_base(int status, const struct isolib_base *base, int fd);
/* waits for an answer, of which those before it are forgotten; it may be interrupted */
int isolib_table_await_answer(int status, uint32_t answer, int milliseconds);

/* batch.c: files and directories.  What is opened gets O_CLOEXEC and O_NOFOLLOW. */

/* The number of bytes read, as many as there are, or as one read yields, and as there is room for; -1: it cannot be opened; -2:
 * it cannot be read. */
int64_t isolib_file_read(int base, const char *name, char *data, uint64_t size, int to_end);
/* 0: written, by one write; -1, -2: as above */
int isolib_file_write(int base, const char *name, const char *data, uint64_t size);

/* what is done in order, in one call */
enum isolib_errand_kind {
    ISOLIB_ERRAND_ABSENT = 1, /* nothing is of this name; otherwise it fails as a mkdir would */
    ISOLIB_ERRAND_MKDIR,
    ISOLIB_ERRAND_RMDIR,
    ISOLIB_ERRAND_OPEN,
    ISOLIB_ERRAND_READ,   /* as isolib_file_read, by one read */
    ISOLIB_ERRAND_WRITE,  /* its text, as isolib_file_write */
    ISOLIB_ERRAND_HOLDS,  /* its text is in the file, which is short; otherwise it fails: EBUSY */
    ISOLIB_ERRAND_NOTIFY, /* an eventfd for a file of cgroup v1; the text: its cgroup.event_control */
    ISOLIB_ERRAND_CLOSE   /* data: a batch */
};

struct isolib_errand {
    int32_t kind;
    int32_t base;  /* the directory that it is about */
    int32_t flags; /* of OPEN: O_* */
    int32_t fd;    /* out, of OPEN and NOTIFY; before, and when it is closed again: -1 */
    void *data;    /* of READ: where to */
    uint64_t size; /* of data */
    uint64_t read; /* out: how much was read */
};

struct isolib_batch {
    uint32_t count;
    uint32_t done;     /* how many have been done: where one has failed, its number */
    uint32_t state;    /* whose it is, where a launch runs it too; 0 at first */
    const char *call;  /* which call of it has failed */
    const char *texts; /* two for each errand, one after the other: the name of what is in its directory, and its text */
    struct isolib_errand errands[];
};
/* 0, or -1 and errno when one has failed: called again, it goes on with that one */
int isolib_batch_run(struct isolib_batch *batch);
/* runs it, if nobody has taken it */
void isolib_batch_run_lent(struct isolib_batch *batch);
/* keeps a launch from running it, now that the directories may be closed; one that does so at this moment is waited for */
void isolib_batch_take(struct isolib_batch *batch);
/* closes all that was opened, or one */
void isolib_batch_close(struct isolib_batch *batch);
void isolib_errand_close(struct isolib_errand *errand);

/* ---- copytree.c, cleartree.c: whole trees ------------------------------------------------------------------------------- */

enum isolib_tree_limits { ISOLIB_TREE_PATH = 4096 };
/* All zero but the first three.  Where `error` is not 0 at the end, `call` has failed at `path`, and not all is there. */
struct isolib_copy {
    int32_t source; /* a directory */
    int32_t target; /* an empty one */
    int32_t threads;
    int32_t error;
    const char *call;
    char path[ISOLIB_TREE_PATH]; /* relative to both */
    struct isolib_copy_state *state;
};
/* Copies for a while; 1: to be called again, until 0. */
int isolib_copy_run(struct isolib_copy *copy);
/* leaves off, where it is under way, and waits for the threads */
void isolib_copy_end(struct isolib_copy *copy);

struct isolib_removal {
    int32_t base;
    int32_t error;
    const char *name; /* what is in that directory; NULL: all that is in it */
    const char *call;
    int32_t rounds;              /* 0 at first */
    char path[ISOLIB_TREE_PATH]; /* of what cannot be removed, below the name */
};
/* Removes for a while; 1: to be called again, until 0.  What is not there is removed.  ENOTEMPTY: somebody keeps making things;
 * EXDEV: something is mounted there. */
int isolib_remove_run(struct isolib_removal *removal);

/* ---- quotas.c: of projects, by a descriptor on the file system ------------------------------------------------------------
 */

/* 1: limits are kept; 0: they are not */
int isolib_project_is_enforced(int fd);
/* 0: no limit */
int isolib_project_limit(int fd, uint32_t project, uint64_t bytes);
/* 1: something is counted or limited for it */
int isolib_project_is_used(int fd, uint32_t project);
int isolib_project_get(int fd, uint32_t *project);
/* what is made in the directory from now on belongs to it too */
int isolib_project_set(int directory, uint32_t project);

/* ---- btrfs.c ------------------------------------------------------------------------------------------------------------ */

int isolib_btrfs_create(int directory, const char *name);
int isolib_btrfs_snapshot(int source, int directory, const char *name, int is_readonly);
int isolib_btrfs_destroy(int directory, const char *name);
int isolib_btrfs_set_readonly(int subvolume, int is_readonly);
struct isolib_btrfs_subvolume {
    uint64_t id;
    uint64_t generation;
    uint64_t origin_generation; /* at which it was made */
    uint64_t flags;
    uint8_t uuid[16];
    uint8_t parent[16]; /* the uuid of what it is a snapshot of; zeros: of nothing */
};
int isolib_btrfs_subvolume(int subvolume, struct isolib_btrfs_subvolume *found);
/* Inodes, from `*first` on, that were perhaps changed at a generation or later, each once, in order: their number.  `*first` is
 * where the next call goes on; 0: there are no more. */
int isolib_btrfs_touched(int subvolume, uint64_t generation, uint64_t *first, uint64_t *inodes, uint32_t room);
/* the directories in which an inode has names: their number, with room for so many; -1 and EOVERFLOW: there are more */
int isolib_btrfs_parents(int subvolume, uint64_t inode, uint64_t *directories, uint32_t room);
/* Tells a path of an inode, from the top of the subvolume on, with a slash at its end. */
enum isolib_btrfs_path_room { ISOLIB_BTRFS_PATH = 4080 };
int isolib_btrfs_where(int subvolume, uint64_t inode, char *path, uint32_t room);
struct isolib_btrfs_nested {
    uint64_t id;
    uint64_t directory; /* in which it lies, an inode of the subvolume above */
};
enum isolib_btrfs_limits { ISOLIB_BTRFS_NESTED = 255 };
/* Those right below a subvolume, from `after` on, which is 0 when these are all: their number, with room for so many. */
int isolib_btrfs_nested(int subvolume, uint64_t *after, struct isolib_btrfs_nested *nested, uint32_t room);
/* where one of them lies, relative to the subvolume above */
int isolib_btrfs_path(int subvolume, const struct isolib_btrfs_nested *nested, char *path, uint32_t room);
int isolib_btrfs_quota_enable(int fd);
int isolib_btrfs_limit(int subvolume, uint64_t exclusive);
int isolib_btrfs_drop_qgroup(int fd, uint64_t id);
int isolib_btrfs_usage(int fd, uint64_t id, uint64_t *exclusive);

/* how far a thread came that went to another namespace, did something there and came back */
enum isolib_away {
    ISOLIB_AWAY_OPEN = 1,
    ISOLIB_AWAY_WAY_BACK,
    ISOLIB_AWAY_ENTER,
    ISOLIB_AWAY_UNSHARE,
    ISOLIB_AWAY_LINK_UP,
    ISOLIB_AWAY_HOSTNAME,
    ISOLIB_AWAY_DOMAINNAME,
    ISOLIB_AWAY_REOPEN,
    ISOLIB_AWAY_SOCKET,
    ISOLIB_AWAY_FILE,
    ISOLIB_AWAY_PUT,
    ISOLIB_AWAY_CONNECT,
    ISOLIB_AWAY_RETURN, /* the thread could not go back */
    ISOLIB_AWAY_TALK    /* it has been there: what was said then */
};
/* `file` is the thread's own namespace in /proc.  Each returns a descriptor: of a new namespace, of a socket that belongs to
 * the network namespace `net`, of a file that is that one's (/proc/sys/net). */
struct isolib_identity {
    uint64_t device, inode;
};
int isolib_namespace_new(int kind, const char *file, int lo, const char *hostname, const char *domainname, int32_t *stage,
                         struct isolib_identity *identity);
int isolib_socket(int family, int type, int protocol);
int isolib_socket_in(int net, const char *file, int family, int type, int protocol, int32_t *stage);
/* The descriptor that has been sent to a unix socket; it is not waited for. */
int isolib_receive(int fd);
int isolib_open_in(int net, const char *file, const char *path, int flags, int32_t *stage);
/* writes to a file that is that one's; 0 */
int isolib_put_in(int net, const char *file, const char *path, const char *text, int32_t *stage);
/* a netlink socket of `net`, prepared; with a path, the same is written before */
int isolib_netlink_in(int net, const char *file, int protocol, const char *path, const char *text, int32_t *stage);
/* connects a netlink socket to the kernel, with room for many requests and answers, and explanations where there are any */
int isolib_netlink_prepare(int fd);
enum isolib_netlink { ISOLIB_NETLINK_PART = 32768 }; /* the longest that the kernel answers at once: netlink(7) */
/* Returns how many bytes were answered, from a prepared socket; there may be more, and `error` says what kept from reading on.
 */
int isolib_netlink_talk(int fd, const char *sent, uint32_t size, char *heard, uint32_t room, int32_t *error);
/* One turn of a conversation: a send, and what is done before it. */
struct isolib_turn {
    int32_t fd;  /* the socket that it goes to; -1: one of `net`, which is made */
    int32_t net; /* the namespace that is gone to before, when there is something to be done: -1: the thread's own */
    int32_t protocol;
    uint32_t size, last;     /* of what is sent; the number of the request in it that is acknowledged */
    uint32_t start, end;     /* where in what was heard its answers stand */
    const char *path, *text; /* a file that is that namespace's, and what is written to it; or NULL */
    const char *sent;
};
struct isolib_conversation {
    uint32_t count, done; /* of turns; one is done when its last request was acknowledged, and none was refused */
    int32_t stage, error; /* of the one that was not: how far it came, and what kept it, or 0: the kernel's answer says that */
    uint32_t room;
    char *heard;
    struct isolib_turn turns[];
};
/* Takes the turns that are not done yet, up to the first that fails, in one call; of those, one makes a socket at the most,
 * which is returned whatever comes after: or -1. */
int isolib_converse(struct isolib_conversation *conversation, const char *file);
/* a thread's stay in a namespace; a descriptor of where it came from is here before it goes */
struct isolib_stay {
    int32_t kind;
    int32_t before; /* -1: it is not away */
};
/* Nothing has changed when it fails.  -1: `file`, the thread's own in /proc, cannot be opened; -2: no way back; -3: no way in.
 */
int isolib_stay_begin(struct isolib_stay *stay, int fd, const char *file);
int isolib_stay_end(struct isolib_stay *stay);
void isolib_stay_forget(struct isolib_stay *stay);
uint64_t isolib_thread_number(void);
int isolib_setns(int fd, int kinds);
int isolib_unshare(int flags);
int isolib_ns_ioctl_fd(int fd, unsigned int request);
int isolib_ns_kind(int fd);
int isolib_is_in_first_userns(void);
int isolib_pidfd_namespace(int pidfd, int kind);
int isolib_link_up(const char *name);
int64_t isolib_fs_magic(int fd);
int isolib_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int isolib_renameat2(int old_dir, const char *old, int new_dir, const char *new, unsigned int flags);
int isolib_open_tree(int dir, const char *path, unsigned int flags);
int isolib_move_mount(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags);
int isolib_fsopen(const char *type, unsigned int flags);
int isolib_fsconfig(int fd, unsigned int command, const char *key, const char *value, int aux);
int isolib_fsmount(int fd, unsigned int flags, unsigned int attributes);
int isolib_mount_setattr(int dir, const char *path, unsigned int flags, uint64_t set, uint64_t clear, uint64_t propagation,
                         int userns);
int isolib_mount(const char *source, const char *target, const char *type, uint64_t flags, const char *data);
int isolib_umount2(const char *target, int flags);
/* stack.c: file systems and layers.  A layer is a descriptor, and what tells its directory from all others. */
struct isolib_layer {
    int32_t fd; /* -1: none */
    int32_t padding;
    uint64_t device, inode;
};
struct isolib_layers {
    uint32_t count;
    uint32_t at; /* which one was refused */
    struct isolib_layer layers[];
};
/* opens directories, whose paths stand one after the other; flags: beside O_PATH */
int isolib_layers_open(struct isolib_layers *layers, int base, const char *paths, int flags);
/* makes of the first ones detached mounts with their ids mapped; -1: it cannot be cloned; -2: not mapped */
int isolib_layers_map(struct isolib_layers *layers, uint32_t first, int userns);
void isolib_layers_close(struct isolib_layers *layers);
enum isolib_stack_way {
    ISOLIB_STACK_BY_FD = 1, /* layers are descriptors: Linux 6.13 */
    ISOLIB_STACK_BY_PATH,   /* each is a path, of which the number of its descriptor is the end: Linux 6.7 */
    ISOLIB_STACK_TOGETHER   /* all lower ones are one value, which has room for few */
};
enum isolib_stack_stage {
    ISOLIB_STACK_OPEN = 1,
    ISOLIB_STACK_OPTION,
    ISOLIB_STACK_LOWER,
    ISOLIB_STACK_UPPER,
    ISOLIB_STACK_WORK,
    ISOLIB_STACK_CREATE,
    ISOLIB_STACK_MOUNT
};
struct isolib_stack {
    const char *type;    /* of file system */
    const char *options; /* names and values, one after the other; an empty value: a flag; an empty name: the end */
    int32_t way;
    const char *prefix;                 /* of a layer's path */
    const struct isolib_layers *lowers; /* the topmost first; NULL: none */
    int32_t upper, work;                /* -1: none */
    uint64_t attributes;                /* of the mount */
    int32_t stage;                      /* out: how far it came */
    uint32_t at;                        /* out: which option or layer */
    char said[256];                     /* out: what the kernel said of a refusal, or nothing */
};
/* a detached mount of a new file system */
int isolib_stack_new(struct isolib_stack *stack);
/* an overlay whose upper directory lies in memory */
struct isolib_union {
    uint32_t count;
    int32_t padding;
    const char *lowers; /* paths, one after the other, the topmost first */
    const char *options, *space_options;
    const char *options_of_user; /* in the place of the others where the calling thread is not in the first user namespace */
    uint64_t attributes, space_attributes;
    int32_t fds[3]; /* out: the mount, the upper directory, the mount that this lies in; -1: none */
};
/* Makes it in one call.  -1: something was refused, or is out of the ordinary: a directory that comes twice, attributes of the
 * topmost one.  Nothing is left then, and isolib_layers_open and isolib_stack_new tell what it is, step by step. */
int isolib_union_new(struct isolib_union *made);
void isolib_union_close(struct isolib_union *made);
/* closes one that is there, and makes it -1 */
void isolib_close_fd(int32_t *fd);
/* changes a whole file system: "ro" or "rw"; -1: fspick, -2: fsconfig, -3: the change itself was refused */
int isolib_reconfigure(int mount, const char *flag);
int isolib_syncfs(int fd);
/* Gives the calling thread, which has to end soon, a mount namespace and directories of its own; relative paths are numbers of
 * descriptors from then on.  -1: unshare, -2: mount, -3: chdir was refused. */
int isolib_enclose_thread(void);
int isolib_pidfd_send_signal(int pidfd, int signal);
int isolib_pty_size(int fd, int rows, int columns);
int isolib_clone3_size(void);
int isolib_watch_removals(const char *directory);
int isolib_landlock_abi(void);
int isolib_security_modules(uint64_t *ids, uint32_t count);
/* what the kernel tells of a BPF program */
struct isolib_bpf_program {
    uint32_t id;
    uint32_t type;
    uint8_t tag[8]; /* a digest of its instructions */
    char name[16];
};
int isolib_bpf_device_program(const uint64_t *instructions, uint32_t count);
int isolib_bpf_attach(int group, int program, uint32_t flags);
int isolib_bpf_detach(int group, int program);
/* count: how many ids there is room for, then how many there are; fewer than there are is ENOSPC */
int isolib_bpf_attached(int group, uint32_t flags, uint32_t *ids, uint32_t *count);
int isolib_bpf_program_by_id(uint32_t id);
int isolib_bpf_program_info(int fd, struct isolib_bpf_program *program);

/* ---- files.c: names below a directory's descriptor; no symbolic link is followed ------------------------------------------
 */

/* As listxattr(2) and its like, for whatever is of this name, a symbolic link too. */
int64_t isolib_xattr_list(int dir, const char *name, char *names, uint64_t room);
int64_t isolib_xattr_get(int dir, const char *name, const char *attribute, void *value, uint64_t room);
int isolib_xattr_set(int dir, const char *name, const char *attribute, const void *value, uint64_t size);
int isolib_chmod_at(int dir, const char *name, uint32_t mode);
int isolib_open_to_read(int dir, const char *name);

enum { ISOLIB_XATTRS_ROOM = 65536 }; /* XATTR_LIST_MAX */
/* what a name stands for */
struct isolib_found {
    uint64_t device, inode, size;
    int64_t modified_s;
    uint32_t modified_ns;
    uint32_t mode, uid, gid, links;
    uint32_t major, minor;
    uint32_t xattrs;  /* how many of the data's bytes are the names of its attributes, a NUL after each */
    uint32_t content; /* how many after those are a link's text, or all of a small file */
    int32_t is_whole; /* that is there */
    int32_t error;    /* what kept from looking at it */
};
/* Looks at names, one NUL after each, in their order; returns how many: up to the first directory, or while there is room. */
uint32_t isolib_look(int dir, const char *names, uint32_t count, struct isolib_found *found, char *data, uint64_t room,
                     uint32_t small);

struct isolib_dress {
    uint32_t mode, uid, gid;
    int32_t is_owned; /* uid and gid are to be set */
    int64_t modified_s;
    uint32_t modified_ns;
};
enum isolib_make { ISOLIB_MAKE_OPEN = 1, ISOLIB_MAKE_WRITE, ISOLIB_MAKE_OWNER, ISOLIB_MAKE_MODE, ISOLIB_MAKE_TIME };
/* 0: a file that was not there is, complete; otherwise it is not, and this is what failed */
int isolib_make_file(int dir, const char *name, const char *data, uint64_t size, const struct isolib_dress *dress);
/* whether two files are made of the same blocks; 0: that cannot be told */
int isolib_same_extents(int one, int other);

/* ---- pack.c: small files of one directory, as they are in a tar; no symbolic link is followed ---------------------------- */

struct isolib_pack {
    int32_t dir;      /* the directory */
    int32_t below;    /* what lies below it: a file that is as there is not packed; -1: nothing does */
    const char *path; /* of the directory, in the tar: empty, or without a slash at the end */
    int64_t latest_s; /* later times become this one */
    uint32_t latest_ns;
    uint32_t is_recorded;
    char *tar; /* the archive goes here */
    uint64_t tar_room, tar_used;
    char *records; /* and here what recipe.py writes of it */
    uint64_t records_room, records_used;
    uint32_t contents; /* how many of the records tell of a file's content */
    uint32_t is_full;  /* there was no room for the next one */
};
enum { ISOLIB_PACK_SMALL = 65536, ISOLIB_PACK_ROOM = 70000 }; /* the largest content; what one file takes at most, of either */
/* Packs files by their names, one NUL after each, in their order; returns how many: up to one that is not small and plain (one
 * name, no attributes, a path and numbers that fit), or for which there is no room. */
uint32_t isolib_pack(struct isolib_pack *pack, const char *names, uint32_t count);

/* ---- relay.c: bad weather in user space --------------------------------------------------------------------------------- */

/* Probabilities are in parts of 2^32. */
struct isolib_weather {
    int64_t delay_ns;
    int64_t jitter_ns; /* the delay is anywhere from so much less to so much more */
    uint64_t rate;     /* bits in a second; 0: as many as there are */
    uint64_t loss;
    uint64_t duplicate;
    uint64_t corrupt;
    uint64_t reorder; /* goes at once, before those that wait */
    uint32_t limit;   /* packets that may wait */
};
/* Two packet sockets, of which the relay keeps copies, and the interfaces: `in` has no protocol yet. */
struct isolib_ends {
    int32_t in;
    int32_t in_index;
    int32_t out;
    int32_t out_index;
    uint32_t mtu;
    uint16_t protocol; /* what the packets that are put back are marked with, in the network's order */
};
struct isolib_relay {
    struct isolib_relay_state *state; /* NULL: it does not run */
    int32_t in;
    int32_t out;
    int32_t wake;
};
int isolib_relay_start(struct isolib_relay *relay, const struct isolib_ends *ends, const struct isolib_weather *weather);
void isolib_relay_change(struct isolib_relay *relay, const struct isolib_weather *weather);
/* sends what waits, ends the thread and closes everything; in a fork of the host, closes only */
void isolib_relay_end(struct isolib_relay *relay);
/* the same, but does not wait: the thread closes everything when it has sent all */
void isolib_relay_leave(struct isolib_relay *relay);
