"""Every kind of mount, seen from inside; what is refused, and that nothing reaches the host."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import DEVNULL, PIPE, STDOUT, IdMap, SetupFailed, spawn
from isolib._kernel.procfs import parse_mountinfo
from isolib._kernel.request import Request
from isolib.mounts import Bind, Dev, Dir, File, Mask, Overlay, Proc, ReadOnly, Root, Symlink, Tmpfs
from isolib.mounts.table import fs_type_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from isolib._kernel.request import MountValue, RootValue

KINDS = frozenset({"user", "mnt", "pid", "ipc"})
IS_ROOT = os.geteuid() == 0
SMALL = 1 << 20

pytestmark = pytest.mark.usefixtures("user_namespaces")


def inside(
    script: str,
    mounts: Sequence[MountValue] = (),
    *,
    root: RootValue | None = None,
    new: Iterable[str] = KINDS,
    user: tuple[int, int] | None = None,
) -> str:
    """Run a shell script as root of a new user namespace, and return all that it printed."""
    has_ids = "user" in new
    with spawn(
        ["sh", "-c", script],
        new=new,
        root=root,
        mounts=mounts,
        id_map=("auto" if IS_ROOT else "root") if has_ids else None,
        user=user,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        cwd="/",
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"},
    ) as process:
        out, _ = process.communicate(timeout=60)
    assert out is not None
    return out.decode()


def on_skeleton(script: str, *mounts: MountValue) -> str:
    """Run a script in the host's root with these mounts."""
    return inside(script, mounts, root=Root.host())


