from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from isolib._kernel.hints import TABLE, hint, read_sysctl

if TYPE_CHECKING:
    from pathlib import Path


def nothing(name: str) -> None:
    """Know no sysctl."""


CASES = [
    ("unshare", errno.ENOSPC, "", "one of user.max_*_namespaces"),
    ("clone", errno.EUSERS, "", "32 levels"),
    ("clone3", errno.EPERM, "", "chroot"),
    ("clone3", errno.EAGAIN, "", "RLIMIT_NPROC"),
    ("clone3", errno.ENOMEM, "", "PID 1 of the pid namespace has ended"),
    ("clone3", errno.ENOSYS, "", "seccomp filter"),
    ("unshare", errno.EINVAL, "", "threads"),
    ("clone3", errno.EBUSY, "", "controllers enabled for its children"),
    ("clone3", errno.EACCES, "", "cgroup.procs"),
    ("clone3", errno.EOPNOTSUPP, "", "cgroup.type"),
    ("setns", errno.EPERM, "", "CAP_SYS_ADMIN"),
    ("setns", errno.EINVAL, "", "no namespace of this kind"),
    ("setns", errno.EUSERS, "", "one thread"),
    ("sethostname", errno.EPERM, "", "UTS namespace"),
    ("ioctl NS_GET_USERNS", errno.EPERM, "", "outside of the user namespace"),
    ("ioctl NS_GET_PARENT", errno.ENOTTY, "", "no namespace"),
    ("setresuid", errno.EINVAL, "uid 7", "not mapped"),
    ("setgroups", errno.EPERM, "", "denied for good"),
    ("setresgid", errno.EPERM, "", "CAP_SETGID"),
    ("setresuid", errno.EPERM, "", "CAP_SETUID"),
    ("setresuid", errno.EAGAIN, "", "RLIMIT_NPROC"),
    ("fchown", errno.EINVAL, "", "not mapped"),
    ("fchown", errno.EPERM, "", "CAP_CHOWN"),
    ("write", errno.EPERM, "uid_map 0 5 1", "/etc/subuid"),
    ("write", errno.EINVAL, "gid_map 0 5 1", "overlap"),
    ("newuidmap", errno.ENOENT, "", "apt install uidmap"),
    ("newgidmap", errno.EPERM, "", "/etc/subgid"),
    ("openat2", errno.EOVERFLOW, "/srv", "must be mapped"),
    ("mkdirat", errno.EOVERFLOW, "/srv", "must be mapped"),
    ("fsconfig", errno.EINVAL, "lowerdir+", "500"),
    ("mount", errno.EINVAL, "tmpfs", "dmesg"),
    ("fsmount", errno.EPERM, "proc", "nothing is mounted over"),
    ("mount_setattr", errno.EPERM, "", "locked"),
    ("mount_setattr", errno.EINVAL, "", "id-mapped"),
    ("fsopen", errno.ENODEV, "btrfs", "modprobe"),
    ("fsconfig", errno.EBUSY, "", "upper or work directory"),
    ("move_mount", errno.EINVAL, "", "another mount namespace"),
    ("move_mount", errno.ELOOP, "", "below itself"),
    ("open_tree", errno.EINVAL, "", "no mount of this mount namespace"),
    ("move_mount", errno.ENOSPC, "", "fs.mount-max"),
    ("fsconfig", errno.ENOSPC, "overlay", "upper and work"),
    ("pivot_root", errno.EINVAL, "", "no mount point"),
    ("pivot_root", errno.EBUSY, "", "bind it onto itself"),
    ("umount2", errno.EBUSY, "", "MNT_DETACH"),
    ("umount2", errno.EINVAL, "", "locked"),
    ("rmdir", errno.EBUSY, "", "processes or groups"),
    ("mkdirat", errno.EROFS, "", "cannot be created"),
    ("write", errno.ENOSPC, "/tmp/x", "size="),
    ("openat", errno.ENOSPC, "/dev/ptmx", "kernel.pty.max"),
    ("openat2", errno.ELOOP, "/proc/self/root", "magic link"),
    ("openat2", errno.EXDEV, "../x", "leaves the root"),
    ("openat2", errno.EAGAIN, "", "renamed"),
    ("openat2", errno.EACCES, "", "searched"),
    ("memfd_create", errno.EACCES, "", "vm.memfd_noexec"),
    ("symlinkat", errno.EACCES, "", "written"),
    ("openat2", errno.ENOENT, "/srv", "beforehand"),
    ("open_tree", errno.ENOENT, "/srv", "of this host"),
    ("chdir", errno.ENOENT, "/srv", "cwd="),
    ("chdir", errno.EXDEV, "/proc/self/fd/7", "outside of the root"),
    ("statx", errno.ENODEV, "/dev/null", "put in its place"),
    ("prctl", errno.EPERM, "capability bounding set", "CAP_SETPCAP"),
    ("ioctl", errno.EPERM, "lo", "CAP_NET_ADMIN"),
    ("ioctl", errno.EPERM, "terminal", "controlling"),
    ("launch", errno.ECHILD, "", "killed"),
    ("launch", errno.EINVAL, "", "two versions"),
    ("launch", errno.EPROTO, "", "two versions"),
    ("writev", errno.EFBIG, "the plan", "RLIMIT_FSIZE"),
    ("sendmsg", errno.ETOOMANYREFS, "", "RLIMIT_NOFILE"),
    ("execve", errno.EACCES, "", "noexec"),
    ("execve", errno.ENOENT, "", "interpreter"),
    ("execveat", errno.ENOEXEC, "", "architecture"),
    ("execve", errno.E2BIG, "", "128 KiB"),
    ("execve", errno.ETXTBSY, "", "open for writing"),
    ("execve", errno.ELIBBAD, "", "interpreter"),
    ("prlimit64", errno.EPERM, "", "CAP_SYS_RESOURCE"),
    ("prlimit64", errno.EINVAL, "", "soft limit"),
    ("capset", errno.EPERM, "", "dropped but not gained"),
    ("seccomp", errno.EACCES, "", "no_new_privs"),
    ("seccomp", errno.EINVAL, "", "4096"),
    ("landlock_restrict_self", errno.EPERM, "", "no_new_privs"),
    ("landlock_create_ruleset", errno.EOPNOTSUPP, "", "lsm="),
    ("pidfd_send_signal", errno.EPERM, "", "another user"),
    ("keyctl", errno.EDQUOT, "", "kernel.keys.maxkeys"),
    ("inotify_add_watch", errno.EMFILE, "", "max_user_instances"),
    ("inotify_add_watch", errno.ENOSPC, "", "max_user_watches"),
    ("pipe2", errno.EMFILE, "", "RLIMIT_NOFILE"),
    ("openat", errno.ENFILE, "", "fs.file-max"),
    ("fsopen", errno.ENOSYS, "", "too old"),
    ("dup3", errno.EPERM, "", "seccomp filter"),
    ("getcwd", errno.EACCES, "", "security module"),
    ("mmap", errno.ENOMEM, "", "memory.max"),
    ("pidfd_open", errno.ESRCH, "", "has ended"),
    ("fsconfig", errno.ELOOP, "/x (overlay)", "upper"),
]


