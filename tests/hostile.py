"""Archives that want more than they may: each with what is to become of it.  They are made byte by byte, without isolib.

To unpack them, have a directory that must not change, the *canary*, with a file ``secret`` in it, beside the directory that is
unpacked into.  `Hostile.archive` takes the canary's absolute path.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)


def filled(data: bytes) -> bytes:
    """Return data filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def octal(value: int, width: int) -> bytes:
    """Return a number field as ustar has it."""
    return b"%0*o\0" % (width - 1, value)


def binary(value: int, width: int) -> bytes:
    """Return a number field as GNU tar has it for what is negative or large."""
    return ((value & ((1 << 8 * width) - 1)) | (0x80 << 8 * (width - 1))).to_bytes(width, "big")


def block(name: bytes, kind: bytes = b"0", *, link: bytes = b"", prefix: bytes = b"", **fields: bytes | int) -> bytes:
    """Return a header block.

    Parameters
    ----------
    name, kind, link, prefix
        As they are to stand there.
    **fields
        ``mode``, ``uid``, ``gid``, ``size``, ``mtime``, ``major``, ``minor``: numbers, or the bytes of the field.  Bytes are
        ``checksum``, ``magic`` (by default that of ustar), and ``rest``, which is written over the end, from byte 345 on.
    """

    def number(field: str, width: int, default: int = 0) -> bytes:
        value = fields.get(field, default)
        return (octal(value, width) if isinstance(value, int) else value).ljust(width, b"\0")

    magic, rest, checksum = fields.get("magic", b"ustar\x0000"), fields.get("rest", b""), fields.get("checksum")
    assert isinstance(magic, bytes)
    assert isinstance(rest, bytes)
    start = name.ljust(100, b"\0") + number("mode", 8, 0o644) + number("uid", 8) + number("gid", 8)
    start += number("size", 12) + number("mtime", 12)
    tail = kind + link.ljust(100, b"\0") + magic.ljust(8, b"\0") + bytes(64) + number("major", 8) + number("minor", 8)
    tail += (rest or prefix).ljust(167, b"\0")
    if not isinstance(checksum, bytes):
        checksum = b"%06o\0 " % (sum(start) + 8 * 0x20 + sum(tail))
    made = start + checksum + tail
    assert len(made) == BLOCK, f"a field is too long for {name!r}"
    return made


def member(
    name: bytes, content: bytes = b"", kind: bytes = b"0", *, link: bytes = b"", prefix: bytes = b"", **fields: bytes | int
) -> bytes:
    """Return an entry: a header, and a content, whose size it has unless ``size`` says otherwise."""
    fields.setdefault("size", len(content))
    return block(name, kind, link=link, prefix=prefix, **fields) + filled(content)


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of an extended header."""
    rest = b" %b=%b\n" % (key, value)
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d%b" % (length, rest)


def extended(records: Mapping[bytes, bytes] | bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header, of records or of bytes that are to be some."""
    data = records if isinstance(records, bytes) else b"".join(record(key, value) for key, value in records.items())
    return member(b"PaxHeaders/x", data, kind)


def directory(name: bytes, **fields: bytes | int) -> bytes:
    """Return a directory."""
    fields.setdefault("mode", 0o755)
    return member(name, b"", b"5", link=b"", prefix=b"", **fields)


def symlink(name: bytes, target: bytes) -> bytes:
    """Return a symbolic link, however long its text is."""
    long = extended({b"linkpath": target}) if len(target) > 100 else b""
    return long + member(name, kind=b"2", link=target[:100], mode=0o777)


def hard_link(name: bytes, target: bytes, **fields: bytes | int) -> bytes:
    """Return a hard link."""
    return member(name, b"", b"1", link=target, prefix=b"", **fields)


def sparse(extents: Sequence[tuple[int, int]], size: int, content: bytes) -> bytes:
    """Return a file with holes, in version 1.0."""
    lines = [len(extents), *(number for extent in extents for number in extent)]
    table = filled(b"".join(b"%d\n" % line for line in lines))
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"holes"}
    return extended({**records, b"GNU.sparse.realsize": b"%d" % size}) + member(b"GNUSparseFile.1/holes", table + content)