def in_own_host(setup: str, code: str) -> str:
    """Prepare mounts of a "host" in a shell, then run Python code with a helper `inside` there."""
    options = ["--propagation", "private"] if IS_ROOT else ["--user", "--map-current-user", "--keep-caps"]
    helper = f"""
        import sys
        sys.path[:0] = {[path for path in sys.path if path]!r}
        import importlib.util
        spec = importlib.util.spec_from_file_location("here", {__file__!r})
        here = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(here)
        from isolib.mounts import *
    """
    program = textwrap.dedent(helper) + textwrap.dedent(code)
    script = 'set -e; eval "$0"; exec "$@"'
    argv = ["unshare", "--mount", *options, "sh", "-c", script, setup, sys.executable, "-I", "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestBind:
    def test_content(self, tmp_path: Path) -> None:
        """A directory and a file of the host appear where they were asked for; parents are made."""
        (tmp_path / "file").write_text("content")
        tmp_path.chmod(0o755)
        out = on_skeleton("cat /data/a/b/file /single", Bind(tmp_path, "/data/a/b"), Bind(tmp_path / "file", "/single"))
        assert out == "contentcontent"

    def test_read_only(self, tmp_path: Path) -> None:
        """By default nothing can be written, not even by chmod or touch."""
        (tmp_path / "file").touch()
        (tmp_path / "file").chmod(0o666)
        tmp_path.chmod(0o777)
        out = on_skeleton("echo > /data/new; echo >> /data/file; touch /data/file; rm /data/file", Bind(tmp_path, "/data"))
        assert out.count("Read-only file system") == 4
        assert os.listdir(tmp_path) == ["file"]

    def test_writable(self, tmp_path: Path) -> None:
        """On request what is written is written to the host, and set-user-id bits and devices have no effect."""
        tmp_path.chmod(0o777)
        out = on_skeleton("echo 1 > /data/new; findmnt -no OPTIONS /data", Bind(tmp_path, "/data", readonly=False))
        assert (tmp_path / "new").read_text() == "1\n"
        assert {"rw", "nosuid", "nodev"} <= set(out.strip().split(","))

    def test_odd_names(self, tmp_path: Path) -> None:
        """Every byte that a name can have may stand in a source and in a target."""
        odd = "a b,c:d\\e\n'\"é"
        (tmp_path / odd).mkdir()
        (tmp_path / odd / "file").write_text("content")
        tmp_path.chmod(0o755)
        assert on_skeleton("cat /data/a\\ b*/file", Bind(tmp_path / odd, f"/data/{odd}")) == "content"

    def test_missing_source(self, tmp_path: Path) -> None:
        """A source that is not there is an error that names it."""
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", Bind(tmp_path / "absent", "/data"))
        assert (caught.value.op, caught.value.errno, caught.value.target) == ("open_tree", errno.ENOENT, f"{tmp_path}/absent")
        assert "OPEN_TREE" in caught.value.step

    @pytest.mark.parametrize(("source", "target"), [("file", "/usr"), ("", "/etc/passwd")])
    def test_kinds_must_match(self, tmp_path: Path, source: str, target: str) -> None:
        """A file goes on a file, a directory on a directory."""
        (tmp_path / "file").touch()
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", Bind(tmp_path / source, target))
        assert caught.value.errno in {errno.ENOTDIR, errno.EINVAL}
        assert caught.value.target == target

    @pytest.mark.parametrize("target", ["/proc/self/fd/0", "/proc/self/root/tmp", "/proc/thread-self/cwd"])
    def test_magic_link(self, target: str) -> None:
        """A target that goes through a magic link of /proc is refused."""
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", Bind("/usr", target))
        assert (caught.value.op, caught.value.errno, caught.value.target) == ("openat2", errno.ELOOP, target)

    def test_absent_in_read_only(self) -> None:
        """A mount point that is absent where nothing can be made is an error that names it, and says what would help."""
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", Bind("/usr", "/usr/absent"))
        assert caught.value.target == "/usr/absent"
        assert not Path("/usr/absent").exists()

    def test_link_of_the_host(self) -> None:
        """A target that leads through a symbolic link of the host's goes where the link leads inside."""
        out = on_skeleton("cat /usr/bin/env", Bind("/etc/hostname", "/bin/env"))
        assert out == Path("/etc/hostname").read_text(encoding="ascii")

    def test_recursive_read_only(self, tmp_path: Path) -> None:
        """Mounts below the source come along and are read-only as it is."""
        (tmp_path / "sub").mkdir()
        tmp_path.chmod(0o755)
        out = in_own_host(
            f"mount -t tmpfs -o mode=777 none {tmp_path}/sub; touch {tmp_path}/sub/seen",
            f"print(here.on_skeleton('ls /data/sub; echo > /data/sub/new', Bind({str(tmp_path)!r}, '/data')))",
        )
        assert "seen" in out
        assert "Read-only file system" in out

    @pytest.mark.root
    def test_not_recursive(self, tmp_path: Path) -> None:
        """Root may leave the mounts below behind."""
        (tmp_path / "sub").mkdir()
        tmp_path.chmod(0o755)
        out = in_own_host(
            f"mount -t tmpfs -o mode=777 none {tmp_path}/sub; touch {tmp_path}/sub/seen",
            f"print(here.on_skeleton('ls -A /data/sub', Bind({str(tmp_path)!r}, '/data', recursive=False)))",
        )
        assert "seen" not in out

    def test_flags_of_the_host_stay(self, tmp_path: Path) -> None:
        """A bind asked for as writable of what the host has read-only and noexec is neither writable nor executable."""
        out = in_own_host(
            f"mount -t tmpfs -o mode=777 none {tmp_path}; cp /bin/true {tmp_path}; mount -o remount,bind,ro,noexec {tmp_path}",
            f"print(here.on_skeleton('/data/true; echo > /data/new', Bind({str(tmp_path)!r}, '/data', readonly=False)))",
        )
        assert "Permission denied" in out
        assert "Read-only file system" in out

    @pytest.mark.unprivileged
    def test_flags_of_the_host_are_locked(self, tmp_path: Path) -> None:
        """Not even with every capability in its user namespace can a process undo what the host has set."""
        out = in_own_host(
            f"mount -t tmpfs -o mode=777 none {tmp_path}; mount -o remount,bind,ro {tmp_path}",
            f"print(here.on_skeleton('mount -o remount,bind,rw /data; echo > /data/new',"
            f" Bind({str(tmp_path)!r}, '/data', readonly=False)))",
        )
        assert "permission denied" in out
        assert "Read-only file system" in out

    @pytest.mark.root
    def test_id_map(self, tmp_path: Path) -> None:
        """What is outside on disk appears as inside, what inside writes is outside on disk, others are nobody."""
        for name, uid in (("mine", 4000), ("others", 4001)):
            (tmp_path / name).write_text(name)
            os.chown(tmp_path / name, uid, uid)
            (tmp_path / name).chmod(0o600)
        os.chown(tmp_path, 4000, 4000)
        bind = Bind(tmp_path, "/data", readonly=False, id_map=[IdMap(7, 4000)])
        out = inside(
            "stat -c %u:%g /data/*; cat /data/mine; echo > /data/new; cat /data/others", [bind], root=Root.host(), user=(7, 7)
        )
        assert out.split()[:3] == ["7:7", "65534:65534", "mine" + "cat:"]
        assert "Permission denied" in out
        assert ((tmp_path / "new").stat().st_uid, (tmp_path / "new").stat().st_gid) == (4000, 4000)

    @pytest.mark.root
    def test_closed_source_of_root(self, tmp_path: Path) -> None:
        """Root's bind of a directory in a closed place is made, and what is closed in it stays closed."""
        (tmp_path / "closed" / "open").mkdir(parents=True)
        (tmp_path / "closed").chmod(0o700)
        (tmp_path / "closed" / "open" / "public").write_text("public")
        (tmp_path / "closed" / "open" / "secret").write_text("secret")
        (tmp_path / "closed" / "open" / "secret").chmod(0o600)
        out = on_skeleton("cat /data/public /data/secret", Bind(tmp_path / "closed" / "open", "/data"))
        assert out.startswith("public")
        assert "Permission denied" in out

    def test_order(self, tmp_path: Path) -> None:
        """A later mount may lie in an earlier one, and covers an earlier one at the same place."""
        (tmp_path / "file").write_text("first")
        tmp_path.chmod(0o755)
        out = on_skeleton(
            "cat /data/sub/bind/file; ls -A /again",
            Tmpfs("/data"),
            Tmpfs("/data/sub"),
            Bind(tmp_path, "/data/sub/bind"),
            Bind(tmp_path, "/again"),
            Tmpfs("/again"),
        )
        assert out == "first"


class TestTmpfs:
    def test_limits(self) -> None:
        """Neither more bytes nor more files fit than its size says, and it is nosuid and nodev."""
        script = """
            head -c 2M /dev/zero > /data/big; stat -c %s /data/big; rm /data/big
            i=0; while [ $i -lt 400 ] && touch /data/$i 2>/tmp/error; do i=$((i+1)); done; echo $i; cat /tmp/error
            findmnt -no OPTIONS /data"""
        out = on_skeleton(script, Tmpfs("/data", size=SMALL))
        assert "No space left on device" in out
        lines = out.splitlines()
        sizes = [int(line) for line in lines if line.isdigit()]
        assert sizes[0] <= SMALL
        assert sizes[1] < 256
        assert {"nosuid", "nodev"} <= set(lines[-1].split(","))

    def test_default_limits(self) -> None:
        """One that is given no size has limits too, as /dev/shm and the private places have."""
        script = "stat -f -c '%b %S %c' /data /tmp /dev/shm /run /root"
        for line in on_skeleton(script, Tmpfs("/data")).splitlines():
            blocks, size, files = map(int, line.split())
            assert 0 < blocks * size <= 1 << 30
            assert 0 < files <= 1 << 18

    def test_mode(self) -> None:
        """Its root has the mode that was asked for, whatever the caller's umask is; the command gets that umask back."""
        before = os.umask(0o077)
        try:
            out = on_skeleton("umask; stat -c %a /data /made /made/deep /tmp /", Tmpfs("/data", mode=0o1777), Dir("/made/deep"))
        finally:
            os.umask(before)
        assert out.split() == ["0077", "1777", "755", "755", "1777", "755"]

    @pytest.mark.root
    def test_owner(self) -> None:
        """It belongs to the command's user, as files and directories do."""
        script = "stat -c %u:%g /data /file /dir; cat /file; echo 1 > /data/x && cat /data/x"
        mounts = [Tmpfs("/data"), File("/file", "secret\n", mode=0o600), Dir("/dir")]
        out = inside(script, mounts, root=Root.host(), user=(1000, 1001))
        assert out.split() == ["1000:1001"] * 3 + ["secret", "1"]

    def test_vanishes(self, tmp_path: Path) -> None:
        """What was written to it is nowhere afterwards."""
        tmp_path.chmod(0o777)
        on_skeleton("echo 1 > /data/tmpfs/x", Bind(tmp_path, "/data", readonly=False), Tmpfs("/data/tmpfs"))
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["tmpfs"]


class TestMask:
    def test_file_and_directory(self, tmp_path: Path) -> None:
        """A file reads as empty, a directory is empty and cannot be written, twice is as good as once."""
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "a").write_text("secret")
        tmp_path.chmod(0o755)
        masks = [Mask("/data/secret"), Mask("/data/secrets"), Mask("/data/secrets"), Mask("/etc/hostname"), Mask("/usr/share")]
        script = (
            "cat /data/secret /etc/hostname; ls -A /data/secrets /usr/share | grep -v :; touch /data/secrets/x /usr/share/x"
        )
        out = on_skeleton(script, Bind(tmp_path, "/data"), *masks)
        assert "secret\n" not in out.replace("/data/secrets", "")
        assert out.count("Read-only file system") == 2
        assert len(out.split("touch")[0].strip()) == 0

    def test_absent(self) -> None:
        """A mask of what is not there is an error, not a hole."""
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", Mask("/etc/absent"))
        assert caught.value.target == "/etc/absent"

    def test_kind_that_changed(self, tmp_path: Path) -> None:
        """When what is masked has become the other kind since the plan was made, nothing runs."""
        (tmp_path / "x").mkdir()
        tmp_path.chmod(0o755)
        mounts = [Bind(tmp_path, "/data"), Mask("/data/x")]
        id_map = "auto" if IS_ROOT else "root"
        request = Request(new=KINDS, root=Root.host(), mounts=mounts, id_map=id_map, cwd="/")
        (tmp_path / "x").rmdir()
        (tmp_path / "x").write_text("secret")
        with pytest.raises(SetupFailed):
            request.launch(["/bin/cat", "/data/x"], (-3, -3, -3))

    def test_shadowed_null(self, tmp_path: Path) -> None:
        """A /dev/null that is something else covers nothing: the launch fails."""
        if not IS_ROOT:
            pytest.skip("only root may mount over /dev/null")
        (tmp_path / "fake").write_text("fake")
        out = in_own_host(
            f"mount --bind {tmp_path}/fake /dev/null",
            """
            from isolib import SetupFailed
            try:
                here.on_skeleton("true")
            except SetupFailed as error:
                print(error)
            """,
        )
        assert "/dev/null" in out
        assert "ENODEV" in out


