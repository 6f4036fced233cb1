"""What can be done with every namespace; `kinds` has the class of each kind."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar, Final, Generic, ParamSpec, TypeVar, cast

from isolib._kernel import assembly, calls, seam
from isolib._kernel.handle import Handle, Rollback
from isolib.errors import GoneError, PermissionDenied, PlanError, SyscallError, Unsupported, from_errno
from isolib.namespaces import pin
from isolib.namespaces.enter import Stays, outside
from isolib.namespaces.thread import Resident
from isolib.types import check_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

    from isolib._kernel.handle import Fd
    from isolib._kernel.seam import Process
    from isolib.namespaces.held import Held
    from isolib.namespaces.kinds import UserNS

__all__ = ["CLASSES", "Entered", "Namespace"]

P = ParamSpec("P")
R = TypeVar("R")
NamespaceT = TypeVar("NamespaceT", bound="Namespace")


CLASSES: Final[dict[str, type[Namespace]]] = {}
"""By kind."""


class Entered(Generic[NamespaceT]):
    """A stay of the calling thread in a namespace, made by `Namespace.entered`: the value of the `with` block is the handle.

    It may be entered again while it is inside, and by several threads, each for itself.
    """

    def __init__(self, namespace: NamespaceT) -> None:
        self._namespace = namespace
        self._stays = Stays()

    def __enter__(self) -> NamespaceT:
        self._namespace._enter(self._stays)  # noqa: SLF001 -- its other half
        return self._namespace

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stays.leave(error)


class Namespace(Handle, made_by="isolib.new_netns() and the like, or isolib.open_netns() and the like"):
    """A namespace, kept alive by a descriptor for as long as this handle is open.

    Two handles are equal when they are for the same namespace. `with` closes the handle at the end; for the kinds that a
    thread can enter and leave (net, uts, ipc, cgroup) the calling thread is inside meanwhile, as `entered` describes.

    Attributes
    ----------
    kind
        ``"net"``, ``"uts"``, ``"ipc"``, ``"cgroup"``, ``"mnt"``, ``"pid"``, ``"user"`` or ``"time"``, as in /proc/PID/ns.
    id
        The number that the kernel shows for it: 4026531840 in ``net:[4026531840]``. No other namespace has it as long as
        this one lives.
    made_here
        Whether isolib made it for this handle, so that it dies with it unless it is pinned, or somebody is inside.

    Notes
    -----
    Sources: namespaces(7), setns(2), ioctl_nsfs(2).
    """

    kind: ClassVar[str]
    id: int
    made_here: bool

    # Why a thread cannot, and what can be done instead; "" where it can.
    _entry_refused_by: ClassVar[str] = ""
    _life_refused_by: ClassVar[str] = ""
    _instead: ClassVar[str] = "spawn() starts a program inside"

    def __init_subclass__(cls, *, made_by: str = "") -> None:
        super().__init_subclass__(made_by=made_by)
        CLASSES[cls.kind] = cls

    def __init__(
        self,
        fd: Fd,
        *,
        identity: tuple[int, int] | None = None,
        owner: UserNS | None = None,
        process: Held | None = None,
        place: str | None = None,
        room: Fd | None = None,
        made_here: bool = False,
    ) -> None:
        super().__init__(fd)
        self.made_here = made_here
        if identity is None:
            status = os.fstat(fd.fileno())
            identity = (status.st_dev, status.st_ino)
        self._identity = identity
        self.id = identity[1]
        self._label = f"{self.kind}:[{self.id}]"
        self._owner = owner
        self._room = room  # what owns it is there for the next one, too, as long as this is open
        self._process = process
        self._places = [] if place is None else [place]
        self._stays = Stays()
        self._resident: Resident | None = None

    def _release(self) -> None:
        self._room = None
        if not (self._resident or self._owner or self._process):
            return
        with Rollback() as undo:
            if self._process is not None:
                undo.push(self._process.end)
            if self._owner is not None:
                undo.adopt(self._owner)
            if self._resident is not None:
                undo.push(self._resident.close)

    def _describe(self) -> str:
        return self._label

    def __eq__(self, other: object) -> bool:
        return self._identity == other._identity if isinstance(other, Namespace) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity)

    # ---- entering ----

    def entered(self) -> Entered[Self]:
        """Return a context manager: inside its block, the calling thread is in this namespace.

        The thread, and no other one of the process; threads and programs that it starts meanwhile are inside too, and stay.
        Blocks nest, in any mixture of namespaces and kinds. The handle stays open.

        A thread that is an event loop's runs other tasks while one awaits: do not await inside the block, but use `run`.

        Returns
        -------
        Entered
            May be used again, also while it is in use.

        Raises
        ------
        Unsupported
            Threads cannot enter this kind: pid, user, time, mnt. The remedy is in the message.
        PermissionDenied
            When entering: the thread lacks CAP_SYS_ADMIN over the namespace, or over its own user namespace.
        ClosedError
            The handle is closed.
        IsolibError
            When entering: another task of this thread awaits inside a block. When leaving: out of order, that is before
            a block which began later; the thread is where it was before the block. It is raised for both blocks.
        ThreadStranded
            When leaving: the thread cannot go back (it gave privileges up inside), or is not the one that entered (a
            generator changed threads). In the second case the thread that entered returns at its next use of isolib.

        Notes
        -----
        Privileges: CAP_SYS_ADMIN. Kernel: setns(2). For ipc, the thread's undone semaphore operations (SEM_UNDO) are undone.

        Examples
        --------
        >>> import socket
        >>> from isolib import new_netns
        >>> net = new_netns()
        >>> with net.entered():
        ...     server = socket.create_server(("127.0.0.1", 80))  # port 80 of this namespace
        >>> server.close(), net.close()
        (None, None)
        """
        self._check_open()
        self._check_entry()
        return Entered(self)

    def _check_entry(self) -> None:
        if self._entry_refused_by:
            raise Unsupported(f"entering {self._label} with the calling thread", self._entry_refused_by, self._instead)

    def _enter(self, stays: Stays) -> None:
        stays.enter(self.fileno(), self.kind, self._label)

    def __enter__(self) -> Self:
        if self._entry_refused_by:
            self._check_open()
            return self
        try:
            self._stays.enter(self.fileno(), self.kind, self._label)
        except BaseException:
            # The block that would have closed it does not come.
            if not self._stays:
                self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not self._entry_refused_by:
                self._stays.leave(error)
        except BaseException as failure:
            if not self._stays:
                super().__exit__(type(failure), failure, failure.__traceback__)
            raise
        if not self._stays:  # the last of its blocks
            super().__exit__(kind, error, trace)

    # ---- running ----

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function inside, on a thread that lives there, and return what it returns.

        The calling thread stays where it is and waits, so this is safe in a thread that others share (of a pool, of an event
        loop, which does not go on meanwhile). The thread is started by the first call, and the same one serves all calls of
        this handle, one after the other. The function sees the caller's context variables. `close` ends the thread.

        A caller who is interrupted (KeyboardInterrupt) waits no longer; the function goes on to its end all the same.

        In a mount namespace the thread has a root, a working directory and a umask of its own: they begin as the root of
        the namespace, and changes stay. What Python imports meanwhile is read from the files of the namespace.

        Parameters
        ----------
        function
            What to call. What it raises is raised here, with its traceback.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        object
            What the function returned: the object itself, as the thread is one of this process.

        Raises
        ------
        Unsupported
            Threads cannot live in this kind of namespace: pid, user, time. Use `spawn`.
        PermissionDenied
            The thread lacks CAP_SYS_ADMIN over the namespace or over its own user namespace; for mnt, CAP_SYS_CHROOT too.
        ClosedError
            The handle is closed.
        IsolibError
            The call would wait for itself: the threads of two namespaces call each other.

        Notes
        -----
        Privileges: CAP_SYS_ADMIN. Kernel: setns(2); for mnt also unshare(2), CLONE_FS.

        Examples
        --------
        >>> import socket
        >>> from isolib import new_utsns
        >>> uts = new_utsns(hostname="box")
        >>> uts.run(socket.gethostname)
        'box'
        >>> uts.close()
        """
        fd = self.fileno()
        if self._life_refused_by:
            raise Unsupported(f"running a function in {self._label}", self._life_refused_by, self._instead)
        return self._its_resident().run(fd, function, *args, **kwargs)

    def _its_resident(self) -> Resident:
        if self._resident is None or not self._resident.is_ours:  # a fork has not its parent's thread
            with self._guard():
                self._check_open()
                if self._resident is None or not self._resident.is_ours:
                    self._resident = Resident(self.kind, self._label)
        return self._resident

    def _guard(self) -> AbstractContextManager[object]:
        """Keep close() out while something is added that it has to release; in a fork, who holds the lock may not exist."""
        return self._closing if self.is_ours else nullcontext()

    def spawn(self, argv: Sequence[str | bytes | os.PathLike[str]], **options: object) -> Process:
        r"""Start a program inside.

        Parameters
        ----------
        argv
            The program and its arguments.
        **options
            Those of `isolib.spawn`. ``join`` names further namespaces.

        Returns
        -------
        Process
            See `isolib.spawn`, and for what it raises.

        Raises
        ------
        ClosedError
            The handle is closed.
        GoneError
            PID 1 of this pid namespace has ended; nothing can start in it any more.

        Notes
        -----
        Privileges: CAP_SYS_ADMIN over the namespace. A caller without it joins the user namespace that owns this one first,
        when that is not his own: he needs to have made that, as with every handle that an ordinary user got from isolib.

        Examples
        --------
        >>> from isolib import PIPE, new_utsns
        >>> with new_utsns(hostname="box") as uts:
        ...     process = uts.spawn(["uname", "-n"], stdout=PIPE)
        ...     process.communicate()[0]
        ...     process.close()
        b'box\n'
        """
        self._check_open()
        if self._process is not None and not self._process.is_alive():
            raise GoneError("clone", self._label, hint="its first process has ended, and with it the namespace")
        join = options.pop("join", ())
        if isinstance(join, Handle) or not hasattr(join, "__iter__"):
            raise PlanError(f"join: a list of handles is wanted, not {join!r}")
        return seam.spawn(argv, join=_unique((*self._with_owner(), *join)), **options)

    def _with_owner(self) -> tuple[Namespace, ...]:
        """Return what a program has to join to get here, in order; nothing where it is born here anyway."""
        if self._is_own():  # the kernel refuses that, to ordinary users and for user namespaces
            return ()
        if self.kind == "user" or assembly.may_administer():
            return (self,)
        try:
            owner = self.owner
        except PermissionDenied:  # above our own: joining it would be refused as well
            return (self,)
        return (self,) if owner._is_own() else (owner, self)  # noqa: SLF001 -- of the same class

    def _is_own(self) -> bool:
        """Return whether what the calling thread starts is in this namespace: that of the program, not one that it visits."""
        flag = calls.NAMESPACE_FLAGS[self.kind]
        for fd, kind in outside():
            if kind == flag:
                home = os.fstat(fd)
                return self._identity == (home.st_dev, home.st_ino)
        file = f"{self.kind}_for_children" if self.kind in ("pid", "time") else self.kind
        status = os.stat(f"/proc/thread-self/ns/{file}")
        return self._identity == (status.st_dev, status.st_ino)

    # ---- what it is ----

    @property
    def owner(self) -> UserNS:
        """The user namespace that owns it: whoever has capabilities there, has power over this one.

        A handle that is closed with this one. For a user namespace it is its parent.

        Raises
        ------
        PermissionDenied
            That lies outside of the caller's own user namespace (and so does the parent of the first one).
        ClosedError
            This handle is closed.

        Notes
        -----
        Kernel: ioctl_nsfs(2), NS_GET_USERNS. No privileges.
        """
        self._check_open()
        if self._owner is None:
            fd = self._ask_for_owner()
            with self._guard():
                self._check_open()
                if self._owner is None:
                    self._owner = cast("UserNS", CLASSES["user"]._make(fd))
        return self._owner

    def _ask_for_owner(self) -> Fd:
        try:
            return calls.namespace_owner(self.fileno())
        except SyscallError as error:
            hint = "its owner lies outside of your own user namespace" if isinstance(error, PermissionDenied) else error.hint
            raise from_errno(error.op, self._label, error.errno, hint) from None

    # ---- names ----

    def pin(self, path: os.PathLike[str] | str) -> None:
        """Give it a name in the file system, by which it can be opened, and which keeps it alive without this handle.

        The file is made, and the namespace mounted on it, as `ip netns add` does; beneath /run/netns, `ip netns` sees it, and
        `open_netns(name=...)`. Closing the handle leaves it: it is there until `unpin`, or until the host ends.

        Parameters
        ----------
        path
            The file to make. Its directory must exist, /run/netns excepted.

        Raises
        ------
        SyscallError
            Something is there already (EEXIST); the directory is not (ENOENT); a mount namespace cannot be pinned in itself,
            nor in an older one (ELOOP).
        PermissionDenied
            Mounting needs CAP_SYS_ADMIN over the calling thread's mount namespace.
        PlanError
            This cannot be a path.

        Notes
        -----
        Privileges: CAP_SYS_ADMIN. Kernel: open_tree(2), move_mount(2). Source: ip-netns(8).

        Examples
        --------
        >>> import tempfile
        >>> from isolib import new_netns, open_netns
        >>> directory = tempfile.TemporaryDirectory()
        >>> with new_netns() as net:
        ...     net.pin(f"{directory.name}/lab")
        >>> with open_netns(path=f"{directory.name}/lab") as again:
        ...     again == net
        ...     again.unpin()
        True
        >>> directory.cleanup()
        """
        place = os.path.abspath(check_path(path, "path"))
        with Rollback() as undo:
            undo.push(self._forget_place, place)
            self._places.append(place)
            pin.attach(self.fileno(), self._label, place)
            undo.dismiss()

    def _forget_place(self, place: str) -> None:
        if place in self._places:
            self._places.remove(place)

    def unpin(self) -> None:
        """Take the names away that `pin` gave it, or the one by which this handle was opened; works on a closed handle too.

        The namespace lives on while a handle or a process is in it.

        Raises
        ------
        PlanError
            It has no name that this handle knows of.
        SyscallError
            What is mounted there is not this namespace (any more), or the kernel refused.

        Notes
        -----
        Privileges: CAP_SYS_ADMIN. Kernel: umount(2), unlink(2).
        """
        if not self._places:
            raise PlanError(f"{self!r} was not pinned, and not opened by a path or a name")
        while self._places:
            pin.detach(self._places[-1], self._identity, self._label)
            self._places.pop()


def _unique(handles: Iterable[object]) -> tuple[object, ...]:
    return tuple(dict.fromkeys(handles))