def mapped(table: bytes, major: bytes = b"1") -> bytes:
    """Return a file whose map, of version 1.0, is what it is."""
    records = {b"GNU.sparse.major": major, b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"100"}
    return extended(records) + member(b"x", filled(table))


def old_sparse(extents: bytes, size: bytes | int) -> bytes:
    """Return a file with holes, in the notation of old GNU tar."""
    real = octal(size, 12) if isinstance(size, int) else size
    return block(b"x", b"S", magic=b"ustar  \0", rest=bytes(41) + extents.ljust(96, b"\0") + b"\0" + real)


@dataclass(frozen=True)
class Hostile:
    """An archive that is up to something.

    Attributes
    ----------
    name
        What it tries.
    build
        Makes it for a canary.
    refused
        What the reader says of it, or a part of that.  None: it is read, and what is made of it stays inside.
    """

    name: str
    build: Callable[[bytes], bytes]
    refused: str | None = None

    def archive(self, canary: bytes = b"/canary") -> bytes:
        """Return the archive."""
        return self.build(canary)

    def __str__(self) -> str:
        return self.name


def refused(name: str, archive: bytes, reason: str) -> Hostile:
    """Return a case that the reader refuses."""
    return Hostile(name, lambda _: archive + END, reason)


def bare(name: str, archive: bytes, reason: str) -> Hostile:
    """Return a case that the reader refuses, whose end is as it is given."""
    return Hostile(name, lambda _: archive, reason)


def harmless(name: str, build: Callable[[bytes], bytes] | bytes) -> Hostile:
    """Return a case that is read."""
    if isinstance(build, bytes):
        archive = build
        return Hostile(name, lambda _: archive + END)
    make = build
    return Hostile(name, lambda canary: make(canary) + END)


X: Final = member(b"x", b"x")
UP: Final = "leads upward"
LINK: Final = "leads upward"

PATHS: Final = [
    refused("a path that leads upward", member(b"../canary/x", b"x"), UP),
    refused("upward from further down", member(b"a/../../canary/x", b"x"), UP),
    refused("upward and down again to where it was", member(b"a/../b", b"x"), UP),
    refused("an absolute path that leads upward", member(b"/../canary/x", b"x"), UP),
    refused("the parent directory itself", directory(b".."), UP),
    refused("a path that ends upward", directory(b"a/.."), UP),
    refused("upward in an extended header", extended({b"path": b"../canary/x"}) + X, UP),
    refused("upward in a long name of GNU", member(b"@", b"../canary/x\0", b"L") + X, UP),
    refused("upward in the prefix", member(b"canary/x", b"x", prefix=b".."), UP),
    refused("upward in the name of a sparse file", extended({b"GNU.sparse.name": b"../canary/x"}) + X, UP),
    refused("upward to a whiteout", member(b"../canary/.wh.secret"), UP),
    refused("upward to an opaque mark", member(b"../canary/.wh..wh..opq"), UP),
    refused("no path", member(b"", b"x"), "is empty"),
    refused("no path in an extended header and none in the header", extended({b"path": b""}) + member(b""), "is empty"),
    refused("a path with a NUL", extended({b"path": b"x\0/../../canary/x"}) + X, UP),
    refused("a path with a NUL and nothing else", extended({b"path": b"x\0y"}) + X, "has a NUL"),
    refused("a name of 256 bytes", extended({b"path": b"d/" + b"n" * 256}) + X, "more than 255 bytes"),
    refused("a path of 4096 bytes", extended({b"path": b"d/" * 2047 + b"nn"}) + X, "longer than 4095"),
    refused("a path of a million bytes", extended({b"path": b"d/" * 500_000 + b"x"}) + X, "longer than 4095"),
    refused("the root as a symbolic link", symlink(b".", b"/canary"), "makes the root a symbolic link"),
    refused("the root as a file", member(b".", b"x"), "makes the root a file"),
    refused("the root as a hard link", hard_link(b"/", b"x"), "makes the root a hard link"),
    refused("the root as a device", member(b"./.", kind=b"4", major=8), "makes the root a block device"),
    refused("the root as a whiteout by overlay", member(b".", kind=b"3"), "makes the root a character device"),
    refused("two names by two kinds of header", member(b"@", b"a\0", b"L") + extended({b"path": b"b"}) + X, "is named twice"),
    refused("two long names", 2 * member(b"@", b"a\0", b"L") + X, "two long names"),
    refused("a file with the name of a directory", member(b"d/", b"x"), "with the name of a directory"),
    refused("a character set that is not known", extended({b"hdrcharset": b"EBCDIC"}) + X, "character set"),
]