class TestReadOnly:
    def test_with_mounts_below(self) -> None:
        """What is made read-only is so with the mounts below it, and nothing else is."""
        script = "for d in /data /data/sub /data/sub/deeper /other; do touch $d/x 2>/dev/null && echo $d; done"
        out = on_skeleton(
            script, Tmpfs("/data"), Tmpfs("/data/sub"), Dir("/data/sub/deeper"), Tmpfs("/other"), ReadOnly("/data")
        )
        assert out.split() == ["/other"]

    def test_later_mounts_are_writable(self) -> None:
        """A mount that comes later is not touched by it."""
        out = on_skeleton(
            "touch /data/sub/x && echo yes", Tmpfs("/data"), Dir("/data/sub"), ReadOnly("/data"), Tmpfs("/data/sub")
        )
        assert out == "yes\n"

    def test_absent(self) -> None:
        """What is not there cannot be made read-only."""
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", ReadOnly("/etc/absent"))
        assert caught.value.target == "/etc/absent"


class TestFiles:
    def test_everywhere(self) -> None:
        """A file is written in what the plan makes, and covers one that the host has."""
        files = [
            File("/top", "1"),
            File("/deep/er/file", b"2\0"),
            File("/tmp/x", "3"),
            File("/etc/hostname", "4"),
            File("/etc/passwd", b""),
        ]
        out = on_skeleton("cat /top /deep/er/file /tmp/x /etc/hostname /etc/passwd; stat -c %s /deep/er/file", *files)
        assert out == "12\x00342\n"
        assert Path("/etc/hostname").read_text(encoding="utf-8") != "4"

    def test_mode_and_size(self) -> None:
        """The mode is as asked for, and a large file is complete."""
        content = os.urandom(3_000_000)
        out = on_skeleton("stat -c '%a %s' /a /b; cksum < /a", File("/a", content, mode=0o600), File("/b", "x", mode=0o755))
        assert out.split()[:4] == ["600", "3000000", "755", "1"]
        assert (
            out.split()[4]
            == subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode().split()[0]
        )

    def test_twice(self) -> None:
        """A later file at the same place replaces the earlier one."""
        assert on_skeleton("cat /a", File("/a", "longer"), File("/a", "new")) == "new"

    def test_directories_and_links(self) -> None:
        """Directories are made with their parents, links say what they were told."""
        script = "readlink /a/link /dangling; cat /a/link; stat -c %a /x/y/z /tmp/deep"
        values = [File("/file", "content\n"), Symlink("/a/link", "../file"), Symlink("/dangling", "/no where")]
        out = on_skeleton(script, *values, Dir("/x/y/z", mode=0o700), Dir("/tmp/deep"), Dir("/tmp"), Dir("/x/y/z"))
        assert out == "../file\n/no where\ncontent\n700\n755\n"

    def test_link_cannot_lead_out(self, tmp_path: Path) -> None:
        """A mount through a link of ours lands where the link leads inside."""
        (tmp_path / "canary").mkdir()
        values = [Symlink("/link", str(tmp_path / "canary")), Dir(str(tmp_path / "canary")), Tmpfs("/link")]
        out = on_skeleton(f"touch /link/x; ls {tmp_path}/canary", *values)
        assert out.split() == ["x"]
        assert not os.listdir(tmp_path / "canary")


