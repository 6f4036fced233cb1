"""Images that are built of others: by what a command does in one, by what is copied into it, by another config.

Each step makes an image, and the store keeps in mind what came of it.  So a build that is run again does only what is new,
whichever process runs it.
"""

from __future__ import annotations

import json
import os
import pickle  # noqa: S403 - nothing is read by it
import re
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from isolib._kernel import seam
from isolib._kernel.hints import typed
from isolib.errors import PlanError
from isolib.types import check_argv, check_path, parse_duration
from isolib.unionfs.disk.resolving import make_directories
from isolib.unionfs.disk.unpack import unpack
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.images.accounts import account_of, owner_of
from isolib.unionfs.images.config import History, derive, write_time
from isolib.unionfs.images.context import Excluded, gather, open_below, open_source, placed
from isolib.unionfs.images.images import opened_image
from isolib.unionfs.store import steps
from isolib.unionfs.store.records import Standing
from isolib.unionfs.store.tree import Keeper, new_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from isolib._kernel.request import MountValue
    from isolib._kernel.seam import Limits
    from isolib.types import AnyPath
    from isolib.unionfs.images.config import ImageConfig
    from isolib.unionfs.images.images import Image
    from isolib.unionfs.store.tree import Tree

__all__ = ["Changes", "configure", "copy", "run"]

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MODES: Final = 0o7777
_MOST_ID: Final = 2**32 - 2
_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(/(?:tcp|udp|sctp))?", re.ASCII)
_HIGHEST_PORT: Final = 65535


# ---- one step ----


class _Moment(NamedTuple):
    """When an image was made."""

    #: None: when it is made.
    fixed: datetime | None

    @classmethod
    def of(cls, created: datetime | None) -> _Moment:
        """Return that which was asked for, or that which the environment says."""
        if created is not None:
            return cls(created)
        text = os.environ.get("SOURCE_DATE_EPOCH", "")
        if not text:
            return cls(None)
        try:
            return cls(_EPOCH + timedelta(seconds=int(text)))
        except (ValueError, OverflowError):
            raise PlanError(f"SOURCE_DATE_EPOCH: seconds since 1970, not {text[:40]!r}") from None

    @property
    def told(self) -> str | None:
        return None if self.fixed is None else write_time(self.fixed)

    @property
    def limit(self) -> int | None:
        """The newest time that a file may have, in nanoseconds since 1970."""
        if self.fixed is None:
            return None
        return (self.fixed.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) * 1000


def _done(image: Image, step: Mapping[str, Any], make: Callable[[], Image], *, cache: bool) -> Image:
    """Return what comes of a step, which is done unless that is known."""
    records = image._records  # noqa: SLF001 - the same package's
    if not cache:
        return make()
    key = steps.key_of(image.digest, step)
    if (known := steps.done(records, key)) is not None:
        return opened_image(records, known)
    with steps.held(records, key):
        if (known := steps.done(records, key)) is not None:
            return opened_image(records, known)
        made = make()
        steps.note(records, key, steps.Step(image.digest, made.digest))
        return made


@contextmanager
def _checkout(image: Image) -> Iterator[Tree]:
    records = image._records  # noqa: SLF001 - the same package's
    records.image(image.digest)
    standing = Standing(image.digest, tuple(one.chain_id for one in image.layers))
    with new_tree(Keeper(records, lambda tree: tree), standing, None) as tree:
        yield tree


# ---- a command ----


def run(
    image: Image,
    argv: Sequence[str | bytes | os.PathLike[str]] | str,
    *,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    user: str | int | None,
    mounts: Sequence[MountValue],
    network: object,
    timeout: float | timedelta | None,
    limits: Limits | None,
    cache: bool,
    created: datetime | None,
) -> Image:
    """Run a command in an image, and return the image that it makes: see `Image.run`."""
    words = [b"/bin/sh", b"-c", check_argv([argv])[0]] if isinstance(argv, str) else [*check_argv(argv)]
    texts = [os.fsdecode(word) for word in words]
    created_by = f"RUN {' '.join(texts)}" if isinstance(argv, str) else f"RUN {json.dumps(texts)}"
    config, moment = image.config, _Moment.of(created)
    added = _checked_env(env or {})
    where = os.path.join("/", config.workdir, check_path(cwd, "cwd") if cwd is not None else "")
    who = config.user if user is None else str(user)
    if timeout is not None:
        parse_duration(timeout, "timeout")
    values = tuple(mounts)
    step = {
        "do": "run",
        "argv": texts,
        "env": dict(sorted(added.items())),
        "cwd": where,
        "user": who,
        "network": network if network is None or isinstance(network, str) else "network",
        "mounts": [repr(value) for value in values],
        "created_by": created_by,
        "created": moment.told,
    }

    def make() -> Image:
        with _checkout(image) as tree:
            account = account_of(tree.fileno(), who)
            make_directories(tree.fileno(), os.fsencode(where))
            seam.run_step(
                words,
                tree=tree,
                account=account,
                env={"PATH": _PATH, "HOME": account.home, **config.env, **added},
                cwd=where,
                mounts=values,
                network=network,
                timeout=timeout,
                limits=limits,
            )
            return tree.commit(created_by=created_by, created=moment.fixed, mtime_limit=moment.limit)

    return _done(image, step, make, cache=cache and all(map(_is_value, values)))


