from __future__ import annotations

import contextlib
import copy
import errno
import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from functools import partial
from typing import TYPE_CHECKING

import pytest

from isolib._kernel import handle as module
from isolib._kernel.handle import Fd, Handle, Rollback, live
from isolib.errors import ClosedError
from tests.interrupts import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    Scenario = Callable[[list[str]], None]

ROOT = ("/", os.O_PATH | os.O_CLOEXEC)


class Thing(Handle, made_by="new_thing()"):
    """A handle with a descriptor and something that only Python code can undo."""

    def __init__(self, fd: int | Fd, log: list[str] | None = None) -> None:
        super().__init__(fd)
        self.log = [] if log is None else log

    def _describe(self) -> str:
        return "id=7"

    def _release(self) -> None:
        self.log.append("released while open" if not self._fds[0].closed else "released too late")


class Broken(Thing):
    """A handle whose release fails."""

    def _release(self) -> None:
        raise OSError(errno.EBUSY, "in use")


def root_fd() -> Fd:
    """Open the root directory."""
    fd = Fd.take(os.open, *ROOT)
    assert fd is not None
    return fd


def is_open(number: int) -> bool:
    """Say whether a number is a descriptor."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def descriptors() -> set[str]:
    """Return the numbers of all descriptors, the one for reading them included."""
    return set(os.listdir("/proc/self/fd"))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that shows every warning."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "always", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class TestFd:
    def test_take_owns_what_the_call_returns(self) -> None:
        """`take` returns the owner of the new descriptor, which closes it once."""
        fd = root_fd()
        number = fd.fileno()
        assert os.path.samestat(os.fstat(number), os.stat("/"))
        assert repr(fd) == f"<Fd {number}>"
        fd.close()
        fd.close()
        assert fd.closed
        assert not is_open(number)
        assert repr(fd) == "<Fd closed>"

    def test_take_of_a_failed_call(self) -> None:
        """An exception passes through `take`, and a negative number becomes None."""
        with pytest.raises(FileNotFoundError):
            Fd.take(os.open, "/nowhere", os.O_RDONLY)
        assert Fd.take([-1].pop) is None
        assert Fd.take([-22].pop) is None

    def test_take_all(self) -> None:
        """`take_all` owns every descriptor of a call that returns several, in order."""
        reader, writer = Fd.take_all(os.pipe2, os.O_CLOEXEC)
        with reader, writer:
            os.write(writer.fileno(), b"x")
            assert os.read(reader.fileno(), 1) == b"x"
        assert reader.closed
        assert writer.closed

    def test_dropping_closes_silently(self) -> None:
        """A dropped owner closes its descriptor without a warning, also as part of a cycle."""
        before = descriptors()
        loop: list[object] = [root_fd()]
        loop.append(loop)
        root_fd()
        del loop
        gc.collect()
        assert descriptors() == before

    def test_closed(self) -> None:
        """A closed owner has no number to give."""
        fd = root_fd()
        fd.close()
        with pytest.raises(ClosedError):
            fd.fileno()

    @pytest.mark.parametrize("number", [-1, -2, -(2**31)])
    def test_no_descriptor(self, number: int) -> None:
        """A negative number is no descriptor, and nothing is made for it."""
        before = descriptors()
        with pytest.raises(ValueError, match="not a descriptor"):
            Fd(number)
        assert descriptors() == before

    def test_threads_close_once(self) -> None:
        """Of many threads that close one owner, one closes the number, and no other descriptor is hit."""
        for _ in range(50):
            fd = root_fd()
            number = fd.fileno()
            barrier = threading.Barrier(4)

            def close(fd: Fd = fd, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                fd.close()

            threads = [threading.Thread(target=close) for _ in range(3)]
            for thread in threads:
                thread.start()
            barrier.wait()
            fd.close()
            reused = root_fd()  # takes the lowest number, often the one just closed
            for thread in threads:
                thread.join()
            assert is_open(reused.fileno())
            assert fd.closed
            assert reused.fileno() >= number
            reused.close()

    def test_without_epoll_in_select(self) -> None:
        """Where gevent has taken `epoll` out of the module `select`, descriptors are owned all the same."""
        result = run_python("""
            import os, select
            del select.epoll
            from isolib._kernel.handle import Fd
            with Fd(os.open("/", os.O_PATH)) as fd:
                number = fd.fileno()
                os.fstat(number)
            try:
                os.fstat(number)
            except OSError:
                print("closed", hasattr(select, "epoll"))
        """)
        assert (result.stdout, result.stderr) == ("closed False\n", "")


class TestHandle:
    def test_no_public_constructor(self) -> None:
        """A handle cannot be forged; the message names the function that makes one."""
        with pytest.raises(TypeError, match=r"Thing has no public constructor: use new_thing\(\)"):
            Thing(0)
        with pytest.raises(TypeError, match="use new_thing"):
            Broken(0)
        with pytest.raises(TypeError, match="use the functions of isolib"):
            Handle()

    def test_life(self) -> None:
        """A handle is open until it is closed, and says so."""
        thing = Thing._make(root_fd())
        number = thing.fileno()
        assert repr(thing) == f"<Thing id=7 fd={number}>"
        assert live() == (thing,)
        thing.close()
        thing.close()
        assert thing.closed
        assert repr(thing) == "<Thing id=7 closed>"
        assert thing.log == ["released while open"]
        assert not is_open(number)
        assert live() == ()
        with pytest.raises(ClosedError, match="<Thing id=7 closed> cannot be used any more"):
            thing.fileno()
        with pytest.raises(ClosedError):
            thing.__enter__()

    def test_block(self) -> None:
        """Leaving the block closes the handle."""
        with Thing._make(os.open(*ROOT)) as thing:
            assert not thing.closed
        assert thing.closed

    def test_without_descriptor(self) -> None:
        """A handle may own something else than descriptors."""
        with Handle._make() as handle:
            assert repr(handle) == "<Handle>"
            assert not handle.closed
            with pytest.raises(TypeError, match="has no descriptor"):
                handle.fileno()
        assert handle.closed

    def test_several_descriptors(self) -> None:
        """Descriptors that are adopted later are closed too, and the first one is what fileno() returns."""
        reader, writer = Fd.take_all(os.pipe2, os.O_CLOEXEC)
        with Thing._make(reader) as thing:
            thing._adopt(writer)
            assert thing.fileno() == reader.fileno()
        assert reader.closed
        assert writer.closed

    def test_forgotten(self) -> None:
        """A handle that nobody closed is closed and released with a warning that names it."""
        log: list[str] = []
        before = descriptors()
        thing = Thing._make(root_fd(), log)
        text = repr(thing)
        with pytest.warns(ResourceWarning, match=f"never closed: {text}"):
            del thing
        assert log == ["released while open"]
        assert descriptors() == before
        assert live() == ()

    def test_forgotten_in_a_cycle(self) -> None:
        """The garbage collector finds a forgotten handle too."""
        log: list[str] = []
        before = descriptors()
        thing = Thing._make(root_fd(), log)
        thing.__dict__["self"] = thing
        del thing
        with pytest.warns(ResourceWarning, match="never closed"):
            gc.collect()
        assert log == ["released while open"]
        assert descriptors() == before
        assert live() == ()

    def test_failed_constructor(self) -> None:
        """When a constructor fails its descriptors are closed, and nobody is told of a forgotten handle."""

        class Failing(Thing):
            def __init__(self, fd: Fd) -> None:
                super().__init__(fd)
                raise RuntimeError

        before = descriptors()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeError):
                Failing._make(root_fd())
            gc.collect()
        assert descriptors() == before
        assert live() == ()

    def test_failed_release(self) -> None:
        """What cannot be undone is raised once, and the descriptor is closed all the same."""
        broken = Broken._make(root_fd())
        with pytest.raises(OSError, match="in use"):
            broken.close()
        assert broken.closed
        broken.close()

    def test_failed_release_in_a_failed_block(self) -> None:
        """The exception of the block is the one that is raised; the failed release is a note of it."""
        with pytest.raises(LookupError) as caught, Broken._make(root_fd()):
            raise LookupError
        assert caught.value.__notes__ == ["and then could not be undone: OSError: [Errno 16] in use"]

    def test_close_from_within(self) -> None:
        """close() called by the release itself does nothing."""

        class Recursive(Thing):
            def _release(self) -> None:
                self.close()
                super()._release()

        with Recursive._make(root_fd()) as thing:
            pass
        assert thing.log == ["released while open"]

    def test_threads_release_once_and_all_wait(self) -> None:
        """Whichever thread closes first, the release runs once, and every close() returns after it."""
        started, finish = threading.Event(), threading.Event()

        class Slow(Thing):
            def _release(self) -> None:
                started.set()
                finish.wait(30)
                super()._release()

        thing = Slow._make(root_fd())
        seen: list[list[str]] = []

        def close() -> None:
            thing.close()
            seen.append(thing.log.copy())

        threads = [threading.Thread(target=close) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert started.wait(30)
        assert seen == []
        finish.set()
        for thread in threads:
            thread.join()
        assert seen == [["released while open"]] * 8

    def test_equal_handles(self) -> None:
        """Handles that compare equal are two all the same."""

        class Equal(Thing):
            def __eq__(self, other: object) -> bool:
                return isinstance(other, Equal)

            def __hash__(self) -> int:
                return 0

        with Equal._make(root_fd()) as one, Equal._make(root_fd()) as other:
            assert [id(handle) for handle in live()] == [id(one), id(other)]

    def test_no_copies(self) -> None:
        """A handle can be neither copied nor pickled."""
        with Thing._make(root_fd()) as thing:
            for copier in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled"):
                    copier(thing)


class TestForks:
    def test_copy_in_a_fork(self) -> None:
        """A fork's copy of a handle releases nothing and closes the fork's own descriptor, whatever locks are held."""
        result = run_python("""
            import os, threading, warnings
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # that we fork beside a thread is the test
            from isolib._kernel.handle import Handle, Fd, Rollback, live

            class Thing(Handle):
                def _release(self):
                    inside.set()
                    forked.wait()
                    print("released", flush=True)

            inside, forked = threading.Event(), threading.Event()
            thing = Thing._make(os.open("/", os.O_PATH))
            undo = Rollback()
            undo.push(print, "undone")
            number = thing.fileno()
            thread = threading.Thread(target=thing.close)
            thread.start()
            inside.wait()
            pid = os.fork()  # while the thread holds the lock
            if not pid:
                assert not thing.is_ours and live() == (), live()
                assert repr(thing) == f"<Thing fd={number} of process {os.getppid()}>", repr(thing)
                undo.unwind()
                thing.close()
                thing.close()
                try:
                    os.fstat(number)
                except OSError:
                    print("child closed its copy", flush=True)
                own = Thing._make(os.open("/", os.O_PATH))
                assert live() == (own,)
                forked.set()
                own.close()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            os.fstat(number)
            forked.set()
            thread.join()
            undo.unwind()
        """)
        assert (result.stdout, result.stderr) == ("child closed its copy\nreleased\nreleased\nundone\n", "")

    def test_forgotten_in_a_fork(self) -> None:
        """A fork that drops its copy of a handle neither releases nor complains."""
        result = run_python("""
            import os
            from isolib._kernel.handle import Handle

            class Thing(Handle):
                def _release(self):
                    print("released", flush=True)

            thing = Thing._make(os.open("/", os.O_PATH))
            pid = os.fork()
            if not pid:
                del thing
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            thing.close()
        """)
        assert (result.stdout, result.stderr) == ("released\n", "")

    @pytest.mark.root
    def test_same_pid_in_another_pid_namespace(self) -> None:
        """A fork is told from its parent also where both are PID 1, each of its own namespace."""
        result = run_python("""
            import ctypes, os
            from isolib._kernel.handle import Handle

            def fork_into_new_pidns():
                assert ctypes.CDLL(None, use_errno=True).unshare(0x20000000) == 0
                return os.fork()

            def wait(pid):
                os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

            if pid := fork_into_new_pidns():
                wait(pid)
            thing = Handle._make(os.open("/", os.O_PATH))
            print(os.getpid(), thing.is_ours, flush=True)
            if pid := fork_into_new_pidns():
                wait(pid)
            print(os.getpid(), thing.is_ours, flush=True)
            os._exit(0)
        """)
        assert (result.stdout, result.stderr) == ("1 True\n1 False\n", "")


@pytest.mark.parametrize(
    "more",
    [
        "pass",
        "sys.modules['elsewhere'] = loop",
        "sys.kept = thing",
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    ],
)
def test_end_of_the_interpreter_is_quiet(more: str) -> None:
    """Handles that are left at the end of the program make no noise, wherever they hang, and undo nothing so late."""
    result = run_python(f"""
        import os, sys, threading
        from isolib._kernel.handle import Handle, Fd, Rollback

        class Thing(Handle):
            def _release(self):
                print("released")

        thing = Thing._make(os.open("/", os.O_PATH))
        loop = Thing._make(os.open("/", os.O_PATH))
        loop.self = loop
        fd = Fd(os.open("/", os.O_PATH))
        undo = Rollback()
        undo.push(print, "undone")
        {more}
    """)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def undo_after(*steps: Callable[[], object], error: type[Exception] | None = None, keep: bool = False) -> None:
    """Push steps in a block that succeeds, or ends with an error."""
    with Rollback() as undo:
        for step in steps:
            undo.push(step)
        if keep:
            undo.keep()
        if error is not None:
            raise error


class TestRollback:
    def test_order(self) -> None:
        """Steps are undone at the end of the block, the last first."""
        log: list[str] = []
        with Rollback() as undo:
            undo.push(log.append, "first")
            undo.push(log.append, "second")
            assert len(undo) == 2
        assert log == ["second", "first"]

    def test_failed_block(self) -> None:
        """Steps are undone when the block fails."""
        log: list[str] = []
        with pytest.raises(LookupError):
            undo_after(partial(log.append, "undone"), error=LookupError)
        assert log == ["undone"]

    def test_adopt(self) -> None:
        """An adopted descriptor is closed."""
        with Rollback() as undo:
            fd = undo.adopt(root_fd())
            thing = undo.adopt(Thing._make(root_fd()))
        assert fd.closed
        assert thing.closed

    def test_dismiss(self) -> None:
        """After dismiss() nothing is undone."""
        log: list[str] = []
        with Rollback() as undo:
            undo.push(log.append, "undone")
            undo.dismiss()
        assert log == []

    def test_keep(self) -> None:
        """After keep() a block that succeeds undoes nothing, and unwind() does it later."""
        log: list[str] = []
        with Rollback() as undo:
            undo.push(log.append, "undone")
            undo.keep()
        assert log == []
        undo.unwind()
        undo.unwind()
        assert log == ["undone"]

    def test_keep_in_a_failed_block(self) -> None:
        """After keep() a block that fails undoes everything all the same: nobody has got the result."""
        log: list[str] = []
        with pytest.raises(LookupError):
            undo_after(partial(log.append, "undone"), error=LookupError, keep=True)
        assert log == ["undone"]

    def test_one_error(self) -> None:
        """The error of one step is raised when the other steps are done."""
        log: list[str] = []
        with pytest.raises(ZeroDivisionError):
            undo_after(partial(log.append, "undone"), partial(divmod, 1, 0))
        assert log == ["undone"]

    def test_several_errors(self) -> None:
        """The errors of several steps are raised together."""
        with pytest.raises(ExceptionGroup) as caught:
            undo_after(partial(divmod, 1, 0), partial(int, "x"))
        assert [type(error) for error in caught.value.exceptions] == [ValueError, ZeroDivisionError]

    def test_errors_in_a_failed_block(self) -> None:
        """The exception of the block stays the one that is raised, with the errors of the steps as notes."""
        with pytest.raises(LookupError) as caught:
            undo_after(partial(divmod, 1, 0), error=LookupError)
        (note,) = caught.value.__notes__
        assert note.startswith("and then could not be undone: ZeroDivisionError: ")

    def test_interrupted_step(self) -> None:
        """An interrupted step is run again, the others after it, and then the interrupt is raised."""
        log: list[str] = []

        def step() -> None:
            log.append("step")
            if log.count("step") == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            undo_after(partial(log.append, "first"), step, partial(divmod, 1, 0))
        assert log == ["step", "step", "first"]
        assert "ZeroDivisionError" in caught.value.__notes__[0]

    def test_second_interrupt(self) -> None:
        """A second interrupt ends the undoing; what is left is undone when the object goes."""
        log: list[str] = []

        def step() -> None:
            log.append("step")
            if log.count("step") <= 2:
                raise KeyboardInterrupt

        undo = Rollback()
        undo.push(log.append, "first")
        undo.push(step)
        with pytest.raises(KeyboardInterrupt):
            undo.unwind()
        assert log == ["step", "step"]
        del undo
        gc.collect()
        assert log == ["step", "step", "step", "first"]


# What happens when an interrupt comes. A scenario is run with an interrupt at its first point, its second, and so on.


def life_of_a_descriptor(log: list[str]) -> None:
    """Take and close descriptors."""
    with root_fd() as fd:
        assert not fd.closed
    fd.close()
    reader, writer = Fd.take_all(os.pipe2, os.O_CLOEXEC)
    writer.close()
    reader.close()


def life_of_a_handle(log: list[str]) -> None:
    """Make, use and close a handle."""
    with Thing._make(root_fd(), log) as thing:
        log.append("due: released while open")
        thing._adopt(root_fd())
    thing.close()


def life_of_a_rollback(log: list[str]) -> None:
    """Undo steps of several kinds."""
    with Rollback() as undo:
        undo.adopt(root_fd())
        undo.push(log.append, "first")
        log.append("due: first")
        undo.adopt(root_fd())
        undo.push(log.append, "second")
        log.append("due: second")


class Composite(Handle):
    """A handle that is built of several things."""

    def __init__(self, undo: Rollback) -> None:
        super().__init__()
        self.undo = undo

    def _release(self) -> None:
        self.undo.unwind()


def new_composite(log: list[str]) -> Composite:
    """Make a handle of several things."""
    with Rollback() as undo:
        undo.adopt(root_fd())
        undo.push(log.append, "undone")
        log.append("due: undone")
        undo.adopt(Thing._make(root_fd(), log))
        log.append("due: released while open")
        composite = Composite._make(undo)
        undo.keep()
        return composite


def life_of_a_composite(log: list[str]) -> None:
    """Make and close a handle of several things."""
    with new_composite(log):
        pass


def failed_composite(log: list[str]) -> None:
    """Fail to make one, with a step that fails too."""
    with contextlib.suppress(LookupError), Rollback() as undo:
        undo.push(log.append, "undone")
        log.append("due: undone")
        undo.push(divmod, 1, 0)
        undo.adopt(root_fd())
        raise LookupError


SCENARIOS: tuple[Scenario, ...] = (
    life_of_a_descriptor,
    life_of_a_handle,
    life_of_a_rollback,
    life_of_a_composite,
    failed_composite,
)


def is_ours(code: CodeType) -> bool:
    """Return whether this is code of the module that is tested, or of a scenario."""
    return code.co_filename in (module.__file__, __file__)


def check_nothing_left(log: list[str], before: set[str]) -> None:
    """Fail if a descriptor is open, or a step that was due was not run."""
    gc.collect()
    assert descriptors() == before
    assert live() == ()
    due = [line.removeprefix("due: ") for line in log if line.startswith("due: ")]
    done = [line for line in log if not line.startswith("due: ")]
    assert set(due) <= set(done), log
    assert "released too late" not in done


@pytest.fixture(params=SCENARIOS)
def scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """Run the test with each scenario; forgotten handles are not worth a warning here, for they are the point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.freeze()  # so that thousands of collections look only at what the scenario made
        yield request.param
        gc.unfreeze()