LINKS: Final = [
    refused("a hard link that leads upward", hard_link(b"h", b"../canary/secret"), LINK),
    refused(
        "a hard link that leads upward in an extended header",
        extended({b"linkpath": b"a/../../secret"}) + hard_link(b"h", b"x"),
        LINK,
    ),
    refused("a hard link that leads upward in a long name of GNU", member(b"@", b"../s\0", b"K") + hard_link(b"h", b"x"), LINK),
    refused("a hard link to itself", X + hard_link(b"./x", b"/x"), "to itself"),
    refused("a hard link to the root", hard_link(b"h", b"./"), "to the root"),
    refused("a hard link to nothing", hard_link(b"h", b""), "is empty"),
    refused("a hard link to a whiteout", member(b".wh.x") + hard_link(b"h", b".wh.x"), "to a whiteout"),
    refused("a hard link with a NUL", extended({b"linkpath": b"x\0y"}) + hard_link(b"h", b"x"), "has a NUL"),
    refused("a symbolic link to nothing", symlink(b"s", b""), "symbolic link to nothing"),
    refused("a symbolic link with a NUL", extended({b"linkpath": b"x\0y"}) + symlink(b"s", b"x"), "with a NUL"),
    refused("a symbolic link of 4096 bytes", symlink(b"s", b"t" * 4096), "more than Linux has room for"),
    refused(
        "two targets by two kinds of header",
        member(b"@", b"a\0", b"K") + extended({b"linkpath": b"b"}) + symlink(b"s", b"c"),
        "twice",
    ),
]

WHITEOUTS: Final = [
    refused("a whiteout of no name", member(b"a/.wh."), "whiteout of no name"),
    refused("a whiteout of this directory", member(b"a/.wh.."), "whiteout of no name"),
    refused("a whiteout of the parent directory", member(b"a/.wh..."), "whiteout of no name"),
    refused("a file below a whiteout", member(b".wh.a/b", b"x"), "below a whiteout"),
    refused(
        "a file that overlay takes from elsewhere",
        extended({b"SCHILY.xattr.trusted.overlay.metacopy": b""}) + X,
        "not all here",
    ),
    refused(
        "a directory that overlay takes from elsewhere",
        extended({b"SCHILY.xattr.user.overlay.redirect": b"/../canary"}) + directory(b"d"),
        "not all here",
    ),
]

NUMBERS: Final = [
    refused("a negative size", member(b"x", size=binary(-512, 12)), "a size of -512"),
    refused("a size beyond 63 bits", member(b"x", size=binary(1 << 70, 12)), "has a size of"),
    refused("a size that is no number", member(b"x", size=b"12345678x"), "is no number"),
    refused("a size with a sign", member(b"x", size=b"-0000000001"), "is no number"),
    refused("a size with an underscore", member(b"x", size=b"1_0"), "is no number"),
    refused("a size of digits that are not octal", member(b"x", size=b"00000000009"), "is no number"),
    refused("a size in an extended header that is no number", extended({b"size": b"-1"}) + X, "is no number"),
    refused("a size in an extended header of a thousand digits", extended({b"size": b"9" * 1000}) + X, "is no number"),
    refused("a size in an extended header beyond 63 bits", extended({b"size": b"%d" % (1 << 63)}) + X, "has a size of"),
    refused("an owner that is none", member(b"x", uid=binary((1 << 32) - 1, 8)), "out of range"),
    refused("an owner beyond 32 bits", extended({b"uid": b"%d" % (1 << 64)}) + X, "out of range"),
    refused("a negative owner", member(b"x", gid=binary(-1, 8)), "out of range"),
    refused("an owner in an extended header that is no number", extended({b"gid": b"root"}) + X, "is no number"),
    refused("a time that never comes", member(b"x", mtime=binary(1 << 60, 12)), "out of range"),
    refused("a time in an extended header that never comes", extended({b"mtime": b"9" * 20}) + X, "out of range"),
    refused("a time that is no number", extended({b"mtime": b"nan"}) + X, "no time"),
    refused("a time with an exponent", extended({b"mtime": b"1e9"}) + X, "no time"),
    refused("a device with a number of 13 bits", member(b"c", kind=b"3", major=1 << 12), "out of range"),
]

