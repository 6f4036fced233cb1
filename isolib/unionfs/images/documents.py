"""JSON that others wrote: how much of it is read, and how its parts are taken.

Whoever made an image wrote its manifests.  So nothing here believes that a part is there, or is of the right type; whatever is
not so is an `isolib.errors.ArchiveError` that names the document and the part.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

from isolib.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeAlias

    Json: TypeAlias = Any  # what json.loads returns

__all__ = ["LARGEST", "Document", "dump", "parse", "sha256"]

#: Bytes of a manifest or a config.  Registries take manifests of at most 4 MiB; configs are smaller in practice.
LARGEST: Final = 8 << 20
#: Lists and objects within each other.  Ten are more than any image needs.
_DEEPEST: Final = 64
_STRUCTURE: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def sha256(data: bytes) -> str:
    """Return the digest of bytes as images write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse(data: bytes, what: str) -> Json:
    """Return what a document says.

    Parameters
    ----------
    data
        The document, UTF-8.
    what
        Which document, for the message.

    Raises
    ------
    ArchiveError
        It is no JSON, is too long, or nests too deeply.
    """
    if len(data) > LARGEST:
        raise ArchiveError(f"a document of {len(data)} bytes; {LARGEST} are the most", what)
    depth = 0
    for token in _STRUCTURE.finditer(data):
        first = data[token.start()]
        depth += first in b"[{"
        depth -= first in b"]}"
        if depth > _DEEPEST:
            raise ArchiveError(f"a document that nests more than {_DEEPEST} levels deep", what)
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"this is no JSON: {error}", what) from None


def dump(document: Json) -> bytes:
    """Return a document in the one form in which this package writes it: ASCII, no spaces, in the order given."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")


class Document:
    """An object of JSON, and how its members are taken.

    Parameters
    ----------
    value
        The object.
    what
        Which document it is, or is of, for messages.

    Examples
    --------
    >>> Document({"size": 3}, "index.json").number("size")
    3
    """

    __slots__ = ("value", "what")

    def __init__(self, value: Json, what: str) -> None:
        if not isinstance(value, dict):
            raise ArchiveError(f"an object is expected, not {_brief(value)}", what)
        self.value: Mapping[str, Json] = value
        self.what = what

    @classmethod
    def read(cls, data: bytes, what: str) -> Document:
        """Return the object that a document is."""
        return cls(parse(data, what), what)

    def _wrong(self, key: str, expected: str) -> NoReturn:
        found = _brief(self.value[key]) if key in self.value else "nothing"
        raise ArchiveError(f"{key}: {expected} is expected, not {found}", self.what)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; without a default it must be there."""
        value = self.value.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self._wrong(key, "a text")
        return value

    def number(self, key: str) -> int:
        """Return a number that counts something."""
        value = self.value.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            self._wrong(key, "a number, not negative")
        return value

    def flag(self, key: str) -> bool:
        """Return a truth value; absent is false."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, bool):
            self._wrong(key, "true or false")
        return bool(value)

    def object(self, key: str) -> Document:
        """Return an object; absent is an empty one."""
        value = self.value.get(key)
        return Document({} if value is None else value, f"{self.what}, {key}")

    def objects(self, key: str) -> Iterator[Document]:
        """Yield the objects of a list; absent is an empty one."""
        for number, one in enumerate(self._list(key)):
            yield Document(one, f"{self.what}, {key}[{number}]")

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of texts; None where it is absent."""
        if self.value.get(key) is None:
            return None
        found = self._list(key)
        if not all(isinstance(one, str) for one in found):
            self._wrong(key, "a list of texts")
        return tuple(found)

    def mapping(self, key: str) -> dict[str, str]:
        """Return an object whose values are texts; absent is an empty one."""
        found = self.object(key).value
        if not all(isinstance(one, str) for one in found.values()):
            self._wrong(key, "an object of texts")
        return dict(found)

    def keys(self, key: str) -> tuple[str, ...]:
        """Return the keys of an object whose values say nothing, as configs write sets."""
        return tuple(self.object(key).value)

    def _list(self, key: str) -> list[Json]:
        value = self.value.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self._wrong(key, "a list")
        return value


def _brief(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - what fits into a message
