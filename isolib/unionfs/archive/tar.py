"""Layers as archives: a tar is read into pieces, and made of them.

Every tar that is about is read: ustar and what was before it, GNU's, PAX, with long names, large numbers, times to the
nanosecond, extended attributes and holes.  Archives are anybody's, so nothing is taken on trust: what is out of range, leads
out of the tree, contradicts itself or means one thing to one program and another to the next is refused, in Python, by a
check that says so.  What is written is a layer as OCI has it: PAX where ustar has no room, the same bytes for the same entries.

Sources: the OCI image specification, layer.md; see also `isolib.unionfs.archive.headers`, `isolib.unionfs.archive.pax`,
`isolib.unionfs.archive.sparse`.

>>> import io
>>> from isolib.unionfs.entry import Entry, Kind
>>> tar = io.BytesIO()
>>> write([(Entry(b"etc", Kind.DIRECTORY, 0o755), None), (Entry(b"etc/motd", Kind.WHITEOUT), None)], tar)
2048
>>> [entry.kind.value for entry, _ in read(io.BytesIO(tar.getvalue()))]
['directory', 'whiteout']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib.unionfs.archive.reading import Limits, Reader
from isolib.unionfs.archive.writing import Writer
from isolib.unionfs.entry import Offering

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.unionfs.archive.recipe import Recorder
    from isolib.unionfs.archive.streams import Readable, Writable
    from isolib.unionfs.entry import Piece, Pieces

__all__ = ["Limits", "read", "write"]

_DEFAULT = Limits()


def read(
    stream: Readable, *, limits: Limits = _DEFAULT, record: Recorder | None = None, unended: bool = False
) -> Iterator[Piece]:
    """Read the pieces of an archive, in its order, to the end of the stream.

    What only an archive has is decoded.  ``.wh.NAME``, a character device 0:0 and an empty file with overlay's attribute
    ``whiteout`` are WHITEOUTs.  A directory that overlay's attribute calls opaque is; ``.wh..wh..opq`` right after its
    directory makes that one opaque, and anywhere else it is an entry of its own, an OPAQUE mark.  All these hide what lower
    layers have, and nothing of the same archive, wherever in it they stand.  Overlay's attributes are gone from the others.
    A hard link's target is a path of the archive, from its root on.

    One path may come several times: the later one counts.  That a directory comes before what is in it is not said.

    Parameters
    ----------
    stream
        The archive, not compressed: see `isolib.unionfs.archive.compression`.
    limits
        What it may grow to.
    record
        Is told what the archive is made of; `Recorder.finish` is the caller's to call, when the last piece has come.
    unended
        Accept one that stops between two entries, without the blocks of zeros that end an archive.  Only for one whose digest
        is compared: otherwise it may well have been cut short.

    Yields
    ------
    Entry, Content
        A content can be read until the next piece is asked for.

    Raises
    ------
    ArchiveError
        The archive is damaged, beyond its limits, or asks for what must not be.

    Notes
    -----
    Not kept: times of access and of change, names of users and groups, access control lists as text (as attributes,
    ``system.posix_acl_access``, they are), attributes that are no Linux ones (``com.apple.``), labels of SELinux by GNU tar.
    """
    return Reader(stream, limits, record, unended=unended).pieces()


def write(pieces: Pieces, sink: Writable, *, mtime_limit: int | None = None, record: Recorder | None = None) -> int:
    """Write pieces as an archive: the layer of an image, as OCI has it.

    Parameters
    ----------
    pieces
        In the order in which they are to be written; for the same archive each time, sorted.  Contents must be as long as their
        entries say, or longer: of a file that grows meanwhile, what it had is written.
    sink
        Where the archive goes, in pieces of about 1 MiB: see `isolib.unionfs.archive.streams.DigestWriter`.
    mtime_limit
        Later times become this one, in nanoseconds since 1970, as with ``SOURCE_DATE_EPOCH``.
    record
        Makes the archive's recipe; it is finished here.

    Returns
    -------
    int
        How many bytes were written.

    Raises
    ------
    ArchiveError
        An entry cannot be in a layer: its name begins with ``.wh.``, its path is longer than 4095 bytes.  Or its content is
        shorter than it was to be.
    """
    writer = Writer(sink, mtime_limit=mtime_limit, record=record)
    if isinstance(pieces, Offering):
        for one in pieces.offers():
            if isinstance(one, tuple):
                writer.add(*one)
            else:
                writer.pack(one)
    else:
        for entry, content in pieces:
            writer.add(entry, content)
    writer.finish()
    return writer.size