class TestOverlay:
    @pytest.fixture
    def layers(self, tmp_path: Path) -> Path:
        """Return a directory with layers that have odd names."""
        for name in ("low:er", "to,p", "upper", "work"):
            (tmp_path / name).mkdir()
        (tmp_path / "low:er" / "low").write_text("low")
        (tmp_path / "low:er" / "both").write_text("low")
        (tmp_path / "to,p" / "both").write_text("top")
        for path in (tmp_path, *tmp_path.iterdir()):
            path.chmod(0o777)
        return tmp_path

    def test_discard(self, layers: Path) -> None:
        """The topmost lower wins, what is written is seen inside, and no layer changes."""
        overlay = Overlay("/data", [layers / "to,p", layers / "low:er"])
        out = on_skeleton("cat /data/low /data/both; echo new > /data/new; cat /data/new; ls /data", overlay)
        assert out == "lowtopnew\nboth\nlow\nnew\n"
        assert sorted(path.name for path in layers.rglob("*") if path.is_file()) == ["both", "both", "low"]

    def test_scratch_is_out_of_reach(self, layers: Path) -> None:
        """Upper and work directories are not seen, and no lower is writable by another way."""
        out = on_skeleton(
            "grep -c lowerdir=o /proc/self/mountinfo; find / -xdev -name 'o[0-9]*u'", Overlay("/data", [layers / "to,p"])
        )
        assert out == "1\n"

    def test_many_lowers(self, layers: Path) -> None:
        """A stack of 20 layers works."""
        lowers = []
        for number in range(20):
            (layers / f"layer {number}").mkdir()
            (layers / f"layer {number}" / f"{number}").touch()
            lowers.append(layers / f"layer {number}")
        out = on_skeleton("ls /data | wc -l", Overlay("/data", lowers))
        assert out == "20\n"

    def test_upper_of_the_host(self, layers: Path) -> None:
        """What is written goes to an upper directory of the host's; its lower stays."""
        if fs_type_of(str(layers)) == "overlay":
            pytest.skip("an overlay cannot be the upper layer of another")
        new = KINDS - {"user"} if IS_ROOT else KINDS
        overlay = Overlay("/data", [layers / "low:er"], upper=layers / "upper", work=layers / "work")
        out = inside("echo new > /data/new; echo more >> /data/both; cat /data/both", [overlay], root=Root.host(), new=new)
        assert out == "lowmore\n"
        assert sorted(os.listdir(layers / "upper")) == ["both", "new"]
        assert (layers / "low:er" / "both").read_text() == "low"

    def test_missing_lower(self, layers: Path) -> None:
        """A layer that is not there is an error at the overlay."""
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", Overlay("/data", [layers / "absent"]))
        assert caught.value.op in {"open_tree", "fsconfig"}  # root's are cloned, a user's are named
        assert caught.value.errno == errno.ENOENT

    @pytest.mark.root
    def test_id_map(self, layers: Path) -> None:
        """With ids mapped, root inside changes what root on disk owns, also where the upper directory is the host's."""
        (layers / "low:er" / "both").chmod(0o600)
        every = [IdMap(0, 0, 65536)]
        for upper in ({}, {"upper": layers / "upper", "work": layers / "work"}):
            overlay = Overlay("/data", [layers / "low:er"], id_map=every, **upper)
            out = on_skeleton("echo more >> /data/both; cat /data/both; mkdir /data/new; chown 7 /data/new", overlay)
            assert out == "lowmore\n"
        assert (layers / "upper" / "new").stat().st_uid == 7
        assert (layers / "upper" / "both").stat().st_uid == 0
        assert (layers / "low:er" / "both").read_text() == "low"