def test_interrupt_at_every_point(scenario: Scenario, lost: list[type[BaseException]]) -> None:
    """Wherever an interrupt comes, every descriptor is closed, and every step that is due is undone."""
    before = descriptors()
    turn, interrupted = 0, True
    while interrupted:
        turn += 1
        log: list[str] = []
        interrupted = interrupt(turn, partial(scenario, log), is_ours) == 0
        check_nothing_left(log, before)
    assert turn > 10
    assert set(lost) <= {KeyboardInterrupt, ZeroDivisionError}


def test_interrupt_by_a_signal(scenario: Scenario, lost: list[type[BaseException]]) -> None:
    """The same with true signals at random times."""
    before = descriptors()
    choose = random.Random(7)  # noqa: S311 -- not a secret
    armed = False

    def interrupt_once(_: int, __: object) -> None:
        # The kernel may deliver the signal of a timer that was just cancelled.
        if armed:
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt_once)
    try:
        for _ in range(200):
            log: list[str] = []
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(5e-6, 150e-6))
                scenario(log)
                armed = False
            except KeyboardInterrupt:
                armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            check_nothing_left(log, before)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert set(lost) <= {KeyboardInterrupt, ZeroDivisionError}


def test_interrupt_in_a_finalizer(lost: list[type[BaseException]]) -> None:
    """Python loses an interrupt that comes in a finalizer; the descriptors of a forgotten handle are closed all the same."""
    before = descriptors()
    things: list[Thing] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        turn, interrupted = 0, True
        while interrupted:
            turn += 1
            things.append(Thing._make(root_fd()))
            interrupted = interrupt(turn, things.clear, is_ours) == 0
            gc.collect()
            assert descriptors() == before
    assert lost == [KeyboardInterrupt] * (turn - 1)
    assert turn > 5
