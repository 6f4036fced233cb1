/*
 * The plan comes from the host process over a memory file.  It is checked as if an enemy had written it: every size, offset,
 * slot and the order of the phases, before the first step runs.  Pure: it only reads the bytes it is given.
 */
#include "launcher.h"

/* Which slots and texts a kind uses; what it does not use must be empty, so that a plan has one meaning only. */
enum uses {
    FD = 1,
    FD_OPTIONAL = 2,
    FD2 = 4,
    FD2_OPTIONAL = 8,
    OUT = 16,
    TEXT = 32,
    TEXT2 = 64,
    BLOB = 128,
    BLOB2 = 256,
    SIZES = 512
};

static const uint16_t uses[STEP_KINDS] = {
    [STEP_CLONE] = FD_OPTIONAL,
    [STEP_MAP] = TEXT | BLOB2,
    [STEP_MAP_HELPER] = TEXT | BLOB2,
    [STEP_SUPERVISE] = FD_OPTIONAL | FD2_OPTIONAL,
    [STEP_REAP] = FD,
    [STEP_EXEC] = BLOB | BLOB2,
    [STEP_SETNS] = FD,
    [STEP_OPEN] = FD_OPTIONAL | TEXT | OUT,
    [STEP_TARGET] = FD | TEXT | OUT,
    [STEP_CLOSE] = FD,
    [STEP_OPEN_TREE] = FD_OPTIONAL | TEXT | OUT,
    [STEP_MOVE_MOUNT] = FD_OPTIONAL | FD2_OPTIONAL | TEXT | TEXT2,
    [STEP_MOUNT_SETATTR] = FD_OPTIONAL | FD2_OPTIONAL | TEXT | SIZES,
    [STEP_FSOPEN] = TEXT | OUT,
    [STEP_FSCONFIG] = FD | FD2_OPTIONAL | TEXT | TEXT2,
    [STEP_FSMOUNT] = FD | OUT,
    [STEP_CHECK_DEVICE] = FD,
    [STEP_MKDIR] = FD_OPTIONAL | TEXT,
    [STEP_MKNOD] = FD_OPTIONAL | TEXT,
    [STEP_SYMLINK] = FD_OPTIONAL | TEXT | TEXT2,
    [STEP_WRITE] = FD_OPTIONAL | TEXT | BLOB2,
    [STEP_PUT] = FD | BLOB2,
    [STEP_PIVOT_ROOT] = TEXT | TEXT2,
    [STEP_UMOUNT] = TEXT,
    [STEP_FCHDIR] = FD,
    [STEP_CHDIR] = TEXT,
    [STEP_SETHOSTNAME] = TEXT,
    [STEP_SETDOMAINNAME] = TEXT,
    [STEP_LINK_UP] = TEXT,
    [STEP_SOCKET] = OUT,
    [STEP_SEND] = FD | FD2,
    [STEP_PTY_OPEN] = FD_OPTIONAL | TEXT | OUT | FD2,
    [STEP_STDIO] = FD,
    [STEP_FCHOWN] = FD,
    [STEP_RLIMIT] = SIZES,
    [STEP_AFFINITY] = BLOB2,
    [STEP_SETGROUPS] = BLOB2,
    [STEP_LANDLOCK] = FD,
    [STEP_SECCOMP] = BLOB2,
};

struct area {
    const char *bytes;
    uint32_t size;
    uint32_t slots;
};

enum { MAX_DEADLINE_MS = 0x7fffffff }; /* 24 days; as nanoseconds far below what overflows */

static int slot_fits(const struct area *area, int32_t index, int needed, int allowed) {
    if (index == ISOLIB_NO_SLOT)
        return !needed;
    return (needed || allowed) && index >= 0 && (uint32_t)index < area->slots;
}

static int text_fits(const struct area *area, uint32_t offset, int used) {
    return used ? offset < area->size : offset == 0;
}

/* A blob is followed by at least the NUL that ends the area, so its last string is terminated too. */
static int blob_fits(const struct area *area, uint32_t offset, uint32_t size) {
    return offset < area->size && size < area->size - offset;
}

static int strings_in(const struct area *area, uint32_t offset, uint32_t size, uint64_t wanted) {
    uint64_t found = 0;
    for (uint32_t i = 0; i < size; i++)
        found += area->bytes[offset + i] == 0;
    return found == wanted && (size == 0 || area->bytes[offset + size - 1] == 0);
}

