"""Who owns what, and how it is given back.

`Fd` owns one descriptor, `Handle` is the base of every public object that owns something, and `Rollback` undoes what was
done when something later fails.

Interrupts. Python raises KeyboardInterrupt between any two byte codes of the main thread, also inside a finalizer, where
it is printed and lost together with the rest of the finalizer. So nothing here relies on two byte codes being run together:

- A descriptor is taken from the kernel, and closed, within *one* call of a C function, and when nobody closes it the
  deallocation of a C object does. No Python code runs there, so there is nothing to interrupt (see `Fd`).
- What needs Python code to be undone stays recorded until that code has ended. The first interrupt does not end a
  release; it is raised when the release is complete. A second one does, and leaves the rest to the descriptors.
- The one point that Python gives nobody a hold on is the entry into `close` or `__exit__` itself. Interrupted there, the
  object is as open as before: it can be closed again, and its finalizer will.

Forks. A copy that os.fork made owns nothing: closing it closes the child's own descriptors and undoes nothing of what the
parent still uses. No lock is taken for that: in the child, nobody might be left to release it.
"""

from __future__ import annotations

import os
import select
import sys
import warnings
import weakref
from functools import partial
from importlib.util import find_spec, module_from_spec
from itertools import chain, starmap
from threading import Lock, RLock
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from isolib.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Protocol, Self

    class _Owner(Protocol):
        """What owns a descriptor, as `select.epoll` does; its ``fileno`` raises ValueError when it is closed."""

        @property
        def closed(self) -> bool: ...

        def fileno(self) -> int: ...

        def close(self) -> None: ...


__all__ = ["Epoll", "Fd", "Handle", "Rollback", "live"]

OwnerT = TypeVar("OwnerT", bound="Fd | Handle")


def _owner_type() -> type[select.epoll]:
    """Return the C type that owns a descriptor number, whatever the descriptor is.

    `select.epoll.fromfd` checks nothing and asks the kernel nothing. What it returns closes the number once, in one C
    call, and in its deallocation: the standard library has no other type that does this for directories, pidfds and mounts
    as well.
    """
    if hasattr(select, "epoll"):
        return select.epoll
    # gevent.monkey takes it out of the module. Another instance of the module has it still.
    spec = find_spec("select")
    if spec is None or spec.loader is None:
        raise ImportError("the module 'select' has neither epoll nor a loader", name="select")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    owner: type[select.epoll] = module.epoll
    return owner


#: `select.epoll`, wherever it is: an object of it owns its descriptor, as an `Fd` does.
Epoll: Final = _owner_type()
_own = Epoll.fromfd
_is_number = (-1).__lt__  # of a descriptor; compares in C, where a lambda would be a place to be interrupted at


class _Registry:
    """The one piece of global state: which handles are live in this process.

    Every operation on it is one C call, so the interpreter is its lock. A lock of our own would deadlock: finalizers come
    here, and the garbage collector runs them in any thread at any allocation, also in the thread that holds the lock.
    """

    def __init__(self) -> None:
        # By id: handles may compare equal, as two for the same namespace do.
        self.handles: dict[int, weakref.ref[Handle]] = {}
        self.forks: list[None] = []
        os.register_at_fork(after_in_child=partial(self.forks.append, None))

    def home(self) -> tuple[int, int]:
        """Return what tells this process from its forks.

        The pid alone does not: PID 1 that forks into a new pid namespace has a child that is PID 1 too. The count alone
        does not: a fork in C code does not run Python's hooks.
        """
        return os.getpid(), len(self.forks)

    def add(self, handle: Handle) -> None:
        """Remember a handle until it is closed or gone."""
        key = id(handle)
        # Called with the reference, which thus is the default of pop: no Python code.
        self.handles[key] = weakref.ref(handle, partial(self.handles.pop, key))

    def remove(self, handle: Handle) -> None:
        """Forget a handle."""
        self.handles.pop(id(handle), None)


_registry = _Registry()

#: What tells this process from its forks, for things that are no `Handle`.
home: Final = _registry.home


def live() -> tuple[Handle, ...]:
    """Return the handles of this process that are open, oldest first."""
    handles = (reference() for reference in _registry.handles.copy().values())
    return tuple(handle for handle in handles if handle is not None and handle.is_ours and not handle.closed)


def _raise_all(errors: list[Exception], message: str) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(message, errors)