class TestProc:
    def test_processes(self) -> None:
        """It shows the processes of the new pid namespace, nosuid, nodev, noexec."""
        out = on_skeleton("ls /proc | grep -c '^[0-9]'; findmnt -no OPTIONS /proc")
        count, options = out.split()
        assert int(count) <= 6
        assert {"nosuid", "nodev", "noexec", "rw"} <= set(options.split(","))

    def test_masked(self) -> None:
        """What is the machine's is hidden or read-only."""
        script = """
            for f in kcore keys timer_list sched_debug interrupts sysrq-trigger; do
                [ -e /proc/$f ] && head -c 10 /proc/$f; done
            for d in acpi scsi asound; do [ -d /proc/$d ] && ls -A /proc/$d; done
            for d in bus fs irq sys; do [ -d /proc/$d ] && findmnt -no OPTIONS /proc/$d; done
            echo x > /proc/sys/kernel/hostname"""
        lines = on_skeleton(script).splitlines()
        assert len(lines) >= 4
        for line in lines[:-1]:
            assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split(","))
        assert "Read-only file system" in lines[-1]

    def test_shared_pid_namespace(self) -> None:
        """Without a pid namespace of its own, a process sees the host's processes, with the same parts masked."""
        out = inside(
            "readlink /proc/self/ns/pid; cat /proc/keys; echo > /proc/sys/kernel/hostname",
            root=Root.host(),
            new=KINDS - {"pid"},
        )
        assert out.split("\n")[0] == os.readlink("/proc/self/ns/pid")
        assert "Read-only file system" in out
        assert len(out.strip().splitlines()) == 2

    def test_elsewhere(self) -> None:
        """It can be mounted at another place."""
        assert on_skeleton("ls /other/self/status", Proc("/other")) == "/other/self/status\n"


