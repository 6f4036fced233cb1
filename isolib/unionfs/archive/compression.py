"""Compressed streams: what layers and archives come in, and go out in.

gzip and zstd are what layers are compressed with; bzip2 and xz are read too, as archives of other origin have them.  How a
stream is compressed is told by its first bytes, for media types are often wrong.

What is compressed well is small at first and huge when it has been read, so nothing here expands more than it is asked for, and
no decompressor may use more memory than its format's usual settings need.

Sources: RFC 1952 (gzip), RFC 8878 (zstd); the OCI image specification, layer.md, "+gzip Media Types"; the image manifest of
Docker, version 2, schema 2.

>>> import io
>>> packed = io.BytesIO()
>>> with new_compressor(packed, Compression.GZIP) as sink:
...     sink.write(b"abc" * 1000)
3000
>>> stream = open_compressed(io.BytesIO(packed.getvalue()))
>>> stream.compression, stream.read(9)
(<Compression.GZIP: 'gzip'>, b'abcabcabc')
"""

from __future__ import annotations

import bz2
import enum
import lzma
import sys
import zlib
from typing import TYPE_CHECKING, Final, Protocol

from isolib.errors import ArchiveError, ClosedError, PlanError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType, TracebackType
    from typing import Self

    from isolib.unionfs.archive.streams import Readable, Writable

__all__ = ["Compression", "Compressor", "Expanded", "new_compressor", "of_media_type", "open_compressed"]


class Compression(enum.Enum):
    """How a stream is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    XZ = "xz"


#: What streams begin with.
_MAGIC: Final[Mapping[Compression, bytes]] = {
    Compression.GZIP: b"\x1f\x8b",
    Compression.ZSTD: b"\x28\xb5\x2f\xfd",
    Compression.BZIP2: b"BZh",
    Compression.XZ: b"\xfd7zXZ\0",
}
#: A zstd stream may begin with frames that are to be skipped: sixteen magic numbers, which differ in the first byte only.
_SKIPPABLE: Final = b"\x2a\x4d\x18"
_LONGEST_MAGIC: Final = 6

_OCI: Final = ("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar")
_DOCKER: Final = ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar")
_MEDIA_TYPES: Final[Mapping[str, Compression]] = {
    **dict.fromkeys((*_OCI, *_DOCKER), Compression.NONE),
    **dict.fromkeys([name + "+gzip" for name in _OCI] + [name + ".gzip" for name in _DOCKER], Compression.GZIP),
    **dict.fromkeys([name + "+zstd" for name in _OCI] + [name + ".zstd" for name in _DOCKER], Compression.ZSTD),
}

#: What is read of a stream at once: little, for what is not expanded at once is copied.
_PACKED: Final = 64 << 10
#: Bytes: enough for ``xz -9``.
_XZ_MEMORY: Final = 128 << 20
#: Of zstd's window, the logarithm: 128 MiB, what ``zstd --long`` uses and zstd itself accepts.
_ZSTD_WINDOW: Final = 27
_WITH_HEADER: Final = 16 + zlib.MAX_WBITS  # zlib's way to say gzip


class _Unpacker(Protocol):
    """What expands one member of a stream; bz2's, lzma's and zstd's objects are such."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    """zlib's object, with the face of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(_WITH_HEADER)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class Expanded:
    """A stream without its compression, to be read front to back.

    Attributes
    ----------
    compression
        What it had.
    """

    def __init__(self, stream: Readable, head: bytes, compression: Compression, limit: int | None) -> None:
        self.compression = compression
        self._read: Callable[[int], bytes] = stream.read
        self._head = head
        self._limit = limit
        self._size = 0
        self._new, self._errors = _unpackers(compression)
        self._unpacker = None if self._new is None else self._new()

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most so many; none at the end.

        Raises
        ------
        ArchiveError
            The stream is damaged or cut short, or expands to more than its limit.
        """
        if size <= 0:
            return b""
        data = self._packed(size) if self._unpacker is None else self._expand(self._unpacker, size)
        self._size += len(data)
        if self._limit is not None and self._size > self._limit:
            raise ArchiveError(f"expands to more than the limit of {self._limit} bytes")
        return data

    def _packed(self, size: int) -> bytes:
        if not self._head:
            return self._read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data

    def _expand(self, unpacker: _Unpacker, size: int) -> bytes:
        while True:
            if unpacker.eof:
                following = self._following(unpacker.unused_data)
                if following is None:
                    return b""
                unpacker = following
            packed = b""
            if unpacker.needs_input and not (packed := self._packed(_PACKED)):
                raise ArchiveError(f"is cut short: its {self.compression.value} stream has no end")
            try:
                data = unpacker.decompress(packed, size)
            except self._errors as error:
                raise ArchiveError(f"is damaged: {self.compression.value}: {error}") from error
            if data:
                return data

    def _following(self, rest: bytes) -> _Unpacker | None:
        """Return what expands the next member; None where there is none."""
        # Blocks of tapes are filled up with zeros after the end, and xz has them by itself.
        while not (rest := rest.lstrip(b"\0")):
            rest = self._packed(_PACKED)
            if not rest:
                return None
        self._head = rest + self._head
        assert self._new is not None  # noqa: S101  # there has been one
        self._unpacker = unpacker = self._new()
        return unpacker


def _unpackers(compression: Compression) -> tuple[Callable[[], _Unpacker] | None, tuple[type[Exception], ...]]:
    """Return what makes unpackers, and what these raise."""
    match compression:
        case Compression.NONE:
            return None, ()
        case Compression.GZIP:
            return _Gunzip, (zlib.error,)
        case Compression.BZIP2:
            return bz2.BZ2Decompressor, (OSError,)
        case Compression.XZ:
            return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY), (lzma.LZMAError,)
        case Compression.ZSTD:
            zstd = _zstd()
            options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}
            return lambda: zstd.ZstdDecompressor(options=options), (zstd.ZstdError,)


def _zstd() -> ModuleType:
    """Return Python's zstd, or that of the package that brings it to older versions."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415  # a Python may be built without it
        else:
            from backports import zstd  # noqa: PLC0415  # optional
    except ImportError as error:
        raise Unsupported(
            "zstd", "this Python, which has no module for it", "Python 3.14, or: pip install 'isolib[zstd]'"
        ) from error
    return zstd