class Fd:
    """One descriptor and its only owner.

    It is closed by `close`, and otherwise, silently, when this object goes: an `Fd` is what functions pass to each other,
    and dropping it is how they give up. What users get is a `Handle`, which complains.

    Parameters
    ----------
    fd
        The number. Whoever called it his own must forget it. Better is `take`, where it never was a mere number.
    """

    __slots__ = ("__weakref__", "_owner")

    def __init__(self, fd: int) -> None:
        # fromfd(-1) would make a new epoll descriptor.
        if not _is_number(fd):
            raise ValueError(f"not a descriptor: {fd}")
        self._owner: _Owner = _own(fd)

    @classmethod
    def take(cls, call: Callable[..., int], /, *args: object) -> Self | None:
        """Call a C function that returns a new descriptor, and own it before anything else can happen.

        Parameters
        ----------
        call
            A function *implemented in C*: of the extension, or of `os`. With a Python function everything works but the
            protection from interrupts inside that function.
        *args
            Its arguments.

        Returns
        -------
        Fd or None
            None when the function returned a negative number.

        Examples
        --------
        >>> with Fd.take(os.open, "/", os.O_PATH | os.O_CLOEXEC) as root:
        ...     os.path.samestat(os.fstat(root.fileno()), os.stat("/"))
        True
        """
        owner = next(map(_own, filter(_is_number, starmap(call, (args,)))), None)
        return None if owner is None else cls.held(owner)

    @classmethod
    def take_all(cls, call: Callable[..., Iterable[int]], /, *args: object) -> tuple[Self, ...]:
        """As `take`, for a C function that returns several: `os.pipe2`, `os.openpty`."""
        return tuple(map(cls.held, list(map(_own, chain.from_iterable(starmap(call, (args,)))))))

    @classmethod
    def held(cls, owner: _Owner) -> Self:
        """Return the descriptor of an owner that has it already, and closes it in one call of a C function, or when it goes."""
        self = cls.__new__(cls)
        self._owner = owner
        return self

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._owner.closed

    def fileno(self) -> int:
        """Return the number, which stays this object's.

        Raises
        ------
        ClosedError
            It was closed.
        """
        try:
            return self._owner.fileno()
        except ValueError:
            raise ClosedError("this descriptor is closed") from None

    def close(self) -> None:
        """Close it; again is nothing.

        Raises
        ------
        OSError
            close(2) failed. The number is free all the same.
        """
        self._owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<Fd closed>" if self.closed else f"<Fd {self.fileno()}>"