@pytest.mark.parametrize(("op", "number", "context", "words"), CASES)
def test_hint(op: str, number: int, context: str, words: str) -> None:
    """Each hint is one line, says what helps, and needs no sysctl to be readable."""
    text = hint(op, number, context, sysctl=nothing)
    assert text is not None
    assert words in text
    assert "\n" not in text
    assert not text.endswith(".")
    assert "None" not in text


def test_every_hint_has_a_case() -> None:
    """No hint of the table is left out above."""
    reached = {id(TABLE.get((op, number)) or TABLE["", number]) for op, number, *_ in CASES}
    assert reached == set(map(id, TABLE.values()))


@pytest.mark.parametrize(
    ("op", "number", "context"),
    [
        ("read", errno.EIO, None),
        ("mount", errno.ENOENT, "/nowhere"),
        ("write", errno.EPERM, "/etc/motd"),
        ("write", errno.EINVAL, None),
        ("unheard of", 4095, None),
    ],
)
def test_nothing_to_say(op: str, number: int, context: str | None) -> None:
    """Where the kernel's own words say it all there is no hint."""
    assert hint(op, number, context, sysctl=nothing) is None


def test_namespace_limits() -> None:
    """The knob that is 0 is named; without one, that of the kind which was asked for; without that, all of them."""
    knobs = {"user.max_net_namespaces": "0", "user.max_pid_namespaces": "7"}
    assert hint("clone3", errno.ENOSPC, "new process", sysctl=knobs.get) == (
        "user.max_net_namespaces = 0: sysctl -w user.max_net_namespaces=10000"
    )
    assert "user.max_pid_namespaces = 7; or" in str(hint("clone3", errno.ENOSPC, "new pid namespace", sysctl=knobs.get))
    del knobs["user.max_net_namespaces"]
    assert "one of user.max_*_namespaces" in str(hint("clone3", errno.ENOSPC, "new process", sysctl=knobs.get))


