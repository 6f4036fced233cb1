"""A sandbox: namespaces, a root, mounts and limits, composed into one plan and one set of resources that ends as one.

`run` makes a sandbox for one command; `Sandbox` keeps one for many.  Without arguments both are useful and safe: every
namespace is new, root inside is nobody outside, the host's files are read-only, what the command writes in its working
directory is kept in a layer that vanishes, there is no network but loopback, no capability, no way to gain a privilege, and
everything dies with the block or with the host.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import closing, suppress
from threading import Lock
from typing import TYPE_CHECKING, Final, cast

from isolib._kernel import assembly, calls
from isolib._kernel.assembly import Identity, Rights
from isolib._kernel.handle import Rollback, home
from isolib._kernel.hints import typed
from isolib._kernel.request import Request
from isolib.errors import ClosedError, CommandFailed, GoneError, OutOfMemory, PlanError, SandboxTimeout, Unsupported
from isolib.oneshot import OneShot, OneShotGroups, new_group
from isolib.process import DEVNULL, PIPE, Process
from isolib.setting import Setting
from isolib.spec import Completed, Limits, SandboxSpec
from isolib.types import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta
    from types import TracebackType
    from typing import Self, Unpack

    from isolib._kernel.handle import Fd
    from isolib._kernel.lending import Loan
    from isolib.cgroups import Cgroup
    from isolib.net import Endpoint, Publish, Published
    from isolib.outlet import Outlet
    from isolib.spec import SandboxFields
    from isolib.types import HasFileno

__all__ = ["Completed", "Limits", "Sandbox", "SandboxSpec", "run"]

_TRIES: Final = 10


# ---- one command ----


class _Cache:
    """The requests of one-shot sandboxes: the plan of a spec is made once while nothing that it rests on changes.

    What it rests on, the working directory and what stands in "/", is looked at by the launch itself; looking from here would
    give the GIL away twice more, and beside busy threads each time costs as much as a sandbox.
    """

    _MOST: Final = 32

    def __init__(self) -> None:
        self._lock = Lock()
        self._requests: OrderedDict[tuple[object, ...], _Prepared] = OrderedDict()

    def get(self, given: SandboxFields, outlet: Outlet | None) -> tuple[tuple[object, ...], _Prepared]:
        """Return the key and what belongs to it, made when it is not there."""
        key: tuple[object, ...] = (*given.items(), os.getpid(), os.geteuid())
        if outlet is not None:  # what is different from network to network is not in the plan
            key = (*(item for item in key if not isinstance(item, tuple) or item[0] != "network"), *outlet.premises)
        try:
            with self._lock:
                found = self._requests.get(key)
        except TypeError:  # something that has no hash: the spec, into which it goes, may have one
            if outlet is not None:
                return key, _Prepared(SandboxSpec.of(None, given), outlet)
            key = (SandboxSpec.of(None, given), os.getpid(), os.geteuid())
            with self._lock:
                found = self._requests.get(key)
        if found is not None and not assembly.is_astray():
            return key, found
        made = _Prepared(SandboxSpec.of(None, given), outlet)
        # Its plan leads back to the program's own namespaces, by descriptors of the thread; or it would keep somebody's tree or
        # volume alive, or its groups the network.
        if assembly.is_astray() or made.borrows or (outlet is not None and made.limits.group):
            return key, made
        with self._lock:
            self._requests[key] = made
            while len(self._requests) > self._MOST:
                self._requests.popitem(last=False)
        return key, made

    def forget(self, key: tuple[object, ...]) -> None:
        """Forget what rests on something that has changed."""
        with self._lock, suppress(TypeError):  # nothing is kept under what has no hash
            self._requests.pop(key, None)


_cache: Final = _Cache()


class _Prepared:
    """A request, its limits, and what it rests on."""

    __slots__ = ("_request", "degraded", "files", "limits", "premises")

    def __init__(self, spec: SandboxSpec, outlet: Outlet | None = None) -> None:
        self.premises = (_where(), os.stat("/").st_mtime_ns)
        self.limits = spec.limits
        group, self.degraded = new_group(spec)
        groups = None
        if group is not None:
            with group:
                groups = OneShotGroups(spec, group)
        self.files = () if outlet is None else outlet.files
        request = Setting(spec, outlet).request(deadline=cast("float | None", spec.limits.wall) or 0, cgroup=groups)
        self._request = request if outlet is None else request.let_go()

    @property
    def borrows(self) -> bool:
        """Whether something is lent for each launch, by a handle that somebody else owns."""
        return self._request.builder.borrows

    def request(self, outlet: Outlet | None) -> Request:
        """Return the request for a sandbox, in its own place in a network."""
        if outlet is None:
            return self._request
        contents = {was: data for was, (_, data) in zip(self.files, outlet.files, strict=True)}
        return self._request.again((outlet.ns,), outlet.owner, contents)


def _where() -> bytes:
    try:
        return os.getcwdb()
    except FileNotFoundError:
        raise PlanError("the working directory of this process has been deleted; os.chdir() to one that exists") from None


@typed("a sandbox")
def run(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    input: bytes | None = None,  # noqa: A002 - subprocess's name
    timeout: float | timedelta | None = None,
    check: bool = False,
    **spec: Unpack[SandboxFields],
) -> Completed:
    r"""Run a command in a sandbox of its own, as `subprocess.run` with its output captured.

    Parameters
    ----------
    argv
        The program and its arguments.
    input
        Given to its standard input, which is empty otherwise.
    timeout
        Seconds after which it is killed and SandboxTimeout raised.
    check
        Whether an exit status other than 0 raises CommandFailed.
    **spec
        Fields of `SandboxSpec` and `Limits`.

    Raises
    ------
    PlanError, SetupFailed
        The sandbox cannot be made; nothing is left.
    SandboxTimeout, OutOfMemory, CommandFailed
        See above, and for who used more than `memory` with `check`; each carries what was captured.

    Notes
    -----
    Privileges: none where the kernel lets users make user namespaces; `isolib.doctor` says whether.

    Examples
    --------
    >>> run(["id", "-un"]).stdout
    b'root\n'
    """
    network = spec.get("network")
    if network is not None and network != "host":  # it is attached anew each time
        outlet = new_outlet(_for_one(SandboxSpec.of(None, spec)))
        assert outlet is not None  # noqa: S101 - it is for who has a network
        with closing(outlet):
            return _run(spec, outlet, argv, input, timeout, check=check)
    return _run(spec, None, argv, input, timeout, check=check)


def _run(
    spec: SandboxFields,
    outlet: Outlet | None,
    argv: Sequence[str | bytes | os.PathLike[str]],
    data: bytes | None,
    timeout: float | timedelta | None,
    *,
    check: bool,
) -> Completed:
    for _ in range(_TRIES):
        key, made = _cache.get(spec, outlet)
        request = made.request(outlet)
        completed = complete(request, argv, data, timeout, made.limits, check=check, premises=made.premises)
        if completed is not None:
            completed.degraded = made.degraded
            return completed
        _cache.forget(key)
    raise PlanError(f"the working directory or '/' changed {_TRIES} times while the sandbox was planned")


def _for_one(spec: SandboxSpec) -> SandboxSpec:
    if any(one.host_port == 0 for one in cast("tuple[Publish, ...]", spec.publish or ())):
        raise PlanError("publish: port 0 is a free one, which nobody is told of a sandbox for one command: use isolib.Sandbox")
    return spec


def complete(
    request: Request,
    argv: Sequence[str | bytes | os.PathLike[str]],
    data: bytes | None,
    timeout: float | timedelta | None,
    limits: Limits,
    *,
    check: bool,
    premises: tuple[bytes, int] | None = None,
) -> Completed | None:
    output_limit = cast("int | None", limits.output)
    result = OneShot.run_to_end(request, argv, data, timeout=timeout, output_limit=output_limit, premises=premises)
    if result is None:
        return None
    completed = Completed(argv, *result)
    end = completed.exit
    if check and end.returncode != 0:
        if end.reason is Reason.TIMEOUT:
            raise SandboxTimeout(argv, cast("float", limits.wall), completed.stdout, completed.stderr, end.usage)
        if end.reason is Reason.OOM:
            from isolib.cgroups.values import parse_limit  # noqa: PLC0415 - who has no limits needs none of it

            raise OutOfMemory(argv, parse_limit(limits.memory, "memory"), completed.stdout, completed.stderr, end.usage)
        raise CommandFailed(argv, end, completed.stdout, completed.stderr)
    return completed


# ---- many commands ----


def new_outlet(spec: SandboxSpec) -> Outlet | None:
    """Attach a sandbox to be to its network, or return None where it has none."""
    if spec.network is None or isinstance(spec.network, str):
        return None
    from isolib.outlet import Outlet  # noqa: PLC0415 - who has no network needs none of it

    return Outlet(spec.network, spec)


class Sandbox:
    r"""A sandbox that lives for a ``with`` block, in which many commands run, beside and after one another.

    What they write in it stays until the block ends: its /tmp, its processes, the layer over its working directory or over the
    image that is its root.  What they write to a tree of a store stays longer.

    Parameters
    ----------
    spec
        A `SandboxSpec`, or None.
    **fields
        Fields of `SandboxSpec` and `Limits` that differ from it.

    Examples
    --------
    >>> with Sandbox() as box:
    ...     box.run(["sh", "-c", "echo 1 > /tmp/x"]).returncode
    ...     box.run(["cat", "/tmp/x"]).stdout
    0
    b'1\n'
    """

    def __init__(self, spec: SandboxSpec | None = None, **fields: Unpack[SandboxFields]) -> None:
        self.spec = SandboxSpec.of(spec, fields)
        self._setting: Setting | None = None
        self._outlet: Outlet | None = None
        self._resident: Process | None = None
        self._home = home()
        self._namespaces: dict[str, Fd] = {}
        self._group: Cgroup | None = None
        self._degraded: Mapping[str, Unsupported] = {}
        self._loans: tuple[Loan, ...] = ()
        self._requests: dict[bool, Request] = {}
        self._stream_owner: tuple[int, int] | None = None
        self._processes: list[Process] = []
        self._closed = self._killed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "new" if self._resident is None else f"pid {self._resident.pid}"
        return f"<Sandbox {self.spec.hostname!r} {state}>"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_resident", None) is None:
            return
        if self._home == home():
            import warnings  # noqa: PLC0415 - rare

            text = f"{self!r} was forgotten: it is ended now; use `with` or close()"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
        self.close()

    @typed("a sandbox")
    def open(self) -> None:
        """Make the sandbox; ``with`` does it."""
        if self._closed:
            raise ClosedError(f"{self!r} cannot be opened again")
        if self._resident is not None:
            return
        try:
            self._outlet = new_outlet(self.spec)
            self._setting = Setting(self.spec, self._outlet)
            # Who is out of memory is ended with all that belongs to that command; the sandbox and its other commands go on.
            self._group, self._degraded = new_group(self.spec, oom="process")
            request = self._setting.request(dumpable=True, cgroup=self._group)
            self._stream_owner = request.builder.stream_owner
            launched = request.hold()
            # They are given back when the namespaces are gone too, which keep mounts alive.
            self._loans = launched.loans
            launched.loans = ()
            self._resident = Process(["sandbox"], launched)
            for kind in sorted(self._setting.kinds | ({"net"} if self._outlet else set())):
                self._namespaces[kind] = launched.namespace(kind)
            calls.say(launched.status, hide=True)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """End everything in the sandbox and give everything back; a fork's copy gives back its descriptors only."""
        self._closed = True
        try:
            self._end()
        except KeyboardInterrupt:  # it is raised when all is released
            self._end()
            raise

    def _end(self) -> None:
        owners = (self._group, self._outlet, *self._loans, *self._namespaces.values(), self._resident, *self._processes)
        try:
            with Rollback() as undo:
                for owner in owners:
                    if owner is not None:
                        undo.push(owner.close)
        except Exception:
            self._forget()
            raise
        self._forget()  # not when interrupted: who ends it again must find all of them

    def _forget(self) -> None:
        self._processes.clear()
        self._namespaces.clear()
        self._resident = None

    @property
    def endpoint(self) -> Endpoint | None:
        """Its place in the network, or None where it has none."""
        return None if self._outlet is None else self._outlet.endpoint

    @property
    def published(self) -> tuple[Published, ...]:
        """Its ports that ``publish=`` let the host reach, in that order; more of its `endpoint` can be, at any time."""
        return () if self._outlet is None else self._outlet.published

    def _live(self, *, pty: bool = False) -> Request:
        if self._resident is None or self._setting is None:
            raise ClosedError(f"{self!r} is not open: use it in `with`")
        if self._killed:
            raise GoneError("clone", repr(self), hint="it was killed, and nothing can start in it any more")
        if pty not in self._requests:
            setting = self._setting
            root_inside = setting.identity or Identity(0, 0, () if setting.many_ids else None)
            # Each command lives in a group of its own, which is what its own cgroup namespace begins with.
            apart = {"cgroup"} if self._group is not None else set()
            joined = [one for kind, one in self._namespaces.items() if kind not in apart]
            self._requests[pty] = Request(
                new=apart,
                join=tuple(cast("Iterable[HasFileno]", joined)),
                under=None if self._outlet is None else self._outlet.owner,
                cgroup=self._group,
                identity=root_inside,
                cwd=setting.cwd,
                env=setting.env,
                rights=Rights(capabilities=0, no_new_privs=True),
                deadline=cast("float | None", self.spec.limits.wall) or 0,
                pty=pty,
                stream_owner=self._stream_owner,
            )
        return self._requests[pty]

    def run(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess's name
        timeout: float | timedelta | None = None,
        check: bool = False,
    ) -> Completed:
        """Run a command in the sandbox; as `isolib.run`."""
        completed = complete(self._live(), argv, input, timeout, self.spec.limits, check=check)
        assert completed is not None  # noqa: S101 - only premises can make it None
        completed.degraded = self._degraded
        return completed

    def popen(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        stdin: int | HasFileno | None = None,
        stdout: int | HasFileno | None = None,
        stderr: int | HasFileno | None = None,
        pty: bool = False,
    ) -> Process:
        """Start a command in the sandbox, and do not wait for it; it ends with the sandbox at the latest.

        As in `isolib.spawn`, but that None is not this process's own stream: the input is empty, the outputs are pipes.
        """
        if not pty:
            stdin = DEVNULL if stdin is None else stdin
            stdout = PIPE if stdout is None else stdout
            stderr = PIPE if stderr is None else stderr
        process = Process.start(self._live(pty=pty), argv, stdin=stdin, stdout=stdout, stderr=stderr, pty=pty)
        self._processes = [one for one in self._processes if one.exit is None]
        self._processes.append(process)
        return process

    def kill(self) -> None:
        """Kill every process in the sandbox, and with them the sandbox."""
        if self._resident is not None:
            self._killed = True
            self._resident.kill()

    @property
    def cgroup(self) -> Cgroup:
        """The control group of the sandbox, with its limits and what it uses.

        Raises
        ------
        Unsupported
            The sandbox has no limits, and so no group.
        """
        self._live()
        if self._group is None:
            raise Unsupported("the control group of a sandbox", "this sandbox, which has no limit that needs one", "pids='max'")
        return self._group

    @property
    def degraded(self) -> Mapping[str, Unsupported]:
        """The limits that ``allow=`` let be left out, and who refuses them."""
        return self._degraded

    def freeze(self) -> None:
        """Suspend every process in the sandbox (see `isolib.Cgroup.freeze`)."""
        self.cgroup.freeze()

    def thaw(self) -> None:
        """Let them go on."""
        self.cgroup.thaw()

    def explain(self, argv: Sequence[str] = ("COMMAND",)) -> str:
        """Return the system calls that make the sandbox and start a command in it, in order, a line each.

        With limits a place for the group is looked for, which may enable controllers in groups above, start the reaper, or ask
        systemd for a scope; no group is made.
        """
        setting = self._setting or Setting(self.spec)
        if not self.spec.limits.group:
            return setting.request().plan(list(argv)).explain()
        from isolib.cgroups.explain import Outline  # noqa: PLC0415 - who has no limits needs none of it

        outline = Outline(self.spec.limits.group, self.spec.group_allow)
        return f"{outline.explain()}\n{setting.request(cgroup=outline).plan(list(argv)).explain()}"

    def audit(self) -> dict[str, str]:
        """Return what the kernel says is in force, from /proc of a process inside."""
        from isolib._kernel.audit import audit  # noqa: PLC0415 - few ask

        with self.popen(["sleep", "60"]) as process:
            return audit(process.pid, self._setting.kinds if self._setting else frozenset())