HEADERS: Final = [
    refused("a wrong check sum", member(b"x", b"x", checksum=b"012345\0 "), "check sum"),
    refused("a check sum that is no number", member(b"x", b"x", checksum=b"abcdefgh"), "check sum"),
    refused("noise", bytes(range(256)) * 2, "check sum"),
    refused("an unknown type", member(b"x", kind=b"Z"), "unknown type"),
    refused("a continuation from another volume", member(b"x", kind=b"M"), "another volume"),
    refused("a record that is too long", extended(b"99 path=a\n") + X, "malformed"),
    refused("a record that is too short", extended(b"9 path=ab\n") + X, "malformed"),
    refused("a record of no length", extended(b"0 path=a\n") + X, "malformed"),
    refused("a record whose length has a sign", extended(b"+10 path=a\n") + X, "malformed"),
    refused("a record whose length has a space before it", extended(b" 10 path=a\n") + X, "malformed"),
    refused("a record whose length has a thousand digits", extended(b"1" * 1000 + b" path=a\n") + X, "malformed"),
    refused("a record that does not end", extended(b"9 path=ab") + X, "malformed"),
    refused("a record without a value", extended(b"8 path\n\n") + X, "malformed"),
    refused("a record without a key", extended(b"5 =a\n") + X, "malformed"),
    refused("zeros after the records", extended(b"9 path=a\n" + bytes(10)) + X, "malformed"),
    refused("an extended header of 9 MiB", member(b"@", kind=b"x", size=9 << 20), "an extended header of 9437184 bytes"),
    refused("a long name of 1 GiB", member(b"@", kind=b"L", size=1 << 30), "an extended header of 1073741824 bytes"),
    refused(
        "an extended header of a negative size", member(b"@", kind=b"x", size=binary(-1, 12)), "an extended header of -1 bytes"
    ),
    refused(
        "half a million records",
        extended(b"".join(record(b"%x" % number, b"") for number in range(500_000))) + X,
        "more than 16384 records",
    ),
    refused(
        "global headers without end",
        b"".join(extended({b"%d" % number: bytes(1000)}, b"g") for number in range(100)) + X,
        "more than 65536 bytes of every entry",
    ),
    refused("two extended headers", 2 * extended({b"path": b"y"}) + X, "two extended headers"),
    refused("an extended header at the end", extended({b"path": b"y"}), "not followed by the entry"),
    refused(
        "a global header after an extended one", extended({b"path": b"y"}) + extended({b"uid": b"1"}, b"g") + X, "not followed"
    ),
    refused("a global path", extended({b"path": b"y"}, b"g") + X, "the same path"),
    refused("a global size", extended({b"size": b"0"}, b"g") + X, "the same size"),
    refused(
        "a global sparse map",
        extended({b"GNU.sparse.offset": b"0", b"GNU.sparse.numbytes": b"1"}, b"g") + X,
        "the same sparse map",
    ),
    refused(
        "an attribute with a name of 256 bytes",
        extended({b"SCHILY.xattr.user." + b"n" * 251: b""}) + X,
        "longer than there is room",
    ),
    refused(
        "an attribute of more than 64 KiB", extended({b"SCHILY.xattr.user.a": bytes(65537)}) + X, "longer than there is room"
    ),
    refused("an attribute with a NUL in its name", extended({b"LIBARCHIVE.xattr.user.a%00b": b64encode(b"x")}) + X, "NUL"),
    refused("an attribute that is no base64", extended({b"LIBARCHIVE.xattr.user.a": b"*"}) + X, "base64"),
]

