"""Who one is to a registry: what it asks for, and where the answer to that is kept.

Files of credentials are those of Podman, skopeo and Docker.  They are only read.  Programs that they name (credential helpers)
are not run: `Store.pull` takes credentials as an argument too.
"""

from __future__ import annotations

import json
import os
import re
import stat
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from isolib.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Challenge", "Credentials", "challenges", "check_credentials", "kept_credentials"]

_WORD: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PARAMETER: Final = re.compile(rf'[\s,]*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]+))')
_SCHEME: Final = re.compile(rf"[\s,]*({_WORD})(?=\s|,|$)")
_LONGEST: Final = 4096
_LARGEST: Final = 1 << 20
_DOCKER: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to say who one is that a server takes.

    Attributes
    ----------
    scheme
        In lower case: ``"bearer"``, ``"basic"``.
    parameters
        By their names in lower case.
    """

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Credentials:
    """A name and a password; the second is not shown.

    Attributes
    ----------
    user, password
        Both.
    """

    user: str
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """What says it by HTTP (RFC 7617)."""
        return f"Basic {b64encode(f'{self.user}:{self.password}'.encode()).decode('ascii')}"


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """Return what a server asks for; what cannot be understood is left out.

    Parameters
    ----------
    headers
        Its headers ``WWW-Authenticate``.

    Notes
    -----
    Source: RFC 9110, section 11.

    Examples
    --------
    >>> challenges(['Bearer realm="https://a.example/token", service=b, Basic realm="c"'])[0].parameters["service"]
    'b'
    """
    found = []
    for text in headers:
        rest = text[:_LONGEST]
        while match := _SCHEME.match(rest):
            rest = rest[match.end() :]
            parameters: dict[str, str] = {}
            while value := _PARAMETER.match(rest):
                rest = rest[value.end() :]
                quoted = value[2]
                parameters.setdefault(value[1].lower(), value[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
            found.append(Challenge(match[1].lower(), parameters))
    return found


def check_credentials(credentials: object) -> Credentials | None:
    """Return credentials as users give them.

    Raises
    ------
    PlanError
        They are neither None nor a name and a password.
    """
    if credentials is None:
        return None
    if (
        not isinstance(credentials, (tuple, list))
        or len(credentials) != len(("user", "password"))
        or not all(isinstance(one, str) for one in credentials)
    ):
        raise PlanError("credentials: a user's name and a password are expected, two texts")
    user, password = credentials
    if ":" in user:
        raise PlanError("credentials: a user's name has no ':' (RFC 7617)")
    return Credentials(user, password)


def kept_credentials(domain: str, path: str, environ: Mapping[str, str] | None = None) -> Credentials | None:
    """Return what this user's files have for a registry; None where they have nothing.

    Parameters
    ----------
    domain, path
        The registry and the repository, as references have them.
    environ
        Where the files are looked for; None: the environment of this process.

    Raises
    ------
    PlanError
        A file is damaged.

    Notes
    -----
    The first of these files that has something counts: ``$REGISTRY_AUTH_FILE``, ``$XDG_RUNTIME_DIR/containers/auth.json``,
    ``$XDG_CONFIG_HOME/containers/auth.json`` (``~/.config``), ``$DOCKER_CONFIG/config.json`` (``~/.docker``).

    Source: containers-auth.json(5).
    """
    for file in _files(os.environ if environ is None else environ):
        entries = _entries(file)
        for name in _keys(domain, path):
            if (text := entries.get(name)) is not None:
                return _decoded(text, file)
    return None


def _files(environ: Mapping[str, str]) -> Iterator[str]:
    home = environ.get("HOME") or os.path.expanduser("~")
    if named := environ.get("REGISTRY_AUTH_FILE"):
        yield named
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield f"{runtime}/containers/auth.json"
    yield f"{environ.get('XDG_CONFIG_HOME') or f'{home}/.config'}/containers/auth.json"
    yield f"{environ.get('DOCKER_CONFIG') or f'{home}/.docker'}/config.json"


def _keys(domain: str, path: str) -> Iterator[str]:
    """Yield the names under which an entry may stand, those for less first."""
    while path:
        yield f"{domain}/{path}"
        path = path.rpartition("/")[0]
    yield domain


def _entries(path: str) -> dict[str, str]:
    """Return what a file has, by registries as references have them; nothing where there is no file for this user."""
    document = _read(path)
    auths = document.get("auths")
    entries: dict[str, str] = {}
    for name, entry in auths.items() if isinstance(auths, dict) else ():
        auth = entry.get("auth") if isinstance(entry, dict) else None
        if isinstance(auth, str) and auth:
            entries.setdefault(_registry(name), auth)
    return entries


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return {}
            data = file.read(_LARGEST + 1)
    except OSError:  # none, or none of this user's
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if len(data) > _LARGEST or not isinstance(document, dict):
        raise PlanError(f"credentials: {path} is not a file of credentials")  # and what it has is nobody's business
    return document


def _registry(name: str) -> str:
    """Return the registry that is meant by the name of an entry: old ones are the addresses of an interface of old."""
    name = re.sub(r"\Ahttps?://", "", name)
    name = re.sub(r"(/v[12])?/*\Z", "", name)
    domain, slash, path = name.partition("/")
    return f"{_DOCKER if domain in {'index.docker.io', 'registry-1.docker.io'} else domain}{slash}{path}"


def _decoded(text: str, file: str) -> Credentials:
    with suppress(ValueError):
        user, colon, password = b64decode(text, validate=True).decode().rstrip("\0").partition(":")
        if colon:
            return Credentials(user, password)
    raise PlanError(f"credentials: {file} has an entry that is no name and password in Base64")
