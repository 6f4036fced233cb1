"""What an image says of itself: how it is to be run, for which machine it is, and how it came to be.

The document is kept as it was written, byte for byte, for its digest is the image's.  What is here reads it, and makes the one
of a new image from that of another.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from isolib.errors import ArchiveError, PlanError
from isolib.unionfs.images.documents import Document, dump
from isolib.unionfs.images.references import is_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["History", "ImageConfig", "Platform", "Recorded", "derive", "new_config", "read_config"]

_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)
#: By what `os.uname` calls the machine; the names are those of Go (GOARCH), which images use.
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "i386": "386",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
_VARIANTS: Final = {"armv7l": "v7", "armv6l": "v6"}
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Platform:
    """The kind of machine that an image is for.

    Attributes
    ----------
    os
        ``linux``, for all that can be run here.
    architecture
        As Go names it: ``amd64``, ``arm64``.
    variant
        Of the architecture: ``v7`` of ``arm``; empty where there is none.

    Examples
    --------
    >>> Platform.parse("linux/arm/v7")
    Platform(os='linux', architecture='arm', variant='v7')
    """

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    @classmethod
    def host(cls) -> Platform:
        """Return that of this machine."""
        machine = os.uname().machine
        return cls("linux", _ARCHITECTURES.get(machine, machine), _VARIANTS.get(machine, ""))

    @classmethod
    def parse(cls, text: str, what: str = "platform") -> Platform:
        """Read ``os/architecture[/variant]``.

        Raises
        ------
        PlanError
            It is none.
        """
        parts = str(text).split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):  # noqa: PLR2004 - as the docstring says
            raise PlanError(f"{what}: a platform is written 'linux/arm64' or 'linux/arm/v7', not {text!r}")
        return cls(*parts)

    def runs(self, other: Platform) -> bool:
        """Return whether an image for another platform is one for this: the variant counts where both name one."""
        same = (self.os, self.architecture) == (other.os, other.architecture)
        return same and (not self.variant or not other.variant or self.plain == other.plain)

    @property
    def plain(self) -> str:
        """The variant; ``v8`` is what arm64 is anyway."""
        return "" if (self.architecture, self.variant) == ("arm64", "v8") else self.variant

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image wants to be run, and what it is for.

    Attributes
    ----------
    env
        Variables of the environment, in their order.
    cmd, entrypoint
        The command is the entry point followed by cmd; None where the image does not say.
    workdir
        The directory to start in; empty: "/".
    user
        ``name``, ``uid``, or either with ``:group``; empty: root.
    labels
        Whatever its makers found worth saying.
    exposed_ports
        ``80/tcp``: what it listens on.
    volumes
        Directories that are meant to outlive what is run.
    stop_signal
        The signal that asks it to end; empty: SIGTERM.
    architecture, variant, os
        As in `Platform`.
    author
        Who made it.
    created
        When it was made; None where it does not say.
    """

    env: Mapping[str, str] = field(default_factory=lambda: _NONE)
    cmd: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    workdir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: _NONE)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    architecture: str = "amd64"
    variant: str = ""
    os: str = "linux"
    author: str = ""
    created: datetime | None = None

    @property
    def platform(self) -> Platform:
        """The machine that it is for."""
        return Platform(self.os, self.architecture, self.variant)


@dataclass(frozen=True, slots=True)
class History:
    """One step in the making of an image.

    Attributes
    ----------
    created
        When; None where it is not known.
    created_by
        The command.
    comment, author
        What was said of it, and who made it.
    empty_layer
        It changed no file: no layer belongs to it.
    """

    created: datetime | None = None
    created_by: str = ""
    comment: str = ""
    author: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """A config as it was written, and what it says.

    Attributes
    ----------
    config
        How the image is to be run.
    history
        How it came to be, the oldest step first.
    diff_ids
        The digests of its layers' uncompressed tars, the lowest first.
    """

    config: ImageConfig
    history: tuple[History, ...]
    diff_ids: tuple[str, ...]


def parse_time(text: str, what: str) -> datetime | None:
    """Return a moment as RFC 3339 writes it; what is finer than microseconds is cut off.  An empty text is no moment."""
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise ArchiveError(f"{text[:60]!r} is no time as RFC 3339 writes it", what)
    *numbers, fraction, zulu, sign, hours, minutes = match.groups()
    offset = timedelta() if zulu else timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
    year, month, day, hour, minute, second = map(int, numbers)
    try:
        # A leap second is the one before it, as for the kernel.
        moment = datetime(
            *(year, month, day, hour, minute),
            min(second, 59),
            int((fraction or "0").ljust(6, "0")[:6]),
            tzinfo=timezone(offset),
        )
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ArchiveError(f"{text[:60]!r}: {error}", what) from None