class TestDev:
    def test_devices(self) -> None:
        """The devices work, links lead to the process's own streams, and nothing can be added."""
        script = """
            echo x > /dev/null; head -c 4 /dev/zero | od -An -c; head -c 3 /dev/urandom | wc -c; head -c 3 /dev/random | wc -c
            cat /dev/zero > /dev/full; ls /dev; touch /dev/x 2>&1; readlink /dev/fd /dev/ptmx"""
        out = on_skeleton(script)
        assert "No space left" in out
        assert "Read-only file system" in out
        names = {
            "fd",
            "full",
            "mqueue",
            "null",
            "ptmx",
            "pts",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
            "tty",
            "urandom",
            "zero",
        }
        assert names <= set(out.split())
        assert {"/proc/self/fd", "pts/ptmx"} <= set(out.split())

    def test_no_device_of_the_machine(self) -> None:
        """No other device can be reached: none is there, none can be made, none works on another mount."""
        script = "find / -xdev \\( -type b -o -type c \\) 2>/dev/null; mknod /tmp/sda b 8 0; mknod /tmp/mem c 1 1; cat /tmp/mem"
        out = on_skeleton(script)
        assert not [line for line in out.splitlines() if line.startswith("/")]
        assert out.count("Operation not permitted") == 2

    def test_shared_memory(self) -> None:
        """/dev/shm is writable for all and limited; POSIX message queues are the namespace's own."""
        out = on_skeleton("stat -c %a /dev/shm; touch /dev/shm/x; ls /dev/mqueue; grep -o ' /dev/mqueue mqueue ' /proc/mounts")
        assert out.split() == ["1777", "/dev/mqueue", "mqueue"]

    def test_without_ipc_namespace(self) -> None:
        """Without an ipc namespace of its own there is no mqueue."""
        out = inside("ls /dev", root=Root.host(), new=KINDS - {"ipc"})
        assert "mqueue" not in out
        assert "shm" in out

    def test_elsewhere_and_again(self) -> None:
        """A second /dev, over the first and beside it, is as good."""
        out = on_skeleton(
            "echo > /dev/null && echo > /other/null && ls /other/shm /dev/shm && touch /other/x", Dev(), Dev("/other")
        )
        assert "Read-only file system" in out


