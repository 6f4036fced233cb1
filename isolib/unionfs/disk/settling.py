"""The end of unpacking: what is below is hidden as the layer says, and directories get their attributes.

Only now is known what the layer brings; so whiteouts hide what is below and nothing else, wherever in the archive they stood.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel import calls
from isolib.errors import SyscallError, from_errno
from isolib.unionfs.disk.attributes import DEFAULT_MODE, set_mtime
from isolib.unionfs.disk.files import NOT_A_DIRECTORY, attempt, joined, names_in, open_beneath, shown
from isolib.unionfs.disk.scan import BOOKS
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Entry, Kind

if TYPE_CHECKING:
    from isolib.unionfs.disk.attributes import Attributes
    from isolib.unionfs.disk.below import Below, Visible
    from isolib.unionfs.disk.placing import Node, Places

__all__ = ["settle"]

_DEFAULT_ACL: Final = "system.posix_acl_default"


class _Visit(NamedTuple):
    node: Node
    path: bytes
    #: Nothing of what is below it is to be seen, because of a directory above.
    is_hidden: bool
    #: Nor of what is below at its own path.
    is_gone: bool


def settle(places: Places, form: Form, below: Below, attributes: Attributes) -> None:
    """Hide what is below, and give the directories what belongs to them, the innermost first.

    Parameters
    ----------
    places
        What the layer brings.
    form
        How it lies on disk.
    below
        What the layers below show; not asked for MERGED, where that is what is there.
    attributes
        Gives them.
    """
    settling = _Merged(places, attributes) if form is Form.MERGED else _Marked(places, attributes, below, form)
    todo: list[tuple[_Visit, Visible | None, bool]] = [(_Visit(places.root, b"", is_hidden=False, is_gone=False), None, False)]
    while todo:
        visit, seen, is_done = todo.pop()
        if is_done:
            if visit.node.made:
                settling.finish(visit, seen)
            continue
        seen, hides = settling.hide(visit)
        todo.append((visit, seen, True))
        if not visit.node.made and not settling.has_below(visit, seen):
            continue
        for name, child in visit.node.names.items():
            if child is not None:
                gone = name in visit.node.gone
                todo.append((_Visit(child, joined(visit.path, name), hides, gone), None, False))


def _default(path: bytes) -> Entry:
    """Return what a directory is of which nobody says anything: the caller's."""
    return Entry(path, Kind.DIRECTORY, DEFAULT_MODE, os.geteuid(), os.getegid())


class _Merged:
    """In a tree that has what is below in it, that is removed."""

    def __init__(self, places: Places, attributes: Attributes) -> None:
        self._places = places
        self._attributes = attributes
        self._as_it_is = attributes.unmapped()

    def has_below(self, visit: _Visit, _seen: Visible | None) -> bool:
        """Return whether there may be something below a directory that the layer does not bring."""
        return not (visit.is_hidden or visit.is_gone)

    def hide(self, visit: _Visit) -> tuple[None, bool]:
        """Remove what the layer hides in a directory; returns whether it hides all that is below."""
        node = visit.node
        hides = visit.is_hidden or visit.is_gone or node.opaque
        if not node.made and (visit.is_hidden or visit.is_gone or not self._found(visit)):
            return None, hides
        if hides or node.gone:
            with open_beneath(self._places.fd, visit.path) as opened:
                for name in names_in(opened.fileno(), visit.path) if hides else node.gone:
                    if not node.brings(name):
                        calls.remove_tree(opened.fileno(), name, shown(joined(visit.path, name)))
        return None, hides

    def _found(self, visit: _Visit) -> bool:
        """Take a directory that the layer only says something about, so that its time stays; returns whether there is one."""
        if not (visit.node.opaque or visit.node.gone):
            return False
        try:
            open_beneath(self._places.fd, visit.path, os.O_PATH | os.O_DIRECTORY).close()
        except SyscallError as error:
            if error.errno == ENOENT or error.errno in NOT_A_DIRECTORY:
                return False
            raise
        self._places.make(visit.path)
        return True

    def finish(self, visit: _Visit, _seen: Visible | None) -> None:
        """Give a directory its attributes, or those that it had."""
        node, path = visit.node, visit.path
        with open_beneath(self._places.fd, path) as opened:
            fd = opened.fileno()
            if node.entry is not None:
                self._attributes.dress(fd, node.entry, anew=node.before is None)
            elif node.before is None or visit.is_hidden or visit.is_gone:
                self._as_it_is.dress(fd, _default(path), anew=node.before is None)
            else:
                if node.acl is not None:
                    attempt("fsetxattr", path, os.setxattr, fd, _DEFAULT_ACL, node.acl)
                with suppress(SyscallError):  # it was not changed either, then
                    attempt("fchmod", path, os.fchmod, fd, node.before.st_mode & 0o7777)
                set_mtime(fd, node.before.st_mtime_ns, path)


