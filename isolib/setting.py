"""From what a sandbox shall be to the request for its processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, cast

from isolib._kernel import assembly
from isolib._kernel.assembly import Identity, Rights
from isolib._kernel.idmap import IdMapPlan
from isolib._kernel.request import Request, own_map, user_ids
from isolib.errors import PlanError
from isolib.mounts import Bind, Root, WorkTree
from isolib.types import IdMap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from isolib._kernel.lodging import Lodging
    from isolib._kernel.request import MountValue, RootValue
    from isolib.outlet import Outlet
    from isolib.spec import SandboxSpec
    from isolib.types import AnyPath
    from isolib.unionfs import Volume

__all__ = ["Setting"]

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_RIGHTS: Final = Rights(capabilities=0, no_new_privs=True)
_NAMESPACES: Final = frozenset({"pid", "net", "ipc", "mnt", "uts", "user", "cgroup"})


class Setting:
    """What a spec means on this host, for this caller, now."""

    __slots__ = ("cwd", "env", "identity", "kinds", "many_ids", "mounts", "outlet", "root", "spec")

    def __init__(self, spec: SandboxSpec, outlet: Outlet | None = None) -> None:
        self.spec = spec
        self.outlet = outlet
        on_host = spec.root is None
        self.kinds = _NAMESPACES if spec.network is None else _NAMESPACES - {"net"}
        apart = outlet is not None and outlet.owner is not None  # an ordinary user's, who has one id in the network's namespace
        self.many_ids = assembly.is_host_root() or (own_map(spec.root) == "auto" and not apart)
        self.identity = _identity(spec, many_ids=self.many_ids)
        self.cwd = _working_directory(spec, on_host=on_host)
        self.root: RootValue = Root.host() if spec.root is None else spec.root
        of_network = () if outlet is None else outlet.mounts
        work = (WorkTree(self.cwd, spec.writable),) if on_host and self.cwd not in {"/", "/tmp"} else ()
        self.mounts: tuple[MountValue, ...] = (*work, *of_network, *spec.mounts, *_volumes(spec))
        self.env = _environment(spec, self.identity)

    @property
    def maps(self) -> tuple[str | list[IdMap] | IdMapPlan, str | list[IdMap] | None]:
        """Root inside is nobody outside; an ordinary user has but the own ids to map, and maps them to who runs inside."""
        if self.many_ids:
            return "auto", "auto"
        uid, gid = (0, 0) if self.identity is None else (self.identity.uid, self.identity.gid)
        if self.outlet is not None and self.outlet.owner is not None:  # where the caller's own ids are those of root
            return IdMapPlan((IdMap(uid, 0),), (IdMap(gid, 0),), setgroups_deny=True, helper=False), None
        return _own_map(uid, os.geteuid()), _own_map(gid, os.getegid())

    def request(
        self,
        *,
        deadline: float = 0,
        dumpable: bool = False,
        cgroup: Lodging | None = None,
        groups: Sequence[int] = (),
        rights: Rights = _NO_RIGHTS,
    ) -> Request:
        """Return the request for the first process.

        Parameters
        ----------
        deadline
            In seconds.
        dumpable
            As in `assembly.add_birth`.
        cgroup
            Where it lives.
        groups
            Of the user, beside his own.
        rights
            What it is left with.
        """
        uid_map, gid_map = self.maps
        return Request(
            new=self.kinds,
            join=() if self.outlet is None else (self.outlet.ns,),
            under=None if self.outlet is None else self.outlet.owner,
            cgroup=cgroup,
            root=self.root,
            mounts=self.mounts,
            id_map=uid_map,
            gid_map=gid_map,
            hostname=self.spec.hostname,
            user=None if self.identity is None else (self.identity.uid, self.identity.gid),
            groups=groups,
            cwd=self.cwd,
            env=self.env,
            rights=rights,
            deadline=deadline,
            dumpable=dumpable,
        )


def _volumes(spec: SandboxSpec) -> Iterator[MountValue]:
    """Yield the mounts of volumes, the outer ones first."""
    found = cast("Mapping[AnyPath, tuple[Volume | AnyPath, str]]", spec.volumes)  # as the spec has made of them
    for target, (source, access) in sorted(found.items(), key=lambda one: os.fsencode(one[0])):
        readonly = access == "ro"
        if isinstance(source, (str, bytes, os.PathLike)):
            yield Bind(source, target, readonly=readonly)
        else:
            yield source.bind(target, readonly=readonly)


def _own_map(inside: int, own: int) -> str | list[IdMap]:
    return [IdMap(inside, own)] if inside else "root"


def _identity(spec: SandboxSpec, *, many_ids: bool) -> Identity | None:
    if spec.user is None:
        return None
    uid, gid = user_ids(spec.user)
    # An ordinary user maps one id of each kind, with setgroups denied.
    return Identity(uid, gid, (gid,)) if many_ids else Identity(uid, gid, None)


def _working_directory(spec: SandboxSpec, *, on_host: bool) -> str:
    if spec.cwd is not None:
        path = cast("str", spec.cwd)
        if not path.startswith("/"):
            raise PlanError(f"cwd={path!r}: an absolute path is wanted, for it is one inside the sandbox")
        return path
    if not on_host:
        return "/"
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise PlanError("the working directory has been deleted; give cwd=") from None


def _environment(spec: SandboxSpec, identity: Identity | None) -> dict[str, str]:
    is_root = identity is None or identity.uid == 0
    programs = [*Root.interpreter_directories(), _PATH] if spec.root is None else [_PATH]
    fixed = {
        "PATH": ":".join(programs),
        "HOME": "/root" if is_root else "/tmp",
        "USER": "root" if is_root else "user",
        "LANG": "C.UTF-8",
    }
    return {**fixed, **(spec.env or {})}