class TestWithoutRoot:
    def test_over_the_host(self) -> None:
        """Without a root of its own a process gets mounts over the host's, which the host does not see."""
        mounts = [
            Tmpfs("/mnt"),
            Bind("/usr", "/mnt/usr"),
            File("/mnt/file", "in tmpfs\n"),
            File("/etc/hostname", "covered\n"),
            Mask("/usr/share"),
            Mask("/usr/include"),
            Mask("/etc/passwd"),
            ReadOnly("/tmp"),
        ]
        script = "pwd; cat /mnt/file /etc/hostname /etc/passwd; ls /mnt/usr | grep -x bin; ls -A /usr/share /usr/include"
        script += "; touch /tmp/x"
        out = inside(script, mounts)
        assert out.split("\n")[:4] == ["/", "in tmpfs", "covered", "bin"]
        assert "Read-only file system" in out
        assert Path("/etc/hostname").read_text(encoding="utf-8") != "covered\n"

    def test_nothing_is_made(self, tmp_path: Path) -> None:
        """A mount point that is absent is not made on the host."""
        with pytest.raises(SetupFailed) as caught:
            inside("true", [Tmpfs(str(tmp_path / "absent"))])
        assert caught.value.target == f"{tmp_path}/absent"
        assert not os.listdir(tmp_path)

    def test_proc_and_dev(self) -> None:
        """A private /proc and /dev replace the host's."""
        out = inside("ls /proc | grep -c '^[0-9]'; echo > /dev/null; ls /dev | wc -l; touch /dev/shm/x", [Dev(), Proc()])
        processes, devices = map(int, out.split())
        assert processes <= 6
        assert devices == 14

    def test_working_directory_stays(self, tmp_path: Path) -> None:
        """Values that need another working directory for their steps give the old one back."""
        tmp_path.chmod(0o755)
        (tmp_path / "lower").touch()
        mounts = [File("/etc/hostname", "x"), Overlay("/mnt", [tmp_path])]
        id_map = "auto" if IS_ROOT else "root"
        with spawn(["sh", "-c", "pwd; ls /mnt"], new=KINDS, mounts=mounts, id_map=id_map, stdout=PIPE) as process:
            out, _ = process.communicate(timeout=60)
        assert out is not None
        assert out.decode().split("\n")[0] == os.getcwd()
        assert out.decode().split()[-1] == "lower"


def test_nothing_reaches_the_host(tmp_path: Path) -> None:
    """While a process with mounts of every kind lives, the host's mount table is the same as before."""

    def table() -> list[str]:
        with open("/proc/thread-self/mountinfo", "rb") as file:
            return [one.mount_point for one in parse_mountinfo(file.read())]

    before = table()
    mounts = [Tmpfs("/mnt"), Bind("/usr", "/mnt/usr"), Mask("/etc/hostname"), Overlay("/opt", [tmp_path])]
    id_map = "auto" if IS_ROOT else "root"
    with spawn(["sleep", "60"], new=KINDS, root=Root.host(), mounts=mounts, id_map=id_map, stdin=DEVNULL):
        assert table() == before


def test_nothing_reaches_a_shared_host(tmp_path: Path) -> None:
    """Not even where the host's mounts propagate, and what is mounted inside stays inside."""
    (tmp_path / "sub").mkdir()
    tmp_path.chmod(0o755)
    out = in_own_host(
        f"mount -t tmpfs -o mode=777 none {tmp_path}; mkdir {tmp_path}/sub; mount --make-rshared /",
        f"""
        mounts = [Bind({str(tmp_path)!r}, "/data"), Tmpfs("/data/sub")]
        before = open("/proc/self/mountinfo").read()
        script = "grep -c -e shared: -e master: /proc/self/mountinfo; mount -t tmpfs none /data/sub; touch /data/sub/x"
        print(here.inside(script, mounts, root=Root.host()))
        print(open("/proc/self/mountinfo").read() == before, __import__("os").listdir({str(tmp_path / "sub")!r}))
        """,
    )
    assert out.split() == ["0", "True", "[]"]