def open_compressed(stream: Readable, *, limit: int | None = None) -> Expanded:
    """Return a stream without its compression, whichever it has.

    Parameters
    ----------
    stream
        The stream: tar or anything else, with or without compression.
    limit
        How many bytes it may expand to; None: as many as there are.

    Raises
    ------
    Unsupported
        It is of zstd, and this Python has nothing for it.

    Notes
    -----
    Several members in a row are one stream, and zeros after them are nothing, as for gzip(1).  Of zstd, windows of more than
    128 MiB (``--ultra --long=28``) are refused, and of xz what needs more than 128 MiB of memory.
    """
    head = b""
    while len(head) < _LONGEST_MAGIC and (more := stream.read(_PACKED)):
        head += more
    return Expanded(stream, head, _detect(head), limit)


def _detect(head: bytes) -> Compression:
    for compression, magic in _MAGIC.items():
        if head.startswith(magic):
            return compression
    if head[1:4] == _SKIPPABLE and head[0] >> 4 == 5:  # noqa: PLR2004  # 0x184D2A5?
        return Compression.ZSTD
    return Compression.NONE


def of_media_type(media_type: str) -> Compression:
    """Return how a layer of a media type is compressed.

    Raises
    ------
    ArchiveError
        It is not the media type of a layer, whether of OCI or of Docker.

    Examples
    --------
    >>> of_media_type("application/vnd.oci.image.layer.v1.tar+zstd")
    <Compression.ZSTD: 'zstd'>
    """
    try:
        return _MEDIA_TYPES[media_type]
    except KeyError:
        raise ArchiveError("is not the media type of a layer", media_type) from None


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Compressor:
    """Compresses what it is given and passes it on.  Within ``with``, or by `finish`, it ends the stream."""

    def __init__(self, sink: Writable, packer: _Packer | None) -> None:
        self._write: Callable[[bytes], object] = sink.write
        self._packer = packer

    def write(self, data: bytes, /) -> int:
        """Take bytes."""
        if self._packer is None:
            self._write(data)
        elif packed := self._packer.compress(data):
            self._write(packed)
        return len(data)

    def finish(self) -> None:
        """End the stream; what it goes to stays open."""
        packer, self._packer = self._packer, None
        write, self._write = self._write, _finished
        if packer is not None:
            write(packer.flush())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.finish()


def _finished(_: bytes) -> None:
    raise ClosedError("the compressed stream has been ended")


def new_compressor(sink: Writable, compression: Compression, *, level: int | None = None) -> Compressor:
    """Return what compresses a stream: the same bytes for the same bytes, without name and time.

    Parameters
    ----------
    sink
        Where it goes.
    compression
        NONE, GZIP or ZSTD: what layers may have.
    level
        For gzip 0 to 9, by default 6; for zstd 1 to 22, by default 3.

    Raises
    ------
    PlanError
        Another one, or a level that there is not.
    Unsupported
        zstd, and this Python has nothing for it.
    """
    packer: _Packer | None = None
    match compression:
        case Compression.NONE:
            pass
        case Compression.GZIP:
            _check_level(level, 0, 9)
            packer = zlib.compressobj(6 if level is None else level, zlib.DEFLATED, _WITH_HEADER)
        case Compression.ZSTD:
            _check_level(level, 1, 22)
            zstd = _zstd()
            parameters = zstd.CompressionParameter
            options = {parameters.compression_level: 3 if level is None else level, parameters.checksum_flag: 1}
            packer = zstd.ZstdCompressor(options=options)
        case Compression.BZIP2 | Compression.XZ:
            raise PlanError(f"{compression.value}: not what a layer is compressed with; gzip and zstd are")
    return Compressor(sink, packer)


def _check_level(level: int | None, least: int, most: int) -> None:
    if level is not None and not least <= level <= most:
        raise PlanError(f"level {level}: not from {least} to {most}")