class _Marked:
    """In a directory that has the layer's own changes only, that is said by marks."""

    def __init__(self, places: Places, attributes: Attributes, below: Below, form: Form) -> None:
        self._places = places
        self._attributes = attributes
        self._as_it_is = attributes.unmapped()
        self._below = below
        self._books = os.fsdecode(BOOKS[form])

    def has_below(self, visit: _Visit, seen: Visible | None) -> bool:
        """Return whether there may be something below a directory that the layer does not bring."""
        return seen is not None and not visit.is_gone and seen.entry.kind is Kind.DIRECTORY

    def hide(self, visit: _Visit) -> tuple[Visible | None, bool]:
        """Mark what the layer hides in a directory; returns what is below, and whether the layer hides all that is in it."""
        node, path = visit.node, visit.path
        seen = None if visit.is_hidden else self._below.find(path)
        is_merged = self.has_below(visit, seen)
        if not path and node.opaque and is_merged:
            # The root of a layer is never opaque to overlayfs: what is in it is hidden name by name.
            node.gone.update(self._below.names(path))
        hides = visit.is_hidden or visit.is_gone or (node.opaque and path != b"") or not is_merged
        gone = [name for name in node.gone if not node.brings(name) and not hides and self._below.find(joined(path, name))]
        if not node.made and is_merged and (gone or node.opaque):
            self._places.make(path)
        if not node.made:
            return seen, hides
        is_opaque = node.opaque or (seen is not None and not is_merged)
        if (path and is_opaque) or gone:
            with open_beneath(self._places.fd, path) as opened:
                if path and is_opaque:
                    self._set(opened.fileno(), "opaque", b"y", path)
                for name in gone:
                    self._white_out(opened.fileno(), name, joined(path, name))
        return seen, hides

    def _white_out(self, fd: int, name: bytes, path: bytes) -> None:
        try:
            os.mknod(name, 0o020000, 0, dir_fd=fd)
        except PermissionError:
            # A filter or a module refuses device nodes, and this one is none.  Since Linux 6.7 there is another form for lower
            # layers: ovl_path_check_xwhiteout_xattr.
            attempt("openat", path, os.close, os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=fd))
            with open_beneath(fd, name, os.O_WRONLY, what=path) as made:
                self._set(made.fileno(), "whiteout", b"y", path)
            self._set(fd, "opaque", b"x", path)
        except OSError as error:
            raise from_errno("mknodat", shown(path), error.errno or EINVAL) from None

    def _set(self, fd: int, name: str, value: bytes, path: bytes) -> None:
        try:
            os.setxattr(fd, self._books + name, value)
        except OSError as error:
            hint = f"{self._books}* attributes mark what a layer hides, and they are refused here"
            raise from_errno("fsetxattr", shown(path), error.errno or EINVAL, hint) from None

    def finish(self, visit: _Visit, seen: Visible | None) -> None:
        """Give a directory its attributes, or those of the directory below that it takes the place of."""
        node, path = visit.node, visit.path
        with open_beneath(self._places.fd, path) as opened:
            if node.entry is not None:
                self._attributes.dress(opened.fileno(), node.entry, anew=node.before is None)
            else:
                is_below = seen is not None and self.has_below(visit, seen)
                entry = replace(seen.entry, path=path) if seen is not None and is_below else _default(path)
                self._as_it_is.dress(opened.fileno(), entry, anew=node.before is None)
