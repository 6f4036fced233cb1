"""Steps of builds that were done: what came of which image by which step, so that it need not be done again.

A record is one file, ``steps/HEX``, by the digest of the image that the step began with and of all that the step is.  It says
what came of it.  It counts as long as the store has that image, and keeps nobody from removing it; the collector takes it then.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from isolib.errors import ArchiveError, StoreDamaged
from isolib.unionfs.images.documents import Document, dump, sha256
from isolib.unionfs.images.references import is_digest
from isolib.unionfs.store.records import hex_of, trusted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from isolib.unionfs.store.records import Records

__all__ = ["Step", "done", "held", "key_of", "lineage", "note", "steps", "sweep"]

_PART: Final = "steps"
#: Goes into every key: another number when the same step comes to make something else.
_VERSION: Final = 1


class Step(NamedTuple):
    """What a record says.

    Attributes
    ----------
    parent
        The digest of the image that it began with.
    image
        Of the one that came of it.
    """

    parent: str
    image: str


def key_of(parent: str, step: Mapping[str, Any]) -> str:
    """Return what a step is filed under.

    Parameters
    ----------
    parent
        The digest of the image that it begins with.
    step
        All that matters of it, as JSON has it.
    """
    return sha256(dump({"version": _VERSION, "parent": parent, "step": {name: step[name] for name in sorted(step)}}))


def held(records: Records, key: str) -> AbstractContextManager[None]:
    """Hold a step alone, be it done or not: of those who come to it at the same time one does it, and the others wait."""
    return records.locks.layer(f"step-{hex_of(key)}")


def _read(records: Records, name: str) -> Step | None:
    what = f"{_PART}/{name}"
    try:
        data = records.layout.read(what)
    except FileNotFoundError:
        return None
    with trusted(what):
        document = Document.read(data, what)
        step = Step(document.text("parent"), document.text("image"))
        if not all(map(is_digest, step)):
            raise ArchiveError("what should be digests is none", what)
    return step


def done(records: Records, key: str) -> str | None:
    """Return the digest of the image that came of a step; None: it was not done, or the store has not that image any more."""
    with records.locks.shared(), suppress(StoreDamaged):  # as good as none
        step = _read(records, hex_of(key))
        if step is not None and records.has_image(step.image):
            return step.image
    return None


def note(records: Records, key: str, step: Step) -> None:
    """Put on record what came of a step, unless somebody has removed that already."""
    with records.area() as area, records.locks.shared():
        if records.has_image(step.image):
            area.put(f"{_PART}/{hex_of(key)}", dump(step._asdict()))


def steps(records: Records) -> Iterator[tuple[str, Step | None]]:
    """Yield what is on record, by the names of the files; None: it cannot be read."""
    for name in records.layout.names(_PART):
        try:
            step = _read(records, name)
        except StoreDamaged:
            yield name, None
        else:
            if step is not None:  # else it was collected just now
                yield name, step


def lineage(records: Records, images: set[str]) -> set[str]:
    """Return images with those that led to them by steps on record."""
    parents: dict[str, set[str]] = {}
    for _, step in steps(records):
        if step is not None:
            parents.setdefault(step.image, set()).add(step.parent)
    found, waiting = set(images), [*images]
    while waiting:
        for parent in parents.get(waiting.pop(), ()):
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def sweep(records: Records) -> None:
    """Take off the record what came to images that are gone, or cannot be read.  The caller holds the store alone."""
    for name, step in steps(records):
        if step is None or not records.has_image(step.image):
            records.layout.unlink(f"{_PART}/{name}")