def _is_value(mount: MountValue) -> bool:
    """Return whether a mount is said by its text alone; others are of something that this process has."""
    try:
        pickle.dumps(mount)
    except (TypeError, AttributeError, pickle.PicklingError):
        return False
    return True


def _checked_env(env: Mapping[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise PlanError(f"env: names and values are texts, not {name!r}: {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise PlanError(f"env: {name!r} cannot be the name of a variable, or its value has a NUL")
    return dict(env)


# ---- files ----


def copy(
    image: Image,
    sources: Sequence[AnyPath],
    target: AnyPath,
    *,
    from_image: Image | None,
    owner: str | int | tuple[int, int] | None,
    mode: int | None,
    exclude: Collection[str],
    cache: bool,
    created: datetime | None,
) -> Image:
    """Copy files into an image, and return the image that has them: see `Image.copy`."""
    if not sources:
        raise PlanError("copy: nothing is to be copied")
    if mode is not None and not 0 <= mode <= _MODES:
        raise PlanError(f"mode: permission bits, not {mode!r}")
    path = os.fsencode(check_path(target, "target"))
    whole = os.path.join(b"/", os.fsencode(image.config.workdir), path)
    who, left_out, moment = _checked_owner(owner), Excluded(exclude), _Moment.of(created)
    records = image._records  # noqa: SLF001 - the same package's
    mine = (os.geteuid(), os.getegid())  # who is root in the image
    with ExitStack() as stack:
        if from_image is None:
            opened = [open_source(stack, one) for one in sources]
        else:
            tree = stack.enter_context(_checkout(from_image))
            opened = [open_below(stack, tree.fileno(), one) for one in sources]
        area = stack.enter_context(records.area())
        with typed(records.layout.path):
            file = stack.enter_context(TemporaryFile(dir=f"{records.layout.path}/{area.path}"))
        ids = mine if who is None or isinstance(who, str) else who
        context = gather(opened, file, left_out, owner=ids, mode=mode)
        options = "" if owner is None else f"--chown={who if isinstance(who, str) else '{}:{}'.format(*ids)} "
        created_by = f"COPY {options}{context.kind}:{context.digest.removeprefix('sha256:')} in {os.fsdecode(path)}"
        step = {
            "do": "copy",
            "content": context.digest,
            "target": os.fsdecode(whole),
            "owner": who if isinstance(who, str) else [*ids],
            "created_by": created_by,
            "created": moment.told,
        }

        def make() -> Image:
            with _checkout(image) as tree:
                root = tree.fileno()
                named = owner_of(root, who) if isinstance(who, str) else ids
                pieces = placed(context, root, whole, named)
                if named != ids:
                    pieces = ((replace(entry, uid=named[0], gid=named[1]), content) for entry, content in pieces)
                unpack(pieces, root, Form.MERGED)
                return tree.commit(created_by=created_by, created=moment.fixed, mtime_limit=moment.limit)

        return _done(image, step, make, cache=cache)


def _checked_owner(owner: str | int | tuple[int, int] | None) -> str | tuple[int, int] | None:
    if owner is None or isinstance(owner, str):
        return owner or None
    ids = (owner, owner) if isinstance(owner, int) else tuple(owner)
    if len(ids) != 2 or not all(isinstance(one, int) and 0 <= one <= _MOST_ID for one in ids):  # noqa: PLR2004 - user, group
        raise PlanError(f"owner: 'user[:group]', a number for both, or (uid, gid), not {owner!r}")
    return ids[0], ids[1]


# ---- the config ----


class Changes(NamedTuple):
    """What is to be another in a config; None: it stays."""

    env: Mapping[str, str | None] | None
    cmd: Sequence[str] | str | None
    entrypoint: Sequence[str] | str | None
    workdir: AnyPath | None
    user: str | int | None
    labels: Mapping[str, str | None] | None
    expose: Collection[str | int] | None
    volumes: Collection[str] | None
    stop_signal: str | None
    author: str | None


def configure(image: Image, changes: Changes, *, cache: bool, created: datetime | None) -> Image:
    """Return an image that is another with a changed config: see `Image.configure`."""
    config, moment = image.config, _Moment.of(created)
    told: list[str] = []
    changed = _changed(config, changes, told)
    created_by = "; ".join(told)
    step = {"do": "configure", "created_by": created_by, "author": changed.author, "created": moment.told}

    def make() -> Image:
        records = image._records  # noqa: SLF001 - the same package's
        when = moment.fixed or datetime.now(UTC)
        history = History(when, created_by, author=changes.author or "")
        with records.area() as area:
            record = records.image(image.digest)
            with records.locks.shared():
                records.hold(area, [one.chain_id for one in image.layers], [record.digest])
            written = derive(records.blob(record.digest), replace(changed, created=when), None, history)
            made = records.add_image(area, written, None, ())
        return opened_image(records, made.digest)

    return _done(image, step, make, cache=cache)


def _changed(config: ImageConfig, changes: Changes, told: list[str]) -> ImageConfig:
    """Return the new config, and tell what is done as a Dockerfile would say it."""
    new: dict[str, Any] = {}
    if changes.env is not None:
        new["env"] = _merged(config.env, changes.env)
        _checked_env(new["env"])
        told += [f"ENV {name}{'' if value is None else '=' + value}" for name, value in changes.env.items()]
    if changes.labels is not None:
        new["labels"] = _merged(config.labels, changes.labels)
        told += [f"LABEL {name}{'' if value is None else '=' + value}" for name, value in changes.labels.items()]
    for name, command in (("entrypoint", changes.entrypoint), ("cmd", changes.cmd)):
        if command is not None:
            new[name] = _command(command, name)
            told.append(f"{name.upper()} {json.dumps(new[name] or [])}")
    if changes.workdir is not None:
        new["workdir"] = os.path.normpath(os.path.join("/", config.workdir, check_path(changes.workdir, "workdir")))
        told.append(f"WORKDIR {new['workdir']}")
    if changes.user is not None:
        new["user"] = _plain(str(changes.user), "user")
        told.append(f"USER {new['user']}")
    if changes.expose is not None:
        new["exposed_ports"] = _added(config.exposed_ports, [_port(one) for one in _many(changes.expose, "expose")])
        told += [f"EXPOSE {_port(one)}" for one in changes.expose]
    if changes.volumes is not None:
        new["volumes"] = _added(config.volumes, [_absolute(one) for one in _many(changes.volumes, "volumes")])
        told += [f"VOLUME {one}" for one in changes.volumes]
    if changes.stop_signal is not None:
        new["stop_signal"] = _plain(changes.stop_signal, "stop_signal")
        told.append(f"STOPSIGNAL {changes.stop_signal}")
    if changes.author is not None:
        new["author"] = changes.author
    if not new:
        raise PlanError("configure: nothing is to be changed")
    return replace(config, **new)


def _merged(there: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**there, **changes}.items() if value is not None}


def _added(there: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*there, *more)))


