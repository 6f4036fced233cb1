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
    memcpy(found->uuid, info.uuid, sizeof(found->uuid));
    memcpy(found->parent, info.parent_uuid, sizeof(found->parent));
    return 0;
}

/* What is asked of a subvolume's tree, and answered: items, each behind its header. */
struct search {
    struct btrfs_ioctl_search_args_v2 arguments;
    char items[16384];
};

/* The kernel gives all items in a block of the tree that has changed.  Whatever changes an inode, its content or its names,
 * notes that in its first item, which is in such a block then. */
static int is_touched(const struct btrfs_ioctl_search_header *header, const char *item, uint64_t generation) {
    struct btrfs_inode_item inode;
    if (header->type != BTRFS_INODE_ITEM_KEY || header->len < sizeof(inode))
        return 0;
    memcpy(&inode, item, sizeof(inode));
    return le64toh(inode.transid) >= generation;
}

int isolib_btrfs_touched(int subvolume, uint64_t generation, uint64_t *first, uint64_t *inodes, uint32_t room) {
    struct search search;
    struct btrfs_ioctl_search_header header;
    uint32_t found = 0, item;
    while (found < room) {
        const char *at = search.items;
        memset(&search.arguments, 0, sizeof(search.arguments));
        search.arguments.key = (struct btrfs_ioctl_search_key){.min_objectid = *first,
                                                               .max_objectid = BTRFS_LAST_FREE_OBJECTID,
                                                               .max_type = ~0U,
                                                               .max_offset = ~0ULL,
                                                               .min_transid = generation,
                                                               .max_transid = ~0ULL,
                                                               .nr_items = ~0U};
        search.arguments.buf_size = sizeof(search.items);
        if (ioctl(subvolume, BTRFS_IOC_TREE_SEARCH_V2, &search.arguments) < 0)
            return -1;
        if (search.arguments.key.nr_items == 0) {
            *first = 0;
            return (int)found;
        }
        for (item = 0; item < search.arguments.key.nr_items && found < room; item++) {
            memcpy(&header, at, sizeof(header));
            at += sizeof(header);
            if (is_touched(&header, at, generation))
                inodes[found++] = header.objectid;
            at += header.len;
            *first = header.objectid + 1;
        }
    }
    return (int)found;
}

/* An item of the second kind is for names for which there is no room in one of the first; it holds its directory. */
static uint64_t directory_of(const struct btrfs_ioctl_search_header *header, const char *item) {
    struct btrfs_inode_extref reference;
    if (header->type == BTRFS_INODE_REF_KEY)
        return header->offset;
    memcpy(&reference, item, sizeof(reference));
    return le64toh(reference.parent_objectid);
}

int isolib_btrfs_parents(int subvolume, uint64_t inode, uint64_t *directories, uint32_t room) {
    struct search search;
    struct btrfs_ioctl_search_header header;
    uint32_t found = 0, item, type = BTRFS_INODE_REF_KEY;
    uint64_t offset = 0;
    for (;;) {
        const char *at = search.items;
        memset(&search.arguments, 0, sizeof(search.arguments));
        search.arguments.key = (struct btrfs_ioctl_search_key){.min_objectid = inode,
                                                               .max_objectid = inode,
                                                               .min_type = type,
                                                               .max_type = BTRFS_INODE_EXTREF_KEY,
                                                               .min_offset = offset,
                                                               .max_offset = ~0ULL,
                                                               .max_transid = ~0ULL,
                                                               .nr_items = ~0U};
        search.arguments.buf_size = sizeof(search.items);
        if (ioctl(subvolume, BTRFS_IOC_TREE_SEARCH_V2, &search.arguments) < 0)
            return -1;
        if (search.arguments.key.nr_items == 0)
            return (int)found;
        for (item = 0; item < search.arguments.key.nr_items; item++) {
            memcpy(&header, at, sizeof(header));
            at += sizeof(header);
            if (found == room) {
                errno = EOVERFLOW;
                return -1;
            }
            directories[found++] = directory_of(&header, at);
            at += header.len;
        }
        type = header.type;
        offset = header.offset + 1;
        if (offset == 0)
            type++;
    }
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

int isolib_btrfs_where(int subvolume, uint64_t inode, char *path, uint32_t room) {
    struct btrfs_ioctl_ino_lookup_args arguments = {.objectid = inode};
    size_t size;
    if (ioctl(subvolume, BTRFS_IOC_INO_LOOKUP, &arguments) < 0)
        return -1;
    size = strnlen(arguments.name, sizeof(arguments.name));
    if (size + 1 > room) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(path, arguments.name, size);
    path[size] = '\0';
    return 0;
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
