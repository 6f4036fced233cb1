/* Quotas of projects: directories whose files, whoever they belong to, are counted together.  -1 and errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/dqblk_xfs.h>
#include <linux/fs.h>
#include <linux/quota.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wrappers.h"

/* Since 5.14, the same number in every architecture. */
enum { NR_QUOTACTL_FD = 443, QUOTA_BLOCK = 1024 };

static int quotactl_of(int fd, unsigned int command, uint32_t id, void *told) {
    return (int)syscall(NR_QUOTACTL_FD, fd, QCMD(command, PRJQUOTA), id, told);
}

int isolib_project_is_enforced(int fd) {
    struct fs_quota_stat told = {0};
    if (quotactl_of(fd, Q_XGETQSTAT, 0, &told) < 0)
        return -1;
    return (told.qs_flags & FS_QUOTA_PDQ_ENFD) != 0;
}

int isolib_project_limit(int fd, uint32_t project, uint64_t bytes) {
    struct if_dqblk told;
    memset(&told, 0, sizeof(told));
    told.dqb_bhardlimit = bytes / QUOTA_BLOCK + (bytes % QUOTA_BLOCK != 0);
    told.dqb_valid = QIF_BLIMITS;
    return quotactl_of(fd, Q_SETQUOTA, project, &told);
}

/* 1: something is counted or limited for it */
int isolib_project_is_used(int fd, uint32_t project) {
    struct if_dqblk told;
    memset(&told, 0, sizeof(told));
    if (quotactl_of(fd, Q_GETQUOTA, project, &told) < 0)
        return errno == ENOENT ? 0 : -1;
    return told.dqb_bhardlimit || told.dqb_bsoftlimit || told.dqb_curspace || told.dqb_ihardlimit || told.dqb_isoftlimit ||
           told.dqb_curinodes;
}

int isolib_project_get(int fd, uint32_t *project) {
    struct fsxattr told;
    if (ioctl(fd, FS_IOC_FSGETXATTR, &told) < 0)
        return -1;
    *project = told.fsx_projid;
    return 0;
}

int isolib_project_set(int directory, uint32_t project) {
    struct fsxattr told;
    if (ioctl(directory, FS_IOC_FSGETXATTR, &told) < 0)
        return -1;
    told.fsx_projid = project;
    told.fsx_xflags |= FS_XFLAG_PROJINHERIT;
    return ioctl(directory, FS_IOC_FSSETXATTR, &told);
}