class Rollback:
    """What to undo when something fails, the last first; `contextlib.ExitStack`, but never leaving a step out.

    Used in a `with` block: whatever was pushed when the block ends is undone, unless `keep` or `dismiss` said otherwise.
    The steps go on when one fails or is interrupted, and a step that was interrupted is run again. So **a step must bear
    being run twice**, as the close() of every handle does.

    The exception that ended the block stays the one that is raised, and errors of the steps become notes of it. Without
    one, the error of a step is raised, or an ExceptionGroup of several. One thread at a time may use it.

    Examples
    --------
    >>> with Rollback() as undo:
    ...     fd = undo.adopt(Fd(os.open("/", os.O_RDONLY)))
    ...     undo.push(print, "undone")
    undone
    >>> fd.closed
    True
    """

    def __init__(self) -> None:
        self._home = _registry.home()
        self._steps: list[Callable[[], object]] = []
        self._kept = False

    def __len__(self) -> int:
        return len(self._steps)

    def push(self, step: Callable[..., object], /, *args: object) -> None:
        """Add a step, a function and its arguments; best before what it undoes is done."""
        self._steps.append(partial(step, *args))

    def adopt(self, owner: OwnerT) -> OwnerT:
        """Add the closing of a descriptor or a handle, and return it."""
        self.push(owner.close)
        return owner

    def dismiss(self) -> None:
        """Forget all steps: everything has succeeded, and somebody else owns it now."""
        self._steps.clear()

    def keep(self) -> None:
        """Do nothing at the end of the block if that succeeds: a handle has this object now, and will `unwind` it."""
        self._kept = True

    def unwind(self) -> None:
        """Undo all that is left.

        Raises
        ------
        Exception
            The error of the one step that failed, or an ExceptionGroup of several.
        """
        self._kept = False
        self.__exit__(None, None, None)

    def _drain(self, errors: list[Exception]) -> None:
        while self._steps:
            # A step goes when it has ended. Interrupted anywhere here, it is still there.
            try:
                self._steps[-1]()
            except Exception as error:  # noqa: BLE001 -- raised when the other steps are done
                errors.append(error)
            del self._steps[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._kept and error is None:
            return
        errors: list[Exception] = []
        try:
            if self._home != _registry.home():
                self.dismiss()
            self._drain(errors)
        except BaseException as interrupt:
            # From a signal handler: it came between two steps, or in one. The second of them ends this too.
            self._drain(errors)
            _add_notes(interrupt, errors)
            raise
        if error is None:
            _raise_all(errors, "several steps could not be undone")
        else:
            _add_notes(error, errors)

    def __del__(self) -> None:
        # Only left over when an interrupt hit the very entry of __exit__. At the end of the interpreter the kernel and
        # the reaper clean up, and modules may be gone. (An interrupted __init__ leaves no list.)
        if getattr(self, "_steps", None) and not sys.is_finalizing():
            self.unwind()


def _add_notes(error: BaseException, errors: list[Exception]) -> None:
    for each in errors:
        error.add_note(f"and then could not be undone: {type(each).__name__}: {each}")


class _Sealed(type):
    """The class of classes that only isolib makes instances of: what a handle says is true, for nobody forged it."""

    _made_by = "the functions of isolib"

    def __call__(cls, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"{cls.__name__} has no public constructor: use {cls._made_by}")


class Handle(metaclass=_Sealed):
    """The base of every object that owns something of the kernel's.

    A subclass says `class NetNS(Handle, made_by="new_netns() or open_netns()")` and is constructed by `NetNS._make(...)`,
    whose arguments go to `__init__`. That hands the descriptors to `Handle.__init__`, the main one first. Everything else
    that it owns is undone by overriding `_release`.

    Parameters
    ----------
    *fds
        The descriptors that it owns from now on.
    """

    # Until `_make` is done, and for good when __init__ fails: nothing to release, and nothing to complain about.
    _in_service = False
    _released = False

    def __init_subclass__(cls, *, made_by: str = "") -> None:
        super().__init_subclass__()
        if made_by:
            cls._made_by = made_by

    def __init__(self, *fds: int | Fd) -> None:
        self._home = _registry.home()
        self._closing = RLock()  # a second thread waits: when its close() returns, everything is released
        self._inside = Lock()  # held while _release runs
        self._fds: list[Fd] = []
        for fd in fds:
            self._adopt(fd)

    @classmethod
    def _make(cls, *args: object, **kwargs: object) -> Self:
        """Construct a handle and put it into service, or raise and leave nothing."""
        handle: Self = type.__call__(cls, *args, **kwargs)
        handle._in_service = True
        _registry.add(handle)
        return handle

    def _adopt(self, fd: int | Fd) -> Fd:
        """Own one more descriptor: it is closed with this object, before those that were adopted earlier."""
        owned = fd if isinstance(fd, Fd) else Fd(fd)
        self._fds.append(owned)
        return owned

    def _release(self) -> None:
        """Undo what no descriptor owns; for subclasses, by default nothing.

        Called once, in the process that made the object, while its descriptors are still open. Only when it was interrupted
        is it called again from the start, so each part must bear being done twice: `Rollback.unwind` is the natural body.
        What it raises, close() raises; the descriptors are closed all the same.
        """

    def _describe(self) -> str:
        """Return what names this object in its `repr`; for subclasses. No system call, for it may be closed."""
        return ""

    @property
    def is_ours(self) -> bool:
        """Whether this process made it; not so in a fork of that process, where closing it does nothing."""
        return self._home == _registry.home()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._released or (bool(self._fds) and self._fds[0].closed)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"{self!r} cannot be used any more")

    def fileno(self) -> int:
        """Return the number of the main descriptor, which stays this object's.

        Raises
        ------
        ClosedError
            The object was closed.
        TypeError
            An object of this kind has no descriptor.
        """
        if not self._fds or self._released or self._fds[0].closed:
            self._check_open()
            raise TypeError(f"{self!r} has no descriptor")
        return self._fds[0].fileno()

    def close(self) -> None:
        """Give everything back; again is nothing. In a fork, close the child's copies of the descriptors only.

        It returns when everything is released, also when another thread began it. An interrupt (KeyboardInterrupt) is
        raised after that.

        Raises
        ------
        Exception
            What could not be undone, an ExceptionGroup when several things. The object is closed all the same.
        """
        if not self.is_ours:
            self._drop()
            return
        with self._closing:
            if self._inside.locked():  # called by _release, or by a signal handler in the midst of it
                return
            if self._released:
                self._drop()
                return
            try:
                with self._inside:
                    self._release()
            except BaseException as error:
                # An Exception is what _release has to say. Anything else came from a signal handler, perhaps even before
                # the first line of _release. (`with` on a lock is C code: it is never left locked.)
                if not isinstance(error, Exception):
                    with self._inside:
                        self._release()
                raise
            finally:
                self._released = True
                _registry.remove(self)
                self._drop()

    def _drop(self) -> None:
        errors: list[Exception] = []
        for fd in reversed(self._fds):
            try:
                fd.close()
            except OSError as error:
                errors.append(error)
        _raise_all(errors, "several descriptors could not be closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            # What went wrong first is what the caller handles.
            _add_notes(error, [failure])

    def __del__(self) -> None:
        # At the end of the interpreter the kernel and the reaper clean up, and modules may be gone.
        if not self._in_service or self._released or sys.is_finalizing() or not self.is_ours:
            return
        text = repr(self)
        try:
            self.close()
        finally:
            warnings.warn(f"never closed: {text}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        words = [type(self).__name__]
        if description := self._describe():
            words.append(description)
        if self.closed:
            words.append("closed")
        elif self._fds:
            words.append(f"fd={self._fds[0].fileno()}")
        if not self.is_ours:
            words.append(f"of process {self._home[0]}")
        return f"<{' '.join(words)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: it belongs to the process that made it")