SIZES: Final = [
    bare("a header that is cut short", X[:300], "cut short"),
    bare("a content that is cut short", member(b"x", bytes(1000))[:1024], "cut short"),
    bare("a last block that is cut short", X[:600], "cut short"),
    bare("an extended header that is cut short", extended({b"comment": bytes(1000)})[:1024], "cut short"),
    bare("no end mark", X, "no end mark"),
    bare("nothing at all", b"", "no end mark"),
    bare("an end for some, and more for others", X + bytes(BLOCK) + member(b"y") + END, "goes on after a single block"),
    refused("a bomb of 100 GiB", member(b"x", size=binary(100 << 30, 12)), "more than the limit"),
    refused("a bomb among aufs's books", member(b".wh..wh.plnk/1", size=2 << 30), "pseudo-links have more than"),
    refused("a bomb of holes", sparse([(0, 1)], (1 << 62), b"x"), "more than the limit"),
    refused("holes that overlap", sparse([(0, 4), (2, 4)], 100, b"xxxxxxxx"), "overlap"),
    refused("holes in reverse", sparse([(50, 4), (0, 4)], 100, b"xxxxxxxx"), "out of order"),
    refused("data beyond the end", sparse([(90, 20)], 100, bytes(20)), "beyond its end"),
    refused("less data than the map has", sparse([(0, 4)], 100, b"x"), "the archive 1"),
    refused("more data than the map has", sparse([(0, 4)], 100, bytes(600)), "the archive 600"),
    refused("a map of a trillion stretches", mapped(b"1000000000000\n"), "more than 262144 stretches"),
    refused("a map that is no numbers", mapped(b"one\n0\n1\n"), "malformed"),
    refused("a map that does not end", mapped(b"2\n0\n1\n"), "malformed"),
    refused("a map with numbers of a thousand digits", mapped(b"1\n" + b"9" * 400), "malformed"),
    refused("a map in a notation of the future", mapped(b"0\n", major=b"2"), "not known"),
    refused("a map in star's notation", extended({b"SCHILY.realsize": b"1"}) + X, "not known"),
    refused("a map without the size of the file", extended({b"GNU.sparse.map": b"0,1"}) + X, "is no number"),
    refused("a map of an odd count", extended({b"GNU.sparse.map": b"0,1,2", b"GNU.sparse.size": b"9"}) + X, "without a length"),
    refused(
        "a map that counts wrongly",
        extended({b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"9", b"GNU.sparse.numblocks": b"2"}) + X,
        "says that it has 2",
    ),
    refused(
        "a map of lengths without offsets",
        extended({b"GNU.sparse.size": b"9", b"GNU.sparse.numbytes": b"1"}) + X,
        "does not alternate",
    ),
    refused("an old map with something that is no number", old_sparse(b"zzzzzzzzzzzz", 9), "no number"),
    refused("an old map of a negative size", old_sparse(b"", binary(-1, 12)), "size of a sparse file"),
]