def write_time(moment: datetime) -> str:
    """Return a moment as RFC 3339 writes it, in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _environment(words: Sequence[str]) -> Mapping[str, str]:
    # A name without "=" is one that docker build removed; it says nothing.  Of two, the last one counts, as for exec.
    pairs = (word.partition("=") for word in words)
    return MappingProxyType({name: value for name, equals, value in pairs if equals})


def read_config(data: bytes, what: str) -> Recorded:
    """Return what a config says.

    Raises
    ------
    ArchiveError
        It is none, or one of something that has no layers.

    Notes
    -----
    Source: the OCI image specification, config.md.
    """
    document = Document.read(data, what)
    root = document.object("rootfs")
    diff_ids = root.texts("diff_ids")
    if root.text("type", "") != "layers" or diff_ids is None:
        raise ArchiveError("this is not the config of an image: it has no layers (rootfs)", what)
    for one in diff_ids:
        if not is_digest(one):
            raise ArchiveError(f"rootfs, diff_ids: {one[:80]!r} is no digest of the kind sha256", what)
    run = document.object("config")
    config = ImageConfig(
        env=_environment(run.texts("Env") or ()),
        cmd=run.texts("Cmd"),
        entrypoint=run.texts("Entrypoint"),
        workdir=run.text("WorkingDir", ""),
        user=run.text("User", ""),
        labels=MappingProxyType(run.mapping("Labels")),
        exposed_ports=run.keys("ExposedPorts"),
        volumes=run.keys("Volumes"),
        stop_signal=run.text("StopSignal", ""),
        architecture=document.text("architecture"),
        variant=document.text("variant", ""),
        os=document.text("os"),
        author=document.text("author", ""),
        created=parse_time(document.text("created", ""), f"{what}, created"),
    )
    return Recorded(config, tuple(map(_history, document.objects("history"))), diff_ids)


def _history(step: Document) -> History:
    return History(
        parse_time(step.text("created", ""), f"{step.what}, created"),
        step.text("created_by", ""),
        step.text("comment", ""),
        step.text("author", ""),
        step.flag("empty_layer"),
    )


def new_config(config: ImageConfig, diff_ids: Sequence[str], history: Sequence[History]) -> bytes:
    """Return the config of an image that comes from no other."""
    return _written({}, config, [*map(_step, history)], diff_ids)


def derive(base: bytes, config: ImageConfig, diff_id: str | None, step: History) -> bytes:
    """Return the config of an image that is another and one step more.

    Parameters
    ----------
    base
        The other's config; what this package does not know of it stays in it.
    config
        How the new one is to be run.
    diff_id
        Of the layer that it has on top; None: none.
    step
        What was done.
    """
    document = Document.read(base, "config")
    diff_ids = [*(document.object("rootfs").texts("diff_ids") or ()), *(() if diff_id is None else (diff_id,))]
    steps = [*(one.value for one in document.objects("history")), _step(replace(step, empty_layer=diff_id is None))]
    return _written(dict(document.value), config, steps, diff_ids)


def _step(step: History) -> dict[str, Any]:
    told = {
        "created": write_time(step.created) if step.created else "",
        "created_by": step.created_by,
        "author": step.author,
        "comment": step.comment,
        "empty_layer": step.empty_layer,
    }
    return {key: value for key, value in told.items() if value}


def _written(base: dict[str, Any], config: ImageConfig, history: Sequence[Mapping[str, Any]], diff_ids: Sequence[str]) -> bytes:
    run: dict[str, Any] = {
        **(base.get("config") or {}),
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "Entrypoint": None if config.entrypoint is None else [*config.entrypoint],
        "Cmd": None if config.cmd is None else [*config.cmd],
        "Volumes": {path: {} for path in config.volumes},
        "WorkingDir": config.workdir,
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
    }
    told = {
        **base,
        "created": None if config.created is None else write_time(config.created),
        "author": config.author,
        "architecture": config.architecture,
        "variant": config.variant,
        "os": config.os,
        "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [*diff_ids]},
        "history": [*history],
    }
    # What docker once wrote beside: of the container that the image was committed from.
    for key in ("id", "parent", "container", "container_config", "docker_version"):
        told.pop(key, None)
    return dump({key: value for key, value in told.items() if value})
