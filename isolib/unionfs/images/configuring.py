"""Changes to how an image is to be run, told as a Dockerfile would tell them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from isolib.errors import PlanError
from isolib.types import check_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from isolib.types import AnyPath
    from isolib.unionfs.images.config import ImageConfig

    #: A field of the config, what it is to be, and what says so.
    Change: TypeAlias = tuple[str, Any, list[str]]

__all__ = ["SHELL", "Changes", "checked_env"]

#: What takes a command that is one text: the image's own shell, as in a Dockerfile.
SHELL: Final = (b"/bin/sh", b"-c")

_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(/(?:tcp|udp|sctp))?", re.ASCII)
_HIGHEST_PORT: Final = 65535


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

    def made_to(self, config: ImageConfig) -> tuple[ImageConfig, str]:
        """Return the config with these changes, and what was done.

        Raises
        ------
        PlanError
            One cannot be made, or there is none.
        """
        found = [*self._names(config), *self._commands(), *self._texts(config), *self._lists(config)]
        if not found:
            raise PlanError("configure: nothing is to be changed")
        told = "; ".join(line for _, _, lines in found for line in lines)
        return replace(config, **{name: value for name, value, _ in found}), told

    def _names(self, config: ImageConfig) -> Iterator[Change]:
        for name, word, there, more in (("env", "ENV", config.env, self.env), ("labels", "LABEL", config.labels, self.labels)):
            if more is not None:
                merged = {key: value for key, value in {**there, **more}.items() if value is not None}
                lines = [f"{word} {key}" if value is None else f"{word} {key}={value}" for key, value in more.items()]
                yield name, checked_env(merged) if name == "env" else merged, lines

    def _commands(self) -> Iterator[Change]:
        for name, command in (("entrypoint", self.entrypoint), ("cmd", self.cmd)):
            if command is not None:
                value = _command(command, name)
                yield name, value, [f"{name.upper()} {json.dumps(value or [])}"]

    def _texts(self, config: ImageConfig) -> Iterator[Change]:
        if self.workdir is not None:
            path = os.path.normpath(os.path.join("/", config.workdir, check_path(self.workdir, "workdir")))
            yield "workdir", path, [f"WORKDIR {path}"]
        if self.user is not None:
            yield "user", _plain(self.user, "user"), [f"USER {self.user}"]
        if self.stop_signal is not None:
            yield "stop_signal", _plain(self.stop_signal, "stop_signal"), [f"STOPSIGNAL {self.stop_signal}"]
        if self.author is not None:
            yield "author", _plain(self.author, "author"), []

    def _lists(self, config: ImageConfig) -> Iterator[Change]:
        if self.expose is not None:
            ports = [_port(one) for one in _many(self.expose, "expose")]
            yield "exposed_ports", _added(config.exposed_ports, ports), [f"EXPOSE {one}" for one in ports]
        if self.volumes is not None:
            paths = [_absolute(one) for one in _many(self.volumes, "volumes")]
            yield "volumes", _added(config.volumes, paths), [f"VOLUME {one}" for one in paths]


def checked_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return variables of an environment.

    Raises
    ------
    PlanError
        They are none.
    """
    for name, value in env.items():
        _check_text(name, "env")
        _check_text(value, f"env: {name}")
        if not name or "=" in name:
            raise PlanError(f"env: {name!r} cannot be the name of a variable")
    return dict(env)


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str) or "\0" in value:
        raise PlanError(f"{what}: a text without NUL is wanted, not {value!r}")


def _added(there: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*there, *more)))


def _command(command: Sequence[str] | str, what: str) -> tuple[str, ...] | None:
    if isinstance(command, str):
        return (*map(os.fsdecode, SHELL), command) if command else None
    for word in command:
        _check_text(word, what)
    return tuple(command) or None


def _plain(value: str | int, what: str) -> str:
    text = str(value)
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
