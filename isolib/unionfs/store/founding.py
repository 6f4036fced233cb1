"""What a directory needs to be a store: a file that says of which version it is, and which driver it has."""

from __future__ import annotations

import os
from errno import EROFS
from typing import Final

from isolib._kernel.handle import Rollback
from isolib._kernel.hints import typed
from isolib.errors import ArchiveError, ImageNotFound, PlanError, StoreDamaged, Unsupported, from_errno
from isolib.unionfs.disk.files import open_at
from isolib.unionfs.drivers import best, driver_class, examine
from isolib.unionfs.drivers.deputed import opened
from isolib.unionfs.images.documents import Document, dump
from isolib.unionfs.store.layout import PARTS, Layout
from isolib.unionfs.store.locks import Locks, lock
from isolib.unionfs.store.records import Records

__all__ = ["driver_of", "founded", "open_records"]

VERSION: Final = 1
_FILE: Final = "store.json"
_NEW: Final = "store.json.new"


def driver_of(layout: Layout) -> str | None:
    """Return the driver of a store; None where there is no store yet."""
    try:
        data = layout.read(_FILE)
    except FileNotFoundError:
        return None
    what = f"{layout.path}/{_FILE}"
    try:
        document = Document.read(data, what)
        version = document.number("version")
        if version > VERSION:
            raise Unsupported(
                f"the store {layout.path}",
                f"this isolib, which knows stores of version {VERSION}; it is of version {version}",
                "a newer isolib",
            )
        name = document.text("driver")
        driver_class(name)
    except (ArchiveError, PlanError) as error:
        raise StoreDamaged(str(error), what) from None
    return name


def founded(layout: Layout, driver: str | None) -> str:
    """Make a store of an empty directory; return its driver."""
    with lock(layout.root.fileno(), layout.path):
        if (there := driver_of(layout)) is not None:
            return there
        if others := {*layout.names(".")} - {_NEW}:
            raise PlanError(f"path: the directory {layout.path} is no store, and has {min(others)!r} in it")
        if not layout.may_write():
            raise from_errno(
                "openat", f"{layout.path}/{_FILE}", EROFS, "this process cannot write there, and there is no store yet"
            )
        home = layout.root.fileno()
        if driver is None:
            found = best(home, layout.path)
        else:
            found = driver_class(driver)
            examine(found, home, layout.path)
        layout.write(_NEW, dump({"version": VERSION, "driver": found.name}))
        layout.move(_NEW, _FILE)
        return found.name


def open_records(where: str, driver: str | None = None, *, existing: bool = False, durable: bool = False) -> Records:
    """Open what is on record in a directory, which is made a store unless one is wanted that exists; see `open_store`."""
    wanted = None if driver is None else driver_class(driver)
    with typed(where):
        root = open_at(where, os.O_RDONLY | os.O_DIRECTORY)
    with Rollback() as undo:
        undo.adopt(root)
        layout = Layout(root, where)
        name = driver_of(layout)
        if name is None:
            if existing:
                raise ImageNotFound(f"{where} is no store any more")
            name = founded(layout, driver)
        if wanted is not None and wanted.name != name:
            raise PlanError(f"driver: the store {where} has the driver {name!r}, not {driver!r}")
        if layout.may_write():
            for part in PARTS:
                layout.make(part)
        found = opened(driver_class(name), undo.adopt(layout.open("driver", os.O_DIRECTORY)), f"{where}/driver")
        records = Records(layout, Locks(layout), found, durable=durable)
        undo.dismiss()
    return records