def _command(command: Sequence[str] | str, what: str) -> tuple[str, ...] | None:
    if isinstance(command, str):
        return ("/bin/sh", "-c", command) if command else None
    if not all(isinstance(word, str) and "\0" not in word for word in command):
        raise PlanError(f"{what}: a list of texts, or a text for a shell, not {command!r}")
    return tuple(command) or None


def _plain(text: str, what: str) -> str:
    if not text.isprintable():
        raise PlanError(f"{what}: {text!r} has something in it that cannot be printed")
    return text


def _many(values: Collection[Any], what: str) -> Collection[Any]:
    if isinstance(values, (str, bytes)):
        raise PlanError(f"{what}: a list, not {values!r}")
    return values


def _absolute(path: str) -> str:
    if not str(path).startswith("/"):
        raise PlanError(f"volumes: {path!r}: an absolute path is wanted, for it is one inside the image")
    return str(check_path(path, "volumes"))


def _port(port: str | int) -> str:
    match = _PORT.fullmatch(str(port))
    if match is None or any(not 0 < int(number) <= _HIGHEST_PORT for number in match.groups()[:2] if number):
        raise PlanError(f"expose: 80, '80/tcp', '53/udp' or '8000-8010', not {port!r}")
    return str(port) if match[3] else f"{port}/tcp"
