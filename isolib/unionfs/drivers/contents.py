"""What is read from the layers and trees of a driver, and written to its drafts: files of all owners that an image has.

A store keeps its own documents itself; all that takes rights over these files goes through here, so that a process that has
them can do it for another that has not: see `isolib.unionfs.drivers.deputed`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

from isolib._kernel import calls
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.behind import Behind
from isolib.unionfs.archive.recipe import Recorder, replay
from isolib.unionfs.archive.streams import DigestWriter
from isolib.unionfs.disk import compare
from isolib.unionfs.disk.scan import scan
from isolib.unionfs.disk.times import limit_times
from isolib.unionfs.disk.unpack import unpack
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Kind, Offering

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import BinaryIO

    from isolib._kernel.handle import Fd
    from isolib.types import HasFileno
    from isolib.unionfs.archive.streams import Readable, Writable
    from isolib.unionfs.drivers.base import Draft, Driver
    from isolib.unionfs.entry import Change, Content, Offered, Piece, Pieces

__all__ = ["Contents", "Written"]

P = ParamSpec("P")
R = TypeVar("R")

_STRICT: Final = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True, slots=True)
class Written:
    """A tar that was made.

    Attributes
    ----------
    digest, size
        Of the tar.
    is_only_directories
        Whether nothing but directories is in it.
    """

    digest: str
    size: int
    is_only_directories: bool


class Contents:
    """The files of a driver.

    Parameters
    ----------
    driver
        Has them.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def unpack(
        self, draft: Draft, below: Sequence[str], archive: Readable, recipe: BinaryIO, *, limits: tar.Limits, unended: bool
    ) -> frozenset[int]:
        """Read a tar to its end, and make a draft what it says.

        Parameters
        ----------
        draft
            A new one.
        below
            The layers that it is above, the lowest first.
        archive
            The tar, not compressed.
        recipe
            A file that gets its recipe.
        limits
            What it may grow to.
        unended
            As of `isolib.unionfs.archive.tar.read`.

        Returns
        -------
        frozenset of int
            `Recorder.lost`: if there is any, the recipe is of no use, and to be made anew.
        """
        recorder = Recorder(recipe)
        form = self.driver.form
        with ExitStack() as stack:
            lowers = [] if form is Form.MERGED else self._opened(stack, below)
            pieces = tar.read(archive, limits=limits, record=recorder, unended=unended)
            unpack(pieces, draft.root.fileno(), form, lowers=lowers, limits=limits)
        recorder.finish()
        return frozenset(recorder.lost)

    def fill(self, draft: Draft, directory: Fd, recipe: BinaryIO, *, limits: tar.Limits) -> Written:
        """Make a draft, which stands on nothing, what a directory is, and tell of which tar it is then the layer."""
        return self._filled(draft, scan(directory.fileno(), Form.MERGED), recipe, limits)

    def _filled(self, draft: Draft, pieces: Pieces, recipe: BinaryIO, limits: tar.Limits) -> Written:
        root, form = draft.root.fileno(), self.driver.form
        unpack(pieces, root, form, limits=limits)
        # What is in the draft stays as it is; the directory may be another already.
        return _archived(scan(root, form), None, recipe, None)

    @property
    def root_ids(self) -> tuple[int, int]:
        """The ids of user and group that `within` takes for those of the image's root."""
        return os.geteuid(), os.getegid()

    def within(self, root: HasFileno, function: Callable[Concatenate[int, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of a module with a descriptor of the top of a tree, by whom its files belong to."""
        return function(root.fileno(), *args, **kwargs)

    def archive(
        self, tree: str, sink: Writable | None = None, *, recipe: BinaryIO | None = None, mtime_limit: int | None = None
    ) -> Written:
        """Make a tar of what a tree changes.

        Parameters
        ----------
        tree
            Its name.
        sink
            Where the tar goes.
        recipe
            A file that gets its recipe.
        mtime_limit
            As of `isolib.unionfs.archive.tar.write`.
        """
        return _archived(self.driver.changed(tree), sink, recipe, mtime_limit)

    def limit_times(self, tree: str, root: HasFileno, limit: int) -> None:
        """Have nothing of what a tree changes be newer than a limit, in nanoseconds since 1970; ``root`` is its top."""
        limit_times(root.fileno(), self.driver.changed(tree), limit)

    def changes(self, tree: str, below: Sequence[str]) -> list[Change]:
        """Return the paths that a tree changes of the layers below it, the lowest first; sorted."""
        with ExitStack() as stack:
            return compare.changes(self.driver.changed(tree), self._opened(stack, below), self.driver.form)

    def replay(self, layer: str, recipe: BinaryIO) -> Generator[bytes]:
        """Yield the tar of a layer, whose recipe is open; as `isolib.unionfs.archive.recipe.replay`.

        Raises
        ------
        SyscallError
            The driver has no such layer, or none of its files.
        ArchiveError
            Something is not as the recipe says.
        """
        with self.driver.open_layer(layer) as root:
            yield from replay(recipe, _opener(root))

    def _opened(self, stack: ExitStack, below: Sequence[str]) -> list[int]:
        """Open what lies below something, as `Below` and `unpack` take it: layers, the topmost first, or one whole tree."""
        needed = below[-1:] if self.driver.form is Form.MERGED else below[::-1]
        return [stack.enter_context(self.driver.open_layer(one)).fileno() for one in needed]


class _Seen:
    """Pieces, and whether more than directories was among them."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.more_than_directories = False

    def __iter__(self) -> Iterator[Piece]:
        for entry, content in self._pieces:
            self.more_than_directories |= entry.kind is not Kind.DIRECTORY
            yield entry, content

    def offers(self) -> Iterator[Offered]:
        """As iterating it, with offers of files, where there are any."""
        if not isinstance(self._pieces, Offering):
            yield from self
            return
        for one in self._pieces.offers():
            if isinstance(one, tuple):
                self.more_than_directories |= one[0].kind is not Kind.DIRECTORY
            yield one
            if not isinstance(one, tuple):
                self.more_than_directories |= one.taken > 0


def _archived(pieces: Pieces, sink: Writable | None, recipe: BinaryIO | None, mtime_limit: int | None) -> Written:
    digest, seen = DigestWriter(sink), _Seen(pieces)
    with Behind() as behind:
        # A sink is called by this thread.
        packed = behind.sink(digest) if sink is None else digest
        record = None if recipe is None else Recorder(recipe, behind=behind)
        tar.write(seen, packed, mtime_limit=mtime_limit, record=record)
    return Written(digest.digest, digest.size, not seen.more_than_directories)


def _opener(root: Fd) -> Callable[[bytes], Content]:
    def opened(path: bytes) -> Content:
        fd = calls.openat2(root.fileno(), os.fsdecode(path), os.O_RDONLY | os.O_NONBLOCK, resolve=_STRICT)
        try:
            return open(fd, "rb", buffering=0)
        except BaseException:  # of a directory, which may be in the place of the file
            os.close(fd)
            raise

    return opened
