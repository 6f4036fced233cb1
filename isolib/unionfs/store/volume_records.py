"""Volumes on record: directories that are kept apart from images, each whole or not there.

::

    volumes/NAME/meta.json      {"labels": {...}, "quota": null}
    volumes/NAME/content/root   its files

What is to be a volume, or the content of one, is made in ``staging/ID/volume``, laid out likewise.  It comes to its place by
one rename, or by one exchange with what is there; and a volume that is removed leaves by one.  So whoever is killed leaves
either what was or what is to be, and the collector takes what is in ``staging``.

Around the files lies a directory of ours, for theirs has the owner and the mode that somebody gives it, and may be closed to
us.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError, ImageNotFound, PlanError, StoreDamaged
from isolib.unionfs.images.documents import Document, dump
from isolib.unionfs.store.locks import try_lock
from isolib.unionfs.store.records import trusted
from isolib.unionfs.store.volume_files import discard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from isolib._kernel.handle import Fd
    from isolib.unionfs.store.records import Records

__all__ = ["ROOT", "VolumeRecord", "drafted", "place_of", "read_volume", "sweep_volumes", "take_off", "volume_names"]

#: Where the files of a volume lie in its content.
ROOT: Final = "root"
_CONTENT: Final = "content"
_DRAFT: Final = "volume"


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume on record.

    Attributes
    ----------
    labels
        What is noted of it.
    quota
        How many bytes it has room for; None: as many as there are.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    quota: int | None = None

    def told(self) -> bytes:
        """Return it as it is written."""
        return dump({"labels": dict(self.labels), "quota": self.quota})


def place_of(name: str) -> str:
    """Return where the content of a volume lies in a store."""
    return f"volumes/{name}/{_CONTENT}"


def volume_names(records: Records) -> tuple[str, ...]:
    """Return the names of the volumes."""
    return tuple(records.layout.names("volumes"))


def read_volume(records: Records, name: str) -> VolumeRecord:
    """Return a volume that is on record.

    Raises
    ------
    ImageNotFound
        It is not.
    StoreDamaged
        Its record is no good, or its files are missing.
    """
    what = f"volumes/{name}/meta.json"
    if not records.layout.holds(f"volumes/{name}"):
        raise ImageNotFound(f"the store has no volume {name!r}")
    try:
        with trusted(what):
            document = Document.read(records.layout.read(what), what)
            quota = None if document.value.get("quota") is None else document.number("quota")
            record = VolumeRecord(document.mapping("labels"), quota)
            if not records.layout.holds(f"{place_of(name)}/{ROOT}"):
                raise ArchiveError("its files are missing", what)
    except StoreDamaged:
        if records.layout.holds(f"volumes/{name}"):
            raise
        raise ImageNotFound(f"the store has no volume {name!r}") from None  # it was removed just now
    return record


class VolumeDraft:
    """What is to be a volume, or its content.

    Parameters
    ----------
    records
        Of the store.
    path
        Where it is made.
    """

    def __init__(self, records: Records, path: str) -> None:
        self._records = records
        self._path = path
        self._content = f"{path}/{_CONTENT}"
        records.layout.make(self._content)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Fd, str]]:
        with self._records.layout.open(self._content, os.O_DIRECTORY) as content:
            yield content, f"{self._records.layout.path}/{self._content}"

    def make(self, quota: int | None) -> Fd:
        """Make the directory of its files, and open it."""
        with self._opened() as (content, shown):
            self._records.driver.new_volume(content, ROOT, shown, quota=quota)
        return self._records.layout.open(f"{self._content}/{ROOT}", os.O_DIRECTORY)

    def share(self, source: Fd, quota: int | None) -> bool:
        """Make the directory of its files a twin of another one, where the driver can do that without copying."""
        with self._opened() as (content, shown):
            return self._records.driver.copy_volume(source, content, ROOT, shown, quota=quota)

    def replace(self, name: str) -> None:
        """Exchange its content with that of a volume, which the caller has alone."""
        self._records.layout.exchange(self._content, place_of(name))

    def put(self, name: str, record: VolumeRecord) -> None:
        """Make it a volume, which the caller holds.

        Raises
        ------
        PlanError
            There is one of this name.
        """
        layout = self._records.layout
        layout.write(f"{self._path}/meta.json", record.told())
        if not layout.move(self._path, f"volumes/{name}"):
            raise PlanError(f"name: the store has a volume {name!r} already")


@contextmanager
def drafted(records: Records) -> Iterator[VolumeDraft]:
    """Have a draft; what is in its place at the end of the block is removed."""
    with records.area() as area:
        path = f"{area.path}/{_DRAFT}"
        records.layout.make(path)
        try:
            yield VolumeDraft(records, path)
        finally:
            discard(records, path)


def take_off(records: Records, name: str) -> None:
    """Take a volume off the record, in one step, and remove it; the caller has it alone."""
    with records.area() as area:
        path = f"{area.path}/{_DRAFT}"
        try:
            records.layout.move(f"volumes/{name}", path)
            records.layout.sync("volumes")
        finally:
            discard(records, path)


def sweep_volumes(records: Records) -> None:
    """Remove what processes that were killed have left half made of volumes, or half removed.

    What else is in their areas, the collector takes, who holds the store meanwhile: this may take longer.
    """
    layout = records.layout
    for name in layout.names("staging"):
        path = f"staging/{name}"
        with suppress(FileNotFoundError), layout.open(path, os.O_DIRECTORY) as directory:
            if layout.holds(f"{path}/{_DRAFT}") and try_lock(directory.fileno()):
                discard(records, f"{path}/{_DRAFT}")
