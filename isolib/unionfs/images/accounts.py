"""Who runs in an image: names of users and groups, as the image's own files know them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from isolib.errors import PlanError
from isolib.unionfs.disk.resolving import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Account", "account_of", "owner_of"]

_PASSWD: Final = b"etc/passwd"
_GROUP: Final = b"etc/group"
#: Bytes of such a file; a hostile image has no say in how much memory it takes.
_MOST: Final = 16 << 20
_MOST_ID: Final = 2**32 - 2
_FIELDS: Final = {_PASSWD: 7, _GROUP: 4}


class Account(NamedTuple):
    """A user of an image.

    Attributes
    ----------
    uid, gid
        Numbers of user and group.
    groups
        The other groups.
    home
        The home directory.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def _lines(root: int, path: bytes) -> Iterator[list[str]]:
    text = read_file(root, path, _MOST).decode("utf-8", "surrogateescape")
    for line in text.split("\n"):
        fields = line.split(":")
        if len(fields) >= _FIELDS[path]:
            yield fields


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > len(str(_MOST_ID)) or int(text) > _MOST_ID:
        raise PlanError(f"user: {text} is no id of a user or a group; {_MOST_ID} is the largest")
    return int(text)


def account_of(root: int, user: str) -> Account:
    """Return who a user is.

    Parameters
    ----------
    root
        A descriptor of the top of a tree of the image.
    user
        ``name``, ``uid``, or either with ``:group``, as configs of images have it; empty: root.

    Raises
    ------
    PlanError
        The image knows no such name.

    Notes
    -----
    A user who is a number needs no entry; without one, the group is 0 and the home "/".  A group that is named is the only one.
    Sources: passwd(5), group(5); the OCI image specification, config.md.
    """
    name, colon, group = str(user).partition(":")
    wanted = name or "0"
    uid = _number(wanted)
    entry = next((one for one in _lines(root, _PASSWD) if one[0] == wanted or (uid is not None and one[2] == str(uid))), None)
    if entry is None and uid is None:
        raise PlanError(f"user: /etc/passwd of the image has no {wanted!r}")
    if entry is not None:
        uid, gid = (_entered(one, entry) for one in entry[2:4])
    else:
        gid = 0
    assert uid is not None  # noqa: S101 - one of the two has it
    home = entry[5] if entry is not None and entry[5] else "/root" if uid == 0 else "/"
    if colon:
        return Account(uid, _group(root, group), (), home)
    others = () if entry is None else _groups(root, entry[0])
    return Account(uid, gid, tuple(one for one in others if one != gid), home)


def _entered(text: str, entry: list[str]) -> int:
    number = _number(text)
    if number is None:
        raise PlanError(f"user: /etc/passwd of the image has no number for {entry[0]!r}, but {text[:20]!r}")
    return number


def _group(root: int, text: str) -> int:
    number = _number(text)
    if number is not None:
        return number
    for entry in _lines(root, _GROUP):
        if entry[0] == text and (found := _number(entry[2])) is not None:
            return found
    raise PlanError(f"user: /etc/group of the image has no {text!r}")


def _groups(root: int, name: str) -> tuple[int, ...]:
    found = (_number(entry[2]) for entry in _lines(root, _GROUP) if name in entry[3].split(","))
    return tuple(sorted({one for one in found if one is not None}))


def owner_of(root: int, owner: str) -> tuple[int, int]:
    """Return the ids of an owner: ``name``, ``uid``, or either with ``:group``; otherwise as `account_of`."""
    found = account_of(root, owner)
    return found.uid, found.gid