static int exec_fits(const struct area *area, const struct isolib_step *step) {
    return step->flags > 0 && step->flags < area->size && step->value < area->size && step->size > 0 &&
           area->bytes[step->text + step->size - 1] == 0 &&
           strings_in(area, step->text2, step->size2, step->flags + step->value);
}

static int step_fits(const struct area *area, const struct isolib_step *step) {
    unsigned use;
    if (step->kind == 0 || step->kind >= STEP_KINDS)
        return 0;
    use = uses[step->kind];
    if (!slot_fits(area, step->fd, use & FD, use & FD_OPTIONAL) || !slot_fits(area, step->fd2, use & FD2, use & FD2_OPTIONAL) ||
        !slot_fits(area, step->out, use & OUT, 0))
        return 0;
    if (!text_fits(area, step->text, use & (TEXT | BLOB)) || !text_fits(area, step->text2, use & (TEXT2 | BLOB2)))
        return 0;
    if ((use & BLOB) && !blob_fits(area, step->text, step->size))
        return 0;
    if ((use & BLOB2) && !blob_fits(area, step->text2, step->size2))
        return 0;
    if (!(use & (BLOB | SIZES)) && step->size)
        return 0;
    if (!(use & (BLOB2 | SIZES)) && step->size2)
        return 0;
    if (step->kind == STEP_SUPERVISE || step->kind == STEP_HOLD)
        return step->value <= MAX_DEADLINE_MS;
    if (step->kind == STEP_REAP)
        return step->flags == 0 && step->value == 0;
    if (step->kind == STEP_EXEC)
        return exec_fits(area, step);
    if (step->kind == STEP_MAP_HELPER)
        return step->size2 > 0 && area->bytes[step->text2 + step->size2 - 1] == 0;
    if (step->kind == STEP_SECCOMP)
        return step->size2 % 8 == 0 && step->size2 / 8 <= 4096;
    if (step->kind == STEP_SETGROUPS)
        return step->size2 % 4 == 0;
    return 1;
}

/* stage 1, CLONE, maps, GO, stage 2, then HOLD, or REAP, or SUPERVISE, the command's steps, EXEC */
static int order_fits(const struct isolib_step *steps, uint32_t count) {
    enum { FIRST, MAPPING, INSIDE, COMMAND, ENDED } phase = FIRST;
    for (uint32_t i = 0; i < count; i++) {
        switch (steps[i].kind) {
        case STEP_CLONE:
            if (phase != FIRST)
                return 0;
            phase = MAPPING;
            break;
        case STEP_MAP:
        case STEP_MAP_HELPER:
            if (phase != MAPPING)
                return 0;
            break;
        case STEP_GO:
            if (phase != MAPPING)
                return 0;
            phase = INSIDE;
            break;
        case STEP_SUPERVISE:
            if (phase != INSIDE)
                return 0;
            phase = COMMAND;
            break;
        case STEP_HOLD:
        case STEP_REAP:
            if (phase != INSIDE)
                return 0;
            phase = ENDED;
            break;
        case STEP_EXEC:
            if (phase != COMMAND)
                return 0;
            phase = ENDED;
            break;
        default:
            if (phase == MAPPING || phase == ENDED)
                return 0;
        }
    }
    return phase == ENDED;
}

long plan_check(const uint8_t *bytes, size_t size) {
    const struct isolib_plan *plan = (const struct isolib_plan *)(const void *)bytes;
    const struct isolib_step *steps = (const struct isolib_step *)(const void *)(bytes + sizeof(*plan));
    struct area area;
    size_t steps_size;
    if (size < sizeof(*plan) || size > ISOLIB_MAX_PLAN)
        return -EINVAL;
    if (plan->magic != ISOLIB_PLAN_MAGIC || plan->version != ISOLIB_PLAN_VERSION)
        return -EPROTO;
    if (plan->step_count == 0 || plan->step_count > ISOLIB_MAX_STEPS || plan->slot_count > ISOLIB_MAX_SLOTS ||
        plan->text_size == 0)
        return -EINVAL;
    steps_size = (size_t)plan->step_count * sizeof(*steps);
    if (size != sizeof(*plan) + steps_size + plan->text_size)
        return -EINVAL;
    area.bytes = (const char *)bytes + sizeof(*plan) + steps_size;
    area.size = plan->text_size;
    area.slots = plan->slot_count;
    if (area.bytes[area.size - 1] != 0 || !slot_fits(&area, plan->pty, 0, 1))
        return -EINVAL;
    for (uint32_t i = 0; i < plan->step_count; i++)
        if (!step_fits(&area, &steps[i]))
            return -EINVAL;
    return order_fits(steps, plan->step_count) ? 0 : -EINVAL;
}
