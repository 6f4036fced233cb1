"""Images that are built of others: by what a command does in one, by what is copied into it, by another config.

Each step makes an image, and the store keeps in mind what came of it.  So a build that is run again does only what is new,
whichever process runs it.
"""

from __future__ import annotations

import json
import os
import pickle
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from isolib._kernel import seam
from isolib._kernel.handle import Rollback
from isolib._kernel.hints import typed
from isolib.errors import PlanError
from isolib.types import check_argv, check_path, parse_duration
from isolib.unionfs.disk.files import twin
from isolib.unionfs.disk.resolving import make_directories
from isolib.unionfs.images.accounts import account_of
from isolib.unionfs.images.config import History, derive, write_time
from isolib.unionfs.images.configuring import SHELL, checked_env
from isolib.unionfs.images.context import Excluded, gather, gather_below, open_source, put
from isolib.unionfs.images.images import opened_image
from isolib.unionfs.store import steps
from isolib.unionfs.store.records import Standing
from isolib.unionfs.store.tree import Keeper, new_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from isolib._kernel.request import MountValue
    from isolib._kernel.seam import Limits
    from isolib.types import AnyPath
    from isolib.unionfs.images.configuring import Changes
    from isolib.unionfs.images.images import Image
    from isolib.unionfs.store.tree import Tree

__all__ = ["configure", "copy", "run"]

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MODES: Final = 0o7777
_MOST_ID: Final = 2**32 - 2


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
    with Rollback() as undo:
        yield new_tree(Keeper(records, undo.adopt), standing, None)


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
    words = [*SHELL, check_argv([argv])[0]] if isinstance(argv, str) else [*check_argv(argv)]
    texts = [os.fsdecode(word) for word in words]
    created_by = f"RUN {' '.join(texts)}" if isinstance(argv, str) else f"RUN {json.dumps(texts)}"
    config, moment = image.config, _Moment.of(created)
    added = checked_env(env or {})
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
            contents = image._records.contents  # noqa: SLF001 - the same package's
            account = contents.within(tree, account_of, who)
            contents.within(tree, make_directories, os.fsencode(where))
            seam.run_step(
                texts,
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
    mine = records.contents.root_ids
    with ExitStack() as stack:
        area = stack.enter_context(records.area())
        with typed(records.layout.path):
            file = stack.enter_context(TemporaryFile(dir=f"{records.layout.path}/{area.path}"))
        ids = mine if who is None or isinstance(who, str) else who
        taken = stack.enter_context(twin(file.fileno()))
        if from_image is None:
            opened = [open_source(stack, one) for one in sources]
            context = gather(opened, taken, left_out, owner=ids, mode=mode)
        else:
            tree = stack.enter_context(_checkout(from_image))
            context = records.contents.within(tree, gather_below, [*sources], taken, left_out, owner=ids, mode=mode)
            stack.enter_context(context.file)
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
                records.contents.within(tree, put, context, whole, who if isinstance(who, str) else None, ids)
                return tree.commit(created_by=created_by, created=moment.fixed, mtime_limit=moment.limit)

        return _done(image, step, make, cache=cache)


def _checked_owner(owner: str | int | tuple[int, int] | None) -> str | tuple[int, int] | None:
    if owner is None or isinstance(owner, str):
        return owner or None
    uid, gid = (owner, owner) if isinstance(owner, int) else owner
    if not (0 <= uid <= _MOST_ID and 0 <= gid <= _MOST_ID):
        raise PlanError(f"owner: ids of users and groups go up to {_MOST_ID}, not {owner!r}")
    return uid, gid


# ---- the config ----


def configure(image: Image, changes: Changes, *, cache: bool, created: datetime | None) -> Image:
    """Return an image that is another with a changed config: see `Image.configure`."""
    config, moment = image.config, _Moment.of(created)
    changed, created_by = changes.made_to(config)
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