#: These are read; what is unpacked of them stays in the tree, whether the unpacking succeeds or is refused on the way.
HARMLESS: Final = [
    harmless("an absolute path", lambda canary: member(canary + b"/x", b"x")),
    harmless("an absolute path with too many slashes", lambda canary: member(b"//" + canary + b"//x", b"x")),
    harmless("a hard link to an absolute path", lambda canary: hard_link(b"h", canary + b"/secret")),
    harmless("a file through a symbolic link", lambda canary: symlink(b"l", canary) + member(b"l/secret", b"x")),
    harmless("a file through a relative symbolic link", symlink(b"l", b"../canary") + member(b"l/secret", b"x")),
    harmless(
        "a file through two symbolic links",
        lambda canary: symlink(b"a", b"b") + symlink(b"b", canary) + member(b"a/secret", b"x"),
    ),
    harmless(
        "a file through /proc/self/root", lambda canary: symlink(b"l", b"/proc/self/root" + canary) + member(b"l/secret", b"x")
    ),
    harmless("a file through /proc/self/cwd", symlink(b"l", b"/proc/self/cwd") + member(b"l/isolib-was-here", b"x")),
    harmless("a file through a loop of symbolic links", symlink(b"l", b"l") + member(b"l/x", b"x")),
    harmless("a directory through a symbolic link", lambda canary: symlink(b"l", canary) + directory(b"l/d")),
    harmless(
        "a directory in the place of a symbolic link",
        lambda canary: symlink(b"l", canary) + directory(b"l", mode=0o777) + member(b"l/secret", b"x"),
    ),
    harmless(
        "a symbolic link in the place of a directory",
        lambda canary: directory(b"d") + symlink(b"d", canary) + member(b"d/secret", b"x"),
    ),
    harmless(
        "a symbolic link in the place of a directory, for a while",
        lambda canary: directory(b"d") + member(b"d/x") + symlink(b"d", canary) + directory(b"d") + member(b"d/secret", b"x"),
    ),
    harmless(
        "a file in the place of a symbolic link",
        lambda canary: symlink(b"l", canary + b"/secret") + member(b"l", b"x", mode=0o777),
    ),
    harmless(
        "attributes for what a symbolic link leads to",
        lambda canary: (
            symlink(b"l", canary + b"/secret")
            + extended({b"SCHILY.xattr.user.was": b"here"})
            + member(b"l", b"x", uid=1, mode=0o4777)
        ),
    ),
    harmless(
        "attributes of a symbolic link",
        lambda canary: extended({b"SCHILY.xattr.security.capability": bytes(20)}) + symlink(b"l", canary + b"/secret"),
    ),
    harmless("a hard link through a symbolic link", lambda canary: symlink(b"l", canary) + hard_link(b"h", b"l/secret")),
    harmless(
        "a hard link to a symbolic link, and a file over it",
        lambda canary: symlink(b"l", canary + b"/secret") + hard_link(b"h", b"l") + member(b"h", b"x"),
    ),
    harmless(
        "a hard link to a symbolic link, with rights",
        lambda canary: symlink(b"l", canary + b"/secret") + hard_link(b"h", b"l", mode=0o4777, uid=1),
    ),
    harmless("a hard link made through a symbolic link", lambda canary: symlink(b"l", canary) + X + hard_link(b"l/h", b"x")),
    harmless("a symbolic link made through a symbolic link", lambda canary: symlink(b"l", canary) + symlink(b"l/s", b"secret")),
    harmless("a FIFO made through a symbolic link", lambda canary: symlink(b"l", canary) + member(b"l/f", kind=b"6")),
    harmless(
        "a device made through a symbolic link",
        lambda canary: symlink(b"l", canary) + member(b"l/c", kind=b"3", major=1, minor=3),
    ),
    harmless("a whiteout through a symbolic link", lambda canary: symlink(b"l", canary) + member(b"l/.wh.secret")),
    harmless(
        "a whiteout by overlay through a symbolic link", lambda canary: symlink(b"l", canary) + member(b"l/secret", kind=b"3")
    ),
    harmless("an opaque mark through a symbolic link", lambda canary: symlink(b"l", canary) + member(b"l/.wh..wh..opq")),
    harmless(
        "an opaque mark for a symbolic link", lambda canary: symlink(b"l", canary) + member(b"l/.wh..wh..opq") + directory(b"l")
    ),
    harmless("a hard link before its target", hard_link(b"h", b"later") + member(b"later", b"x")),
    harmless("hard links to each other", hard_link(b"a", b"b") + hard_link(b"b", b"a")),
    harmless("a hard link to a directory", directory(b"d") + hard_link(b"h", b"d")),
    harmless("a hard link to a directory below which it lies", directory(b"d") + hard_link(b"d/h", b"d")),
    harmless("a hard link in the place of the directory of its target", member(b"d/x", b"x") + hard_link(b"d", b"d/x")),
    harmless("a hard link with a content", hard_link(b"h", b"x", size=512) + X),
    harmless("a file below a file", member(b"a", b"x") + member(b"a/b", b"x")),
    harmless("a file in the place of a directory that is not empty", member(b"d/x", b"x") + member(b"d", b"x")),
    harmless("a file, a directory and a file again", member(b"a") + directory(b"a") + member(b"a/b") + member(b"a", b"x")),
    harmless("one file a hundred times", X * 100),
    harmless("a file in the place of a FIFO", member(b"f", kind=b"6") + member(b"f", b"x")),
    harmless("a file in the place of a device", member(b"z", kind=b"3", major=1, minor=5) + member(b"z", b"x")),
    harmless("a disk", member(b"sda", kind=b"4", major=8, mode=0o666)),
    harmless("memory", member(b"mem", kind=b"3", major=1, minor=1, mode=0o666)),
    harmless("a program that runs as root", member(b"sh", b"#!/bin/sh\n", mode=0o6755)),
    harmless(
        "a program with capabilities",
        extended({b"SCHILY.xattr.security.capability": bytes.fromhex("0100000200200000") + bytes(12)}) + X,
    ),
    harmless("a directory that nobody may enter, and a file in it", directory(b"d", mode=0) + member(b"d/x", b"x")),
    harmless("a root that is another user's and everybody's", directory(b"./", mode=0o1777, uid=1, gid=1)),
    harmless("an owner that is not mapped", member(b"x", uid=binary((1 << 32) - 2, 8), gid=binary((1 << 32) - 2, 8))),
    harmless("a tree of 2000 directories", extended({b"path": b"d/" * 2000 + b"x"}) + X),
    harmless("a name of 255 bytes", extended({b"path": b"n" * 255}) + X),
    harmless("names for a terminal", member(b"\x1b]0;x\x07\n\r-rf") + extended({b"path": b"\xff\xfe"}) + X),
    harmless("names for a shell", member(b"$(reboot)") + member(b"-rf *") + member(b"; rm x")),
    harmless("a whiteout of what was never there", member(b".wh.x") + member(b"no/such/.wh.directory")),
    harmless("a whiteout of what the same archive has", X + member(b".wh.x") + member(b".wh.y") + member(b"y", b"y")),
    harmless("a whiteout of a name of 255 bytes", extended({b"path": b".wh." + b"n" * 255}) + X),
    harmless("a whiteout of a directory that the same archive fills", member(b".wh.d") + member(b"d/x", b"x")),
    harmless("an opaque root", member(b".wh..wh..opq") + X),
    harmless("an opaque mark after what it does not hide", member(b"d/x", b"x") + member(b"d/.wh..wh..opq") + member(b"d/y")),
    harmless("an opaque mark for a file", X + member(b"x/.wh..wh..opq")),
    harmless("books of aufs", directory(b".wh..wh.plnk") + member(b".wh..wh.plnk/1.2", b"x") + member(b".wh..wh.aufs") + X),
    harmless(
        "a link of aufs",
        member(b".wh..wh.plnk/1.2", b"x") + hard_link(b"a", b".wh..wh.plnk/1.2") + hard_link(b"b", b".wh..wh.plnk/1.2"),
    ),
    harmless(
        "attributes that overlay would believe",
        extended({b"SCHILY.xattr.trusted.overlay.opaque": b"y", b"SCHILY.xattr.trusted.overlay.origin": b"x"})
        + directory(b"d"),
    ),
    harmless("attributes of another system", extended({b"SCHILY.xattr.com.apple.quarantine": b"x"}) + X),
    harmless(
        "a time before the epoch, and one beyond 32 bits",
        extended({b"mtime": b"-1.5"}) + X + extended({b"mtime": b"9999999999.5"}) + member(b"y"),
    ),
    harmless("a sparse file with a hole of 8 MiB", sparse([(0, 1), (8 << 20, 1)], (8 << 20) + 1, b"xy")),
    Hostile("a single block of zeros at the end", lambda _: X + bytes(BLOCK)),
    harmless("something after the end", X + END + b"junk" * 1000),
]

EVERY: Final = [*PATHS, *LINKS, *WHITEOUTS, *NUMBERS, *HEADERS, *SIZES, *HARMLESS]
