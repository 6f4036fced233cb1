/* Subvolumes, snapshots and quotas of btrfs: its ioctls, with the structures of the kernel's own headers.  -1 and errno. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "wrappers.h"

static int put_name(char *field, size_t room, const char *name) {
    size_t length = strlen(name);
    if (length >= room) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(field, name, length + 1);
    return 0;
}

int isolib_btrfs_create(int directory, const char *name) {
    struct btrfs_ioctl_vol_args_v2 arguments = {0};
    if (put_name(arguments.name, sizeof(arguments.name), name) < 0)
        return -1;
    return ioctl(directory, BTRFS_IOC_SUBVOL_CREATE_V2, &arguments);
}

int isolib_btrfs_snapshot(int source, int directory, const char *name, int is_readonly) {
    struct btrfs_ioctl_vol_args_v2 arguments = {.fd = source, .flags = is_readonly ? BTRFS_SUBVOL_RDONLY : 0};
    if (put_name(arguments.name, sizeof(arguments.name), name) < 0)
        return -1;
    return ioctl(directory, BTRFS_IOC_SNAP_CREATE_V2, &arguments);
}

int isolib_btrfs_destroy(int directory, const char *name) {
    struct btrfs_ioctl_vol_args_v2 arguments = {0};
    struct btrfs_ioctl_vol_args old = {0};
    int result;
    if (put_name(arguments.name, sizeof(arguments.name), name) < 0 || put_name(old.name, sizeof(old.name), name) < 0)
        return -1;
    result = ioctl(directory, BTRFS_IOC_SNAP_DESTROY_V2, &arguments);
    return result < 0 && errno == ENOTTY ? ioctl(directory, BTRFS_IOC_SNAP_DESTROY, &old) : result;
}

int isolib_btrfs_set_readonly(int subvolume, int is_readonly) {
    __u64 flags, wanted;
    if (ioctl(subvolume, BTRFS_IOC_SUBVOL_GETFLAGS, &flags) < 0)
        return -1;
    wanted = is_readonly ? flags | BTRFS_SUBVOL_RDONLY : flags & ~(__u64)BTRFS_SUBVOL_RDONLY;
    return wanted == flags ? 0 : ioctl(subvolume, BTRFS_IOC_SUBVOL_SETFLAGS, &wanted);
}

int isolib_btrfs_subvolume(int subvolume, struct isolib_btrfs_subvolume *found) {
    struct btrfs_ioctl_get_subvol_info_args info;
    if (ioctl(subvolume, BTRFS_IOC_GET_SUBVOL_INFO, &info) < 0)
        return -1;
    found->id = info.treeid;
    found->generation = info.generation;
    found->origin_generation = info.otransid;
    found->flags = info.flags;
    return 0;
}

/* The kernel answers EOVERFLOW where there are more than it has room for; `after` is where the next call goes on. */
int isolib_btrfs_nested(int subvolume, uint64_t *after, struct isolib_btrfs_nested *nested, uint32_t room) {
    struct btrfs_ioctl_get_subvol_rootref_args arguments = {.min_treeid = *after};
    int each, more = ioctl(subvolume, BTRFS_IOC_GET_SUBVOL_ROOTREF, &arguments);
    if ((more < 0 && errno != EOVERFLOW) || arguments.num_items > room)
        return -1;
    for (each = 0; each < arguments.num_items; each++)
        nested[each] = (struct isolib_btrfs_nested){arguments.rootref[each].treeid, arguments.rootref[each].dirid};
    *after = more < 0 ? arguments.min_treeid : 0;
    return arguments.num_items;
}

int isolib_btrfs_path(int subvolume, const struct isolib_btrfs_nested *nested, char *path, uint32_t room) {
    struct btrfs_ioctl_ino_lookup_user_args arguments = {.dirid = nested->directory, .treeid = nested->id};
    size_t above, name;
    if (ioctl(subvolume, BTRFS_IOC_INO_LOOKUP_USER, &arguments) < 0)
        return -1;
    above = strlen(arguments.path);
    name = strlen(arguments.name);
    if (above + name + 1 > room) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(path, arguments.path, above);
    memcpy(path + above, arguments.name, name + 1);
    return 0;
}

int isolib_btrfs_quota_enable(int fd) {
    struct btrfs_ioctl_quota_ctl_args arguments = {.cmd = BTRFS_QUOTA_CTL_ENABLE};
    return ioctl(fd, BTRFS_IOC_QUOTA_CTL, &arguments);
}

int isolib_btrfs_limit(int subvolume, uint64_t exclusive) {
    struct btrfs_ioctl_qgroup_limit_args arguments = {.lim = {.flags = BTRFS_QGROUP_LIMIT_MAX_EXCL, .max_excl = exclusive}};
    return ioctl(subvolume, BTRFS_IOC_QGROUP_LIMIT, &arguments); /* qgroup 0: the one of the subvolume itself */
}

int isolib_btrfs_drop_qgroup(int fd, uint64_t id) {
    struct btrfs_ioctl_qgroup_create_args arguments = {.create = 0, .qgroupid = id};
    return ioctl(fd, BTRFS_IOC_QGROUP_CREATE, &arguments);
}

int isolib_btrfs_usage(int fd, uint64_t id, uint64_t *exclusive) {
    struct {
        struct btrfs_ioctl_search_args_v2 arguments;
        char items[4096];
    } search = {.arguments = {.key = {.tree_id = BTRFS_QUOTA_TREE_OBJECTID,
                                      .min_type = BTRFS_QGROUP_INFO_KEY,
                                      .max_type = BTRFS_QGROUP_INFO_KEY,
                                      .min_offset = id,
                                      .max_offset = id,
                                      .max_transid = ~0ULL,
                                      .nr_items = 1},
                              .buf_size = 4096}};
    struct btrfs_ioctl_search_header header;
    struct btrfs_qgroup_info_item item;
    if (ioctl(fd, BTRFS_IOC_TREE_SEARCH_V2, &search) < 0)
        return -1;
    if (search.arguments.key.nr_items == 0) {
        errno = ENOENT;
        return -1;
    }
    memcpy(&header, search.items, sizeof(header));
    if (header.len < sizeof(item)) {
        errno = EPROTO;
        return -1;
    }
    memcpy(&item, search.items + sizeof(header), sizeof(item));
    *exclusive = le64toh(item.excl);
    return 0;
}