@pytest.mark.parametrize(
    ("knob", "value", "remedy"),
    [
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "profile with 'userns,'"),
        ("kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user.max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    ],
)
def test_refused_user_namespace(knob: str, value: str, remedy: str) -> None:
    """The knob that refuses user namespaces is named, with the way to turn it."""
    text = hint("clone3", errno.EPERM, "new process", sysctl={knob: value}.get)
    assert str(text).startswith(f"{knob} = {value}: ")
    assert remedy in str(text)
    allowing = "0" if value == "1" else "1"
    assert "chroot" in str(hint("clone3", errno.EPERM, sysctl={knob: allowing}.get))


def test_read_sysctl() -> None:
    """A sysctl is read by its dotted name; one that is not there is None."""
    assert read_sysctl("kernel.ostype") == "Linux"
    assert read_sysctl("kernel.no_such_knob") is None
    assert re.search(r"kernel.pid_max = \d+, kernel.threads-max = \d+", str(hint("clone", errno.EAGAIN)))


# ---- the kernel means what the hints say ----


def exec_error(path: Path) -> int:
    """Return the errno of executing a file."""
    with pytest.raises(OSError, match=str(path)) as caught:
        os.posix_spawn(path, ["x"], {})
    return caught.value.errno or 0


def make(path: Path, content: bytes, mode: int = 0o755) -> Path:
    """Make a file."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_errors_of_execve(tmp_path: Path) -> None:
    """execve(2) fails with these numbers for these reasons."""
    assert exec_error(make(tmp_path / "no-loader", b"#!/nowhere/interpreter\n")) == errno.ENOENT
    assert exec_error(make(tmp_path / "not-executable", b"#!/bin/true\n", 0o644)) == errno.EACCES
    assert exec_error(tmp_path) == errno.EACCES
    assert exec_error(make(tmp_path / "no-program", b"hello\n")) == errno.ENOEXEC
    with open(make(tmp_path / "busy", b"#!/bin/true\n"), "ab"):
        assert exec_error(tmp_path / "busy") == errno.ETXTBSY


def errno_of(code: str) -> str:
    """Run code in a process of its own, where `call` makes a system call of libc, and return the name of the errno."""
    prelude = """
        import ctypes, errno, os, threading
        NEWUSER, NEWNET, NEWNS = 0x10000000, 0x40000000, 0x20000
        libc = ctypes.CDLL(None, use_errno=True)
        def call(name, *args):
            ctypes.set_errno(0)
            getattr(libc, name)(*args)
            return errno.errorcode.get(ctypes.get_errno(), "0")
        def write(path, text):
            try:
                with open(path, "w") as file:
                    file.write(text)
                return "0"
            except OSError as error:
                return errno.errorcode[error.errno]
        def new_userns():
            assert call("unshare", NEWUSER) == "0"
    """
    script = textwrap.dedent(prelude) + textwrap.dedent(code)
    result = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert result.stderr == ""
    return result.stdout.strip()


@pytest.mark.usefixtures("user_namespaces")
class TestKernel:
    def test_limit_of_namespaces(self) -> None:
        """A sysctl user.max_*_namespaces that is used up is ENOSPC."""
        found = errno_of("""
            uid = os.geteuid()
            new_userns()
            write("/proc/self/uid_map", f"0 {uid} 1")
            write("/proc/sys/user/max_net_namespaces", "0")
            print(call("unshare", NEWNET))
        """)
        assert found == "ENOSPC"

    def test_nesting(self) -> None:
        """More than 32 levels of user namespaces are ENOSPC, too."""
        found = errno_of("""
            inner = (os.geteuid(), os.getegid())
            for level in range(40):
                result = call("unshare", NEWUSER)
                if result != "0":
                    break
                write("/proc/self/setgroups", "deny")
                write("/proc/self/uid_map", f"0 {inner[0]} 1")
                write("/proc/self/gid_map", f"0 {inner[1]} 1")
                inner = (0, 0)
            print(result, level >= 30)
        """)
        assert found in {"ENOSPC True", "EUSERS True"}

    def test_no_id(self) -> None:
        """A user namespace is refused with EPERM to who has no id in the one that he is in."""
        assert errno_of("new_userns(); print(call('unshare', NEWUSER))") == "EPERM"

    def test_chroot(self) -> None:
        """A user namespace is refused to a process in a chroot with EPERM."""
        found = errno_of("""
            new_userns()
            os.chroot("/proc")
            print(call("unshare", NEWUSER))
        """)
        assert found == "EPERM"

    def test_threads(self) -> None:
        """A user namespace for one of several threads is EINVAL."""
        found = errno_of("""
            event = threading.Event()
            threading.Thread(target=event.wait).start()
            print(call("unshare", NEWUSER))
            event.set()
        """)
        assert found == "EINVAL"

    def test_unmapped_ids(self) -> None:
        """An id that is not mapped is EINVAL for setresuid and chown, and EOVERFLOW for who creates a file without an id."""
        found = errno_of("""
            uid, gid = os.geteuid(), os.getegid()
            new_userns()
            write("/proc/self/setgroups", "deny")
            print(write("/proc/self/uid_map", f"0 {uid} 1"), write("/proc/self/gid_map", f"0 {gid} 1"))
            print(call("setresuid", 7, 7, 7), call("setresgid", 7, 7, 7), call("setgroups", 0, None))
            path = f"/tmp/{os.getpid()}".encode()
            fd = os.open(path, os.O_CREAT | os.O_EXCL)
            os.unlink(path)
            print(call("fchown", fd, 7, 7))
        """)
        assert found.split() == ["0", "0", "EINVAL", "EINVAL", "EPERM", "EINVAL"]

    def test_file_of_nobody(self) -> None:
        """Who has no id in his user namespace creates no files: EOVERFLOW."""
        found = errno_of("""
            print(call("unshare", NEWUSER | NEWNS), call("mount", b"none", b"/tmp", b"tmpfs", 0, None), write("/tmp/x", "x"))
        """)
        assert found.split() == ["0", "0", "EOVERFLOW"]

    def test_refused_maps(self) -> None:
        """A map that the writer may not write is EPERM, one that makes no sense EINVAL."""
        found = errno_of("""
            uid = os.geteuid()
            new_userns()
            print(write("/proc/self/uid_map", f"0 {uid + 1} 1"))
            print(write("/proc/self/uid_map", f"0 {uid} 1\\n0 {uid} 1"))
        """)
        assert found.split() == ["EPERM", "EINVAL"]
