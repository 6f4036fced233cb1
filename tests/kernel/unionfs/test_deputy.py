"""The deputy: a Python in a user namespace, which does for an ordinary user what he may not do himself."""

from __future__ import annotations

import errno
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import GoneError, IsolibError, SyscallError
from isolib._kernel import calls
from isolib._kernel.handle import Fd, home
from isolib._kernel.procfs import parse_id_map
from isolib.unionfs import stacking
from isolib.unionfs.deputy import _deputies, deputy
from tests.interrupts import interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from isolib.unionfs.deputy import Deputy

pytestmark = pytest.mark.usefixtures("user_namespaces")


@pytest.fixture
def there() -> Iterator[Deputy]:
    """Return a deputy, which ends with the test."""
    found = deputy("root")
    yield found
    found.end()


def pid_of(found: Deputy) -> int:
    """Return its process id."""
    return found.call(os.getpid)


def test_it_is_root_of_a_user_namespace(there: Deputy) -> None:
    """It is another process, in other user and mount namespaces, where it has all capabilities and is this user outside."""
    assert pid_of(there) != os.getpid()
    assert there.call(os.geteuid) == 0
    for kind in ("user", "mnt"):
        assert there.call(os.readlink, f"/proc/self/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    with there.call(stacking.open_directory, "/proc/self") as own:
        assert os.fstat(own.fileno()).st_uid == os.geteuid()
        file = os.open("uid_map", os.O_RDONLY, dir_fd=own.fileno())
        (one,) = parse_id_map(os.read(file, 100))
        os.close(file)
        assert (one.inside, one.outside, one.count) == (0, os.geteuid(), 1)


def test_one_for_all_calls(there: Deputy) -> None:
    """It is started once, and serves every call and every thread."""
    with ThreadPoolExecutor(8) as pool:
        pids = set(pool.map(lambda _: pid_of(there), range(64)))
    assert len(pids) == 1
    assert deputy("root") is there


def test_calls_do_not_wait_for_each_other(there: Deputy, tmp_path: Path) -> None:
    """A call that takes long keeps no other one waiting."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(there.call(Path.read_bytes, fifo)))
    thread.start()
    assert pid_of(there)
    assert not found
    fifo.write_bytes(b"now")
    thread.join()
    assert found == [b"now"]


def test_descriptors_go_both_ways(there: Deputy) -> None:
    """A descriptor within an argument arrives as one for the same file, and so does one within a result."""
    with Fd(os.memfd_create("memory")) as memory, there.call(dict, {"deep": [memory]})["deep"][0] as back:
        os.write(memory.fileno(), b"text")
        assert os.pread(back.fileno(), 10, 0) == b"text"
        assert back.fileno() != memory.fileno()
        assert not os.get_inheritable(back.fileno())


def test_many_descriptors(there: Deputy) -> None:
    """Hundreds of descriptors go in one call, and all are there."""
    many = [Fd(os.dup(0)) for _ in range(400)]
    back = there.call(list, many)
    assert len({one.fileno() for one in back}) == 400


def test_large_values(there: Deputy) -> None:
    """A value may be larger than a socket has room for."""
    data = os.urandom(5_000_000)
    assert there.call(bytes.upper, data) == data.upper()


def test_exceptions(there: Deputy) -> None:
    """What a function raises there is raised here, with its attributes, and with its traceback as a note."""
    with pytest.raises(SyscallError) as caught:
        there.call(stacking.open_directory, "/absent")
    assert (caught.value.errno, caught.value.target) == (errno.ENOENT, "/absent")
    assert "open_directory" in caught.value.__notes__[0]
    with pytest.raises(ZeroDivisionError):
        there.call(divmod, 1, 0)


def test_what_cannot_be_sent(there: Deputy) -> None:
    """An argument or a result that cannot be pickled is an error, and the next call works."""
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        there.call(lambda: None)
    with pytest.raises(IsolibError, match="cannot be sent"):
        there.call(threading.Lock)
    assert pid_of(there)


def test_a_killed_one_is_replaced(there: Deputy) -> None:
    """Who is killed during a call is gone, which the call tells; the next one has another."""
    first = pid_of(there)
    with pytest.raises(GoneError):
        there.call(os.kill, first, signal.SIGKILL)
    assert pid_of(there) != first


def test_it_ends_with_its_host() -> None:
    """When the process is killed, its deputy ends, whatever it is doing."""
    program = (
        "import os, signal\nfrom isolib.unionfs.deputy import deputy\n"
        "print(deputy('root').call(os.getpid), flush=True)\nsignal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        pidfd = os.pidfd_open(int(host.stdout.readline()))
        host.kill()
    with Fd(pidfd) as gone:
        assert select.select([gone], [], [], 10)[0]


def test_normal_end() -> None:
    """A program that ends says nothing of its deputy, and leaves none."""
    program = "import os\nfrom isolib.unionfs.deputy import deputy\nprint(deputy('root').call(os.getpid))"
    found = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stderr == ""
    assert not os.path.exists(f"/proc/{int(found.stdout)}")


def test_fork(there: Deputy) -> None:
    """A fork of the process has a deputy of its own, and leaves the other as it is."""
    first = pid_of(there)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        own = deputy("root")
        os.write(write, str(pid_of(own)).encode())
        own.end()
        there.end()
        os._exit(0)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert int(os.read(read, 100)) != first
    os.close(read)
    assert pid_of(there) == first


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # which closes itself all the same
def test_interrupts(there: Deputy) -> None:
    """Wherever an interrupt comes, it ends the call, leaves no descriptor, and the next call works."""
    pid_of(there)

    def counts(code: CodeType) -> bool:
        return "/unionfs/" in code.co_filename

    turn = 1
    while not interrupt(turn, lambda: there.call(stacking.open_directory, "/").close(), counts):
        turn += 1
    assert turn > 10
    assert pid_of(there)


def test_a_mount_outlives_it(there: Deputy) -> None:
    """A mount that a deputy has made outlives it, for it belongs to who has the descriptor."""
    with there.call(calls.new_stack, "tmpfs", (("size", "64k"),)) as made:
        there.end()
        os.mkdir("made", dir_fd=made.fileno())
        assert os.listdir(f"/proc/self/fd/{made.fileno()}") == ["made"]


@pytest.mark.root
def test_it_follows_the_mounts_of_its_host(there: Deputy, tmp_path: Path) -> None:
    """What is mounted on a shared mount after it was started is seen by it, and what is unmounted is not kept busy by it."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        subprocess.run(["mount", "--make-shared", tmp_path], check=True)
        (tmp_path / "later").mkdir()
        pid_of(there)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "later"], check=True)
        (tmp_path / "later/file").touch()
        assert there.call(os.listdir, tmp_path / "later") == ["file"]
        subprocess.run(["umount", tmp_path / "later"], check=True)
        assert there.call(os.listdir, tmp_path / "later") == []
    finally:
        subprocess.run(["umount", "-R", tmp_path], check=True)


def test_forms() -> None:
    """There is one deputy for each id map, and by default the one with all ids that the user may have."""
    assert deputy("root") is not deputy("auto")
    assert deputy().id_map in {"auto", "root"}
    assert {key[0] for key in _deputies if key[0] == home()} == {home()}
