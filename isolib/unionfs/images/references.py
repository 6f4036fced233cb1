"""The names of images: how they are written, and which of two are the same.

``debian`` is short for ``docker.io/library/debian:latest``; so it is everywhere, and a store knows an image by either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from isolib.errors import PlanError

__all__ = ["Reference", "is_digest"]

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_OFFICIAL: Final = "library/"
_LONGEST_PATH: Final = 255

_DOMAIN: Final = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]{1,5})?"
    r"|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?"
)
_PATH: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: object) -> bool:
    """Return whether something is a digest as this package writes them: ``sha256:`` and 64 hexadecimal digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is found: in which registry, under which path, by which tag or digest.

    Two names that mean the same are equal.

    Attributes
    ----------
    domain
        The registry: ``docker.io``, ``localhost:5000``.
    path
        The repository in it: ``library/debian``.
    tag
        None where there is a digest and no tag.
    digest
        Of a manifest; None where it is not given.

    Notes
    -----
    Source: the grammar of github.com/distribution/reference, which Docker, Podman and containerd keep to.

    Examples
    --------
    >>> Reference.parse("debian").full
    'docker.io/library/debian:latest'
    >>> str(Reference.parse("docker.io/library/debian:12"))
    'debian:12'
    """

    domain: str
    path: str
    tag: str | None = DEFAULT_TAG
    digest: str | None = None

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Reference:
        """Read a name.

        Parameters
        ----------
        text
            ``[domain[:port]/]path[:tag][@digest]``.
        what
            The name of the argument, for the message.

        Raises
        ------
        PlanError
            It is none.
        """
        if not isinstance(text, str):
            raise PlanError(f"{what}: a name is a str, not {text!r}")
        name, at, digest = text.partition("@")
        if at and not is_digest(digest):
            raise PlanError(f"{what}: {text!r}: after the @ stands a digest: sha256: and 64 hexadecimal digits")
        # A colon after the last slash is a tag's; one before it, a port's.
        head, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:
            head, colon, tag = name, "", ""
        if colon and not _TAG.fullmatch(tag):
            raise PlanError(
                f"{what}: {text!r}: a tag is 1 to 128 letters, digits, '_', '.' and '-', and begins with none of the last two"
            )
        domain, path = _split(head)
        if not _DOMAIN.fullmatch(domain):
            raise PlanError(f"{what}: {text!r}: {domain!r} is not the name of a registry")
        if not _PATH.fullmatch(path) or len(path) > _LONGEST_PATH:
            raise PlanError(
                f"{what}: {text!r}: a repository is lower case letters and digits, with '.', '_' or '-' between them, "
                f"in parts separated by '/', at most {_LONGEST_PATH} characters"
            )
        return cls(domain, path, tag or (None if digest else DEFAULT_TAG), digest or None)

    @property
    def full(self) -> str:
        """The name with all that is usually left out."""
        return f"{self.domain}/{self.path}{self._rest}"

    @property
    def _rest(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{tag}@{self.digest}" if self.digest is not None else tag

    def __str__(self) -> str:
        if self.domain != DEFAULT_DOMAIN:
            return self.full
        short = self.path.removeprefix(_OFFICIAL)
        return f"{self.path if '/' in short else short}{self._rest}"


def _split(head: str) -> tuple[str, str]:
    """Return domain and path: the first part is a domain when it looks like one, or is ``localhost``."""
    first, slash, rest = head.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        return ("docker.io" if first == "index.docker.io" else first), _official(first, rest)
    return DEFAULT_DOMAIN, _official(DEFAULT_DOMAIN, head)


def _official(domain: str, path: str) -> str:
    is_default = domain in {DEFAULT_DOMAIN, "index.docker.io"}
    return f"{_OFFICIAL}{path}" if is_default and "/" not in path else path
