"""Bytes that come and go: what archives are read from and written to, and digests on the way.

Everything here takes any object with ``read`` or ``write``: a file, a socket's file, a response of HTTP, a pipe.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Protocol

from isolib.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.handle import Fd

__all__ = ["CHUNK", "Descriptor", "DigestReader", "DigestWriter", "Readable", "Writable", "chain_id"]

#: How much is read and written at once.
CHUNK = 1 << 20


class Readable(Protocol):
    """What bytes come from, front to back."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most so many; none at the end, and at the end alone."""


class Writable(Protocol):
    """What bytes go to, all of those that it is given."""

    def write(self, data: bytes, /) -> object:
        """Take bytes."""


class Descriptor:
    """A descriptor, as what bytes come from or go to: the end of a pipe.

    Parameters
    ----------
    fd
        The descriptor, which stays the caller's.
    """

    def __init__(self, fd: Fd) -> None:
        self._fd = fd

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most so many; none at the end."""
        return os.read(self._fd.fileno(), size)

    def write(self, data: bytes, /) -> None:
        """Write bytes, all of them."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd.fileno(), left) :]


class _Digest:
    """The digest and the number of the bytes that have gone by."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        #: How many bytes have gone by.
        self.size = 0

    @property
    def digest(self) -> str:
        """Of the bytes so far: ``sha256:`` and 64 hexadecimal digits."""
        return f"sha256:{self._hash.hexdigest()}"


class DigestReader(_Digest):
    """Reads from a stream, and takes the digest of what it reads.

    Parameters
    ----------
    source
        The stream.

    Examples
    --------
    >>> import io
    >>> reader = DigestReader(io.BytesIO(b"abc"))
    >>> reader.read(10), reader.size
    (b'abc', 3)
    >>> reader.digest[:15]
    'sha256:ba7816bf'
    """

    def __init__(self, source: Readable) -> None:
        super().__init__()
        self._read: Callable[[int], bytes] = source.read

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most so many; none at the end."""
        data = self._read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read to the end, so that the digest is that of the whole."""
        while self.read(CHUNK):
            pass

    def expect(self, digest: str) -> None:
        """Read to the end, and compare.

        Raises
        ------
        ArchiveError
            It is not the digest of what was read.
        """
        self.drain()
        if self.digest != digest:
            raise ArchiveError(f"the digest of its {self.size} bytes is {self.digest}", digest)


class DigestWriter(_Digest):
    """Takes the digest of what it is given, and passes it on.

    Parameters
    ----------
    sink
        Where it goes; None: nowhere.
    """

    def __init__(self, sink: Writable | None = None) -> None:
        super().__init__()
        self._write: Callable[[bytes], object] | None = None if sink is None else sink.write

    def write(self, data: bytes, /) -> int:
        """Take bytes."""
        self._hash.update(data)
        if self._write is not None:
            self._write(data)
        self.size += len(data)
        return len(data)


def chain_id(parent: str | None, diff_id: str) -> str:
    """Return the digest that stands for a layer with all below it.

    Parameters
    ----------
    parent
        The chain id of the layer below; None for the lowest.
    diff_id
        The layer's own digest, that of its uncompressed tar.

    Notes
    -----
    Source: the OCI image specification, config.md, "Layer ChainID".

    Examples
    --------
    >>> chain_id(None, "sha256:aa")
    'sha256:aa'
    >>> chain_id("sha256:aa", "sha256:bb") == chain_id("sha256:aa", "sha256:cc")
    False
    """
    if parent is None:
        return diff_id
    return f"sha256:{hashlib.sha256(f'{parent} {diff_id}'.encode('ascii')).hexdigest()}"
