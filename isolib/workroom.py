"""Where a step of a build runs: a sandbox in the tree of an image, with what a root needs who installs something."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from isolib._kernel.assembly import Rights
from isolib._kernel.hints import typed
from isolib.errors import Unsupported
from isolib.mounts import Bind, File, Proc, Tmpfs
from isolib.oneshot import OneShotGroups, new_group
from isolib.sandbox import complete, new_outlet
from isolib.setting import Setting
from isolib.spec import Limits, SandboxSpec
from isolib.unionfs.disk.resolving import MountPoints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from isolib._kernel.request import MountValue
    from isolib.net import Network
    from isolib.outlet import Outlet
    from isolib.spec import Completed
    from isolib.unionfs.images.accounts import Account
    from isolib.unionfs.store.tree import Tree

__all__ = ["run_step"]

#: As OCI's runtimes leave a root of a container by default, but for those that mean nothing in a user namespace (mknod,
#: audit_write), and net_raw: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot,
#: setfcap.  They count over what belongs to the step alone: its user namespace maps nobody of the host.
_CAPABILITIES: Final = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))
_RIGHTS: Final = Rights(capabilities=_CAPABILITIES, no_new_privs=True)
_RESOLVERS: Final = "/etc/resolv.conf"
_HOSTS: Final = "/etc/hosts"
#: What every root gets.
_PRIVATE: Final = (b"/proc", b"/dev", b"/tmp")


@typed("a step of a build")
def run_step(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    tree: Tree,
    account: Account,
    env: Mapping[str, str],
    cwd: str,
    mounts: Sequence[MountValue],
    network: str | Network | None,
    timeout: float | timedelta | None,
    limits: Limits | None,
) -> Completed:
    """Run a command in a tree to its end; what is mounted there for it is not in the tree afterwards, nor a place for it.

    Parameters
    ----------
    argv, mounts, network, timeout
        As of `isolib.run`.
    tree
        Whose root it has, and writes to.
    account
        Who it is.
    env
        Its whole environment.
    cwd
        Where it starts.
    limits
        What it may use.

    Raises
    ------
    CommandFailed, SandboxTimeout, OutOfMemory
        As of `isolib.run` with ``check=True``.
    Unsupported
        It is to be another user than root, and the caller has no ids for another one.
    """
    spec = SandboxSpec(
        root=tree,
        network=network,
        limits=limits or Limits(),
        user=(account.uid, account.gid),
        cwd=cwd,
    )
    points = MountPoints(tree.fileno())
    with ExitStack() as stack:
        outlet = new_outlet(spec)
        if outlet is not None:
            stack.callback(outlet.close)
        setting = Setting(spec, outlet)
        if (account.uid or account.gid) and not setting.many_ids:
            raise _too_few_ids(account)
        setting.env = dict(env)
        for path in _PRIVATE:
            points.make(path, directory=True, follow=False)
        setting.mounts = (*_of_network(spec, outlet, points), *mounts)
        for value in mounts:
            _make_point(points, value)
        group, _ = new_group(spec)
        lodging = None
        if group is not None:
            with group:
                lodging = OneShotGroups(spec, group)
        request = setting.request(
            deadline=cast("float | None", spec.limits.wall) or 0,
            cgroup=lodging,
            groups=account.groups if setting.many_ids else (),
            rights=_RIGHTS,
        )
        completed = complete(request, argv, None, timeout, spec.limits, check=True)
    points.remove()
    assert completed is not None  # noqa: S101 - it rests on no premises
    return completed


def _too_few_ids(account: Account) -> Unsupported:
    return Unsupported(
        f"a step of a build as the user {account.uid}:{account.gid}",
        "the ids of who builds: one stands for everybody in the image, so the step could change what is not its user's",
        "start as root, or run the step as root of the image",
    )


def _of_network(spec: SandboxSpec, outlet: Outlet | None, points: MountPoints) -> list[MountValue]:
    """Return the files by which programs find others by name."""
    if spec.network is None:
        return []
    if outlet is None:
        files = {path: _host_file(path) for path in (_RESOLVERS, _HOSTS)}
    else:
        from isolib.net.hosts import hosts  # noqa: PLC0415 - who has no network needs none of it

        files = {path: data for path, data in outlet.files if path != _HOSTS}
        files[_HOSTS] = hosts((one, [spec.hostname]) for one in outlet.endpoint.addresses).encode()
    places = {os.fsdecode(points.make(os.fsencode(path), directory=False)): data for path, data in files.items()}
    return [File(f"/{place}", data) for place, data in places.items()]


def _host_file(path: str) -> bytes:
    with suppress(FileNotFoundError):
        return Path(path).read_bytes()
    return b""


def _make_point(points: MountPoints, value: MountValue) -> None:
    """Make a place for a mount, and for what makes its place itself a directory above it."""
    if isinstance(value, (Bind, File, Proc, Tmpfs)):
        is_file = isinstance(value, File) or (isinstance(value, Bind) and not os.path.isdir(value.source))
        points.make(os.fsencode(value.target), directory=not is_file)
