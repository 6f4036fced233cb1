"""The three kinds of roots and the working directory, seen from inside; hostile trees, and who races with the set-up."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import DEVNULL, PIPE, STDOUT, IdMap, Sandbox, SetupFailed, spawn
from isolib._kernel import assembly
from isolib._kernel.mountapi import takes_id_map
from isolib._kernel.request import Request
from isolib.errors import PlanError
from isolib.mounts import Bind, Dir, File, Mask, Proc, ReadOnly, Root, Symlink, Tmpfs, WorkTree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from isolib._kernel.request import MountValue, RootValue

KINDS = frozenset({"user", "mnt", "pid", "ipc"})
IS_ROOT = os.geteuid() == 0

pytestmark = pytest.mark.usefixtures("user_namespaces")


def inside(
    script: str,
    root: RootValue,
    *mounts: MountValue,
    new: Iterable[str] = KINDS,
    user: tuple[int, int] | None = None,
    cwd: str = "/",
    argv: Sequence[str] | None = None,
) -> str:
    """Run a shell script (or a command) in a root, and return all that it printed."""
    with spawn(
        argv or ["/bin/sh", "-c", script],
        new=new,
        root=root,
        mounts=mounts,
        id_map="auto" if IS_ROOT else "root",
        user=user,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"},
    ) as process:
        out, _ = process.communicate(timeout=60)
    assert out is not None
    return out.decode()


@pytest.fixture
def id_maps_in_srv() -> None:
    """Skip the test where the file system of /srv cannot map ids."""
    userns = assembly.userns_fd((IdMap(0, 5000),), (IdMap(0, 5000),))
    if not takes_id_map("/srv", userns, recursive=False):
        pytest.skip("the file system of /srv takes no id-mapped mounts")


def mount_points(mountinfo: str) -> list[str]:
    """Return where mountinfo says that something is mounted."""
    return [line.split()[4] for line in mountinfo.splitlines()]


# ---- the host's root ----


def installed() -> dict[str, str]:
    """Return an environment in which the isolib of this run is found, not that of the working directory."""
    path = os.pathsep.join(path for path in sys.path if path)
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PATH": os.environ["PATH"]}


class TestHost:
    def test_nothing_of_the_old_root(self) -> None:
        """There is one mount at "/", and the old root is nowhere: not below it, not by '..', not for who joins."""
        script = "cat /proc/self/mountinfo; ls -id / /.. /../.. | cut -d' ' -f1 | sort -u | wc -l"
        out = inside(script, Root.host())
        *mounts, inodes = out.strip().splitlines()
        points = mount_points("\n".join(mounts))
        assert points.count("/") == 1
        assert len(points) == len(set(points))
        assert not [point for point in points if point.startswith(("/sys", "/proc/driver"))]
        assert inodes == "1"

    def test_who_joins_sees_the_same(self) -> None:
        """A process that enters the mount namespace afterwards has the new root, not the old one below."""
        with Sandbox(cwd="/tmp") as box:
            box.run(["touch", "/tmp/mark"], check=True)
            assert b"mark" in box.run(["ls", "/tmp"]).stdout.split()
            assert mount_points(box.run(["cat", "/proc/self/mountinfo"]).stdout.decode()).count("/") == 1

    def test_chroot_tricks(self) -> None:
        """Walking up from a directory outside of a second root leads to the new root, not the host's."""
        code = (
            "import os\n"
            "fd = os.open('/', os.O_RDONLY)\n"
            "os.makedirs('/tmp/cage')\n"
            "os.chroot('/tmp/cage')\n"
            "os.fchdir(fd)\n"
            "for _ in range(20): os.chdir('..')\n"
            "os.chroot('.')\n"
            "print(os.path.exists('/tmp/cage'), os.listdir('/sys'))\n"
        )
        assert inside("", Root.host(), argv=["/usr/bin/python3", "-c", code]).strip() == "True []"

    def test_entries(self) -> None:
        """The top level is what `visible` says, links are links, and sysfs is not there."""
        out = inside("ls -A /; echo --; ls -A /sys /root /home /tmp /run/lock; readlink /bin", Root.host())
        names, _, rest = out.partition("--\n")
        listed = {line.partition(":")[0].split("/")[1] for line in Root.host().visible()}
        assert set(names.split()) == listed
        assert "devices" not in rest
        if os.path.islink("/bin"):
            assert rest.split()[-1] == os.readlink("/bin")

    def test_read_only(self) -> None:
        """Nothing of the host's can be written, nor the skeleton; the private places can."""
        places = "/ /usr /etc /var /opt /dev /sys /tmp /var/tmp /run /root /home /dev/shm"
        script = f"for d in {places}; do touch $d/canary-r 2>/dev/null && echo $d; done"
        private = ["/tmp", "/var/tmp", "/run", "/root", "/home", "/dev/shm"]
        assert inside(script, Root.host()).split() == [path for path in private if os.path.isdir(path)]
        assert not any(os.path.exists(f"{path}/canary-r") for path in private)

    def test_private_places_are_empty(self) -> None:
        """What the host has in /home, /root, /run and /tmp is not seen."""
        with open("/tmp/isolib-canary", "w", encoding="ascii"):
            pass
        try:
            out = inside("ls -A /tmp /run /run/lock; ls -A /home", Root.host())
        finally:
            os.unlink("/tmp/isolib-canary")
        paths = [line.partition(":")[0].split("/") for line in Root.host().visible()]
        seen = {path[2] for path in paths if len(path) > 2}
        assert not set(out.split()) - seen - {"/tmp:", "/run:", "/run/lock:", "lock"}

    def test_room(self) -> None:
        """All private places together hold what they are given, and no more."""
        script = """
            for d in /tmp /root /dev/shm /run; do head -c 600K /dev/zero > $d/x; done 2>/dev/null
            cat /tmp/x /root/x /dev/shm/x /run/x | wc -c; df -k --output=size /tmp | tail -1"""
        written, size = map(int, inside(script, Root.host(room="1M")).split())
        assert 600 * 1024 <= written <= 1 << 20
        assert size == 1024

    def test_file_limit(self) -> None:
        """The number of files is limited too."""
        script = "i=0; while [ $i -lt 2000 ] && touch /tmp/$i 2>/dev/null; do i=$((i+1)); done; echo $i"
        assert 0 < int(inside(script, Root.host(room="1M"))) < 256

    def test_secrets_stay_closed(self) -> None:
        """What only root may read is not readable inside, although root inside is asked for."""
        assert "Permission denied" in inside("cat /etc/shadow", Root.host())

    def test_interpreter(self) -> None:
        """The interpreter that runs this, and isolib, can be used inside, wherever they lie."""
        package = os.path.dirname(os.path.dirname(sys.modules["isolib"].__file__ or ""))
        code = f"import sys; sys.path.append({package!r}); import isolib.types, ssl, sqlite3; print(sys.prefix)"
        out = inside("", Root.host(), argv=[sys.executable, "-I", "-c", code])
        assert out.strip() == sys.prefix
        assert os.path.dirname(sys.executable) in {*Root.interpreter_directories(), "/usr/local/bin", "/usr/bin", "/bin"}

    @pytest.mark.parametrize("umask", [0o022, 0o077])
    def test_hidden_interpreter(self, tmp_path: Path, umask: int) -> None:
        """A virtual environment in a private place, closed to others, is seen read-only; its neighbours are not."""
        before = os.umask(umask)
        try:
            (tmp_path / "home").mkdir(mode=0o700)
            env = tmp_path / "home" / "env"
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(env)], check=True)
            (tmp_path / "home" / "secret").write_text("secret")
        finally:
            os.umask(before)
        code = f"""
import sys, isolib
print(isolib.run([{str(env / "bin" / "python")!r}, '-c', 'import sys; print(sys.prefix)'], cwd='/tmp').stdout.decode())
done = isolib.run(['sh', '-c', 'ls {env}/..; echo > {env}/x; echo > {env}/bin/python'], cwd='/tmp')
print(done.stdout.decode(), done.stderr.decode())
"""
        path = os.pathsep.join(path for path in sys.path if path)
        argv = [str(env / "bin" / "python"), "-c", code]
        clean = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PATH": os.defpath}
        done = subprocess.run(argv, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[:2] == [str(env), "env"]
        assert "secret" not in done.stdout
        assert done.stdout.count("Read-only file system") == 2

    def test_names_of_servers(self, tmp_path: Path) -> None:
        """Where /etc/resolv.conf is a link into /run, as with systemd, what it leads to is there, and nothing beside it."""
        (tmp_path / "etc").mkdir()
        (tmp_path / "run" / "resolve").mkdir(parents=True)
        for name in ("servers", "secret"):
            (tmp_path / "run" / "resolve" / name).write_text("nameserver 192.0.2.1\n")
        (tmp_path / "etc" / "resolv.conf").symlink_to("../run/resolve/servers")
        for path in (tmp_path, *tmp_path.iterdir()):
            path.chmod(0o755)
        options = ["--propagation", "private"] if IS_ROOT else ["--user", "--map-current-user", "--keep-caps"]
        script = f'mount --bind {tmp_path}/run /run; mount --bind {tmp_path}/etc /etc; cd /tmp; exec "$0" -c "$1"'
        code = (
            "import isolib; print(isolib.run(['sh', '-c', 'cat /etc/resolv.conf; ls /run/resolve; echo > /etc/resolv.conf']))"
        )
        env = installed()
        argv = ["unshare", "--mount", *options, "sh", "-ec", script, sys.executable, code]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "stdout=b'nameserver 192.0.2.1\\nservers\\n'" in done.stdout
        assert "Read-only file system" in done.stdout

    @pytest.mark.root
    def test_interpreter_of_another_user(self) -> None:
        """It can be used by whatever user the command is."""
        code = "import os, sys; print(os.getuid(), sys.prefix)"
        out = inside("", Root.host(), argv=[sys.executable, "-I", "-c", code], user=(1000, 1000))
        assert out.split() == ["1000", sys.prefix]

    @pytest.mark.root
    @pytest.mark.usefixtures("id_maps_in_srv")
    def test_home_elsewhere(self, tmp_path: Path) -> None:
        """The home of an account that has it in a visible place is private, but for a working directory in it."""
        place = "/srv/isolib-test-home"
        try:
            for name in ("work", "secret"):
                os.makedirs(f"{place}/{name}")
            (tmp_path / "passwd").write_text(f"root:x:0:0::{place}:/bin/sh\n")
            code = "import isolib; print(isolib.run(['sh', '-c', 'ls ..; touch new; ls; touch ../x']))"
            script = f'mount --bind {tmp_path}/passwd /etc/passwd; exec "$0" -c "$1"'
            env = installed()
            argv = ["unshare", "--mount", "sh", "-ec", script, sys.executable, code]
            done = subprocess.run(argv, cwd=f"{place}/work", env=env, capture_output=True, text=True, check=True)
            assert "stdout=b'work\\nnew\\n'" in done.stdout
            assert "returncode=0" in done.stdout
            assert os.listdir(f"{place}/work") == []
        finally:
            subprocess.run(["rm", "-rf", place], check=True)

    @pytest.mark.root
    @pytest.mark.usefixtures("id_maps_in_srv")
    def test_closed_place(self) -> None:
        """A directory above that is closed to others is covered, so that what is needed can be reached, and nothing else."""
        place = Path("/srv/isolib-test")
        try:
            (place / "closed" / "work").mkdir(parents=True)
            (place / "closed" / "secret").write_text("secret")
            (place / "closed" / "work" / "file").write_text("content")
            (place / "closed").chmod(0o700)
            (place / "closed" / "work" / "file").chmod(0o600)
            work = str(place / "closed" / "work")
            out = inside("pwd; ls ..; cat file; ls /srv/isolib-test", Root.host(), WorkTree(work), cwd=work)
            assert out.split() == [work, "work", "contentclosed"]
        finally:
            subprocess.run(["rm", "-rf", str(place)], check=True)

    @pytest.mark.root
    def test_kernel_file_systems(self) -> None:
        """What the host has mounted elsewhere of proc and the like is covered."""
        place = Path("/srv/isolib-test-proc")
        place.mkdir()
        try:
            code = "import isolib; print(isolib.run(['ls', '-A', '/srv/isolib-test-proc'], cwd='/tmp'))"
            script = f'mount -t proc none {place}; exec "$0" -c "$1"'
            env = installed()
            argv = ["unshare", "--mount", "sh", "-ec", script, sys.executable, code]
            done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
            assert "stdout=b''" in done.stdout
            assert "returncode=0" in done.stdout
        finally:
            place.rmdir()

    def test_writable(self) -> None:
        """A writable root is writable as far as permissions go, but keeps no device and no set-user-id bit alive."""
        out = inside("findmnt -no OPTIONS /usr; touch /x; touch /tmp/x", Root.host(writable=True))
        assert {"rw", "nosuid", "nodev"} <= set(out.split()[0].split(","))
        assert "'/x': Read-only file system" in out

    @pytest.mark.root
    def test_without_user_namespace(self) -> None:
        """Root's own process in a new mount namespace gets the same root."""
        with spawn(
            ["/bin/sh", "-c", "id -u; touch /usr/x; ls -A /home"], new={"mnt"}, root=Root.host(), stdout=PIPE, stderr=STDOUT
        ) as process:
            out, _ = process.communicate(timeout=60)
        assert out is not None
        assert out.startswith(b"0\n")
        assert b"Read-only file system" in out


# ---- the empty root ----


class TestEmpty:
    def test_only_what_is_mounted(self) -> None:
        """There is what the mounts bring, and nothing can be added."""
        mounts = [Bind("/usr", "/usr"), *system_links(), Proc(), Dir("/data"), Tmpfs("/data/tmp")]
        out = inside("ls /; touch /x; touch /data/x; touch /data/tmp/x && ls /data/tmp", Root.empty(), *mounts)
        assert {"usr", "proc", "data"} <= set(out.split())
        assert "etc" not in out.split()
        assert out.count("Read-only file system") == 2

    def test_nothing_at_all(self) -> None:
        """A root with nothing in it can be made; there is just no program in it."""
        with pytest.raises(SetupFailed) as caught:
            inside("true", Root.empty())
        assert (caught.value.op, caught.value.errno) == ("execve", errno.ENOENT)


def system_links() -> list[Symlink | Bind]:
    """Return the links or binds that a system in /usr needs at its top level."""
    found: list[Symlink | Bind] = []
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        if os.path.islink(f"/{name}"):
            found.append(Symlink(f"/{name}", os.readlink(f"/{name}")))
        elif os.path.isdir(f"/{name}"):
            found.append(Bind(f"/{name}", f"/{name}"))
    return found


# ---- trees ----


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory with the frame of a system: mount points, links, and a canary beside it."""
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("usr", "proc", "dev", "tmp", "etc", "data"):
        (root / name).mkdir()
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(os.readlink(f"/{name}"))
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "sub").mkdir()
    return root


def canary(tree: Path) -> list[str]:
    """Return what lies in the canary."""
    return sorted(str(path.relative_to(tree.parent)) for path in (tree.parent / "canary").rglob("*"))


USR = Bind("/usr", "/usr")


class TestTree:
    def test_read_only(self, tree: Path) -> None:
        """A tree is read-only, with a private /proc, /dev and /tmp; root's files are root's inside."""
        script = "cat /etc/passwd; stat -c %u /etc/passwd; touch /x /etc/x; touch /tmp/x; echo > /dev/null"
        script += "; ls /proc/self/status; ls /tmp"
        out = inside(script, Root.tree(tree), USR)
        assert out.startswith("root:x:0:0::/:/bin/sh\n0\n")
        assert out.count("Read-only file system") == 2
        assert out.endswith("/proc/self/status\nx\n")

    def test_writable(self, tree: Path) -> None:
        """What is written to a writable tree is the caller's on disk, and absent mount points are made in it."""
        out = inside("touch /etc/new /new/place/x; ls /new/place", Root.tree(tree, writable=True), USR, Tmpfs("/new/place"))
        assert out == "x\n"
        assert (tree / "etc" / "new").stat().st_uid == os.geteuid()
        assert (tree / "new" / "place").is_dir()
        assert not os.listdir(tree / "new" / "place")

    def test_absent_mount_point(self, tree: Path) -> None:
        """In a read-only tree a mount point that is absent is an error that names it."""
        with pytest.raises(SetupFailed) as caught:
            inside("true", Root.tree(tree), USR, Tmpfs("/new/place"))
        assert caught.value.target == "/new/place"
        assert not (tree / "new").exists()

    def test_closed_tree(self, tree: Path) -> None:
        """A tree that is closed to others, in a place that is, works for the one who owns it."""
        tree.chmod(0o700)
        (tree / "etc" / "passwd").chmod(0o600)
        tree.parent.chmod(0o700)
        assert inside("cat /etc/passwd", Root.tree(tree), USR).startswith("root:")

    def test_bare_tree(self, tree: Path) -> None:
        """A read-only tree without directories for them has no /proc, /dev and /tmp; in a writable one they are made."""
        for name in ("proc", "dev", "tmp"):
            (tree / name).rmdir()
        assert inside("ls /", Root.tree(tree), USR).split() == sorted(os.listdir(tree))
        out = inside("ls /dev /proc/self/status /tmp", Root.tree(tree, writable=True), USR)
        assert "urandom" in out.split()

    @pytest.mark.parametrize("name", ["proc", "dev"])
    @pytest.mark.parametrize("to", ["/etc", "../canary", "/proc/self/root", "."])
    @pytest.mark.parametrize("writable", [False, True])
    def test_link_in_place_of_proc_or_dev(self, tree: Path, name: str, to: str, *, writable: bool) -> None:
        """A tree whose /proc or /dev is a symbolic link is refused: what is written there must go to the real one."""
        (tree / name).rmdir()
        (tree / name).symlink_to(to)
        with pytest.raises(PlanError, match=name):
            inside("true", Root.tree(tree, writable=writable), USR)

    def test_link_that_came_later(self, tree: Path) -> None:
        """A /dev that becomes a link between plan and launch is refused by the kernel."""
        request = Request(new=KINDS, root=Root.tree(tree), mounts=[USR], id_map="auto" if IS_ROOT else "root", cwd="/")
        (tree / "dev").rmdir()
        (tree / "dev").symlink_to("etc")
        with pytest.raises(SetupFailed) as caught:
            request.launch(["/bin/true"], (-3, -3, -3))
        assert (caught.value.errno, caught.value.target) == (errno.ELOOP, "/dev")

    @pytest.mark.parametrize("writable", [False, True])
    @pytest.mark.parametrize("link", ["/absolute", "relative", "dangling"])
    def test_links_stay_inside(self, tree: Path, link: str, *, writable: bool) -> None:
        """A mount point behind a link that points out of the tree is looked for in the tree."""
        outside = tree.parent / "canary"
        to = {"/absolute": str(outside), "relative": "../../../../../.." + str(outside), "dangling": "/nowhere"}[link]
        (tree / "data" / "link").symlink_to(to)
        before = canary(tree)
        root = Root.tree(tree, writable=writable)
        with pytest.raises(SetupFailed) as caught:  # there is no such directory inside
            inside("true", root, USR, Tmpfs("/data/link/sub"))
        assert caught.value.target == "/data/link/sub"
        if link != "dangling":  # now there is
            (tree / outside.parts[1]).mkdir(exist_ok=True)
            mounts = [
                USR,
                Tmpfs("/" + outside.parts[1]),
                Dir(outside / "sub"),
                Tmpfs("/data/link/sub"),
                File("/data/link/sub/file", "x"),
            ]
            assert inside(f"ls {outside}/sub; touch {outside}/sub/new", root, *mounts) == "file\n"
        assert canary(tree) == before

    def test_masked_and_read_only_in_a_hostile_tree(self, tree: Path) -> None:
        """A mask and a read-only view whose path is a link out of the tree do nothing outside; absent inside, they fail."""
        (tree / "data" / "secret").symlink_to(tree.parent / "canary")
        for value in (Mask("/data/secret"), ReadOnly("/data/secret")):
            with pytest.raises(SetupFailed) as caught:
                inside("true", Root.tree(tree), USR, value)
            assert caught.value.target == "/data/secret"
        (tree / "data" / "secret").unlink()
        (tree / "data" / "secret").write_text("secret")
        assert inside("cat /data/secret", Root.tree(tree), USR, Mask("/data/secret")) == ""

    def test_devices_in_a_tree(self, tree: Path) -> None:
        """A tree's own /dev/null, a link to something of the kernel's, is covered by a fresh /dev."""
        (tree / "dev" / "null").symlink_to("/proc/sys/kernel/core_pattern")
        out = inside("stat -c '%t %T' /dev/null; echo x > /dev/null", Root.tree(tree), USR)
        assert out == "1 3\n"

    def test_host_as_a_tree(self) -> None:
        """The host's own root as a tree shows nothing that only root may read."""
        out = inside("cat /etc/shadow; echo; ls /proc/self/status", Root.tree("/"))
        assert "Permission denied" in out
        assert out.endswith("/proc/self/status\n")

    def test_nothing_of_the_old_root(self, tree: Path) -> None:
        """There is one mount at "/", and nothing of the host's but what was asked for."""
        points = mount_points(inside("cat /proc/self/mountinfo", Root.tree(tree), USR))
        assert points.count("/") == 1
        tops = {"/", *("/" + point.split("/")[1] for point in points)}
        assert tops == {"/", "/usr", "/proc", "/dev", "/tmp"}


# ---- somebody who races ----


@contextmanager
def exchanging(first: Path, second: Path) -> Iterator[None]:
    """Exchange two names as fast as possible, for as long as the body runs (renameat2(2), RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for _ in range(20):
                libc.renameat2(-100, names[0], -100, names[1], 2)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("place", ["data", "proc", "dev", "tmp"])
def test_exchange_race(tree: Path, place: str) -> None:
    """While a directory of the tree and a link out of it change places, nothing happens outside."""
    (tree / "evil").symlink_to(tree.parent / "canary")
    before = canary(tree)
    done = {"failed": 0, "made": 0}
    mounts: list[MountValue] = [USR, Tmpfs("/data/sub/deeper"), File("/data/sub/deeper/file", "x"), Dir(f"/{place}/made/here")]
    id_map = "auto" if IS_ROOT else "root"
    request = Request(new=KINDS, root=Root.tree(tree, writable=True), mounts=mounts, id_map=id_map, cwd="/")
    with exchanging(tree / place, tree / "evil"):
        for _ in range(150):
            try:
                request.launch(["/usr/bin/true"], (-3, -3, -3)).close()
                done["made"] += 1
            except SetupFailed:
                done["failed"] += 1
    assert sum(done.values()) == 150
    assert canary(tree) == before


# ---- the working directory ----


class TestWorkTree:
    @pytest.fixture
    def work(self, tmp_path: Path) -> Path:
        """Return a working directory with a hard name, closed to others."""
        path = tmp_path / "work dir,a:b\\c"
        (path / "sub").mkdir(parents=True)
        (path / "file").write_text("content\n")
        (path / "file").chmod(0o600)
        (path / "sub" / "deep").write_text("deep\n")
        path.chmod(0o700)
        return path

    def in_work(self, work: Path, mode: str, script: str, user: tuple[int, int] | None = None) -> str:
        """Run a script in the working directory."""
        return inside(script, Root.host(), WorkTree(work, mode), cwd=str(work), user=user)

    CHANGES = (
        "cat file; echo new > new; echo more >> file; rm sub/deep; rm -r sub; mkdir sub; touch sub/other; mv file moved; ls -R"
    )

    def test_discard(self, work: Path) -> None:
        """Everything can be changed, and nothing has changed afterwards."""
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
            try:
                os.setxattr(file.name, "user.isolib", b"1")
            except OSError:
                pytest.skip("before Linux 6.6 a tmpfs has no attributes, and directories from below cannot be removed")
        out = self.in_work(work, "discard", self.CHANGES + "; cat moved; stat -c '%U %a' .")
        assert out.split() == ["content", ".:", "moved", "new", "sub", "./sub:", "other", "content", "more", "root", "700"]
        assert sorted(os.listdir(work)) == ["file", "sub"]
        assert (work / "file").read_text() == "content\n"

    def test_keep(self, work: Path) -> None:
        """What is written is the caller's on the host."""
        self.in_work(work, "keep", self.CHANGES)
        assert sorted(os.listdir(work)) == ["moved", "new", "sub"]
        for name in ("new", "moved", "sub"):
            assert (work / name).stat().st_uid == os.geteuid()
        assert (work / "moved").read_text() == "content\nmore\n"

    def test_none(self, work: Path) -> None:
        """Everything can be read, nothing written."""
        out = self.in_work(work, "none", "cat file sub/deep; touch new; echo >> file")
        assert out.startswith("content\ndeep\n")
        assert out.count("Read-only file system") == 2

    def test_neighbours_are_hidden(self, work: Path) -> None:
        """In a private place only the working directory is there, with the directories above it."""
        (work.parent / "neighbour").touch()
        assert "neighbour" not in self.in_work(work, "discard", "ls -A ..")

    @pytest.mark.root
    @pytest.mark.parametrize("mode", ["discard", "keep", "none"])
    def test_other_user(self, work: Path, mode: str) -> None:
        """Files of the caller belong to the command's user, whoever that is, and what that user writes is the caller's."""
        os.chown(work / "sub", 1000, 1000)
        out = self.in_work(work, mode, "stat -c %u:%g . file sub; cat file; touch new && stat -c %u:%g new", user=(1000, 1001))
        assert out.split()[:4] == ["1000:1001", "1000:1001", "0:1000", "content"]
        if mode == "none":
            assert "Read-only" in out
        else:
            assert out.split()[-1] == "1000:1001"
        if mode == "keep":
            assert ((work / "new").stat().st_uid, (work / "new").stat().st_gid) == (0, 0)

    def test_missing(self, tmp_path: Path) -> None:
        """A working directory that is not there is an error that names it."""
        for mode in ("discard", "keep", "none"):
            with pytest.raises(SetupFailed) as caught:
                self.in_work(tmp_path / "absent", mode, "true")
            assert (caught.value.op, caught.value.target) == ("chdir", f"{tmp_path}/absent")

    def test_made_by_a_mount(self) -> None:
        """A working directory that only a mount brings is not looked for on the host."""
        done = isolib.run(["pwd"], cwd="/only/inside", mounts=[Tmpfs("/only/inside")])
        assert done.stdout == b"/only/inside\n"

    @pytest.mark.parametrize("mode", ["discard", "keep", "none"])
    def test_mounts_below(self, work: Path, mode: str) -> None:
        """Mounts below it come along, but no procfs, read-only unless kept; a user's overlay over them is refused."""
        (work / "processes").mkdir()
        code = (
            "import isolib\n"
            "try:\n"
            f"    print(isolib.run(['sh', '-c', 'cat sub/seen; ls -A p* sub/p*; echo > sub/new'], writable={mode!r}))\n"
            "except isolib.PlanError as error:\n"
            "    print('PlanError', error)\n"
        )
        options = ["--propagation", "private"] if IS_ROOT else ["--user", "--map-current-user", "--keep-caps"]
        script = "mount -t tmpfs -o mode=777 none sub; echo seen > sub/seen; mkdir sub/processes"
        if IS_ROOT:
            script += "; mount -t proc none processes; mount -t proc none sub/processes"
        script += '; exec "$0" -c "$1"'
        env = installed()
        argv = ["unshare", "--mount", *options, "sh", "-ec", script, sys.executable, code]
        done = subprocess.run(argv, env=env, cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if mode == "discard" and not IS_ROOT:
            assert "PlanError" in done.stdout
            assert "sub" in done.stdout
        else:
            assert "stdout=b'seen\\nprocesses:\\n\\nsub/processes:\\n'" in done.stdout
            assert ("Read-only file system" in done.stdout) == (mode != "keep")
