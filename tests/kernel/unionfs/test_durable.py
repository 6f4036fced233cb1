"""What a store has on disk, and when: for that the power may fail, which no test can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from tests.images import Draft, layer, layout, packed
from tests.stores import check, driver
from tests.strace import attached, tid

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["driver"]


def steps(work: Callable[[], object]) -> list[str]:
    """Return in which order file systems are synced, and layers are put on record."""
    with attached("-s", "200", "-e", "trace=syncfs,rename,renameat,renameat2") as trace:
        work()
    told = [line for line in trace.lines(tid()) if line.startswith("syncfs(") or ('/layer"' in line and '"layers/' in line)]
    return ["sync" if line.startswith("syncfs(") else "record" for line in told]


@pytest.mark.parametrize("durable", [True, False])
def test_layers_are_on_disk_before_they_are_on_record(tmp_path: Path, driver: str, durable: bool) -> None:  # noqa: FBT001
    """A durable store syncs the file system after a layer's files were written and before its record is put in its place."""
    image = packed(layout(("", Draft([layer({"one": b"1"}), layer({"two": b"2"})]))), tmp_path / "image.tar")
    with isolib.open_store(tmp_path / "store", driver=driver, durable=durable) as store, store.checkout() as tree:
        loading = steps(lambda: store.load(image))
        Path(tree.path, "new").write_text("new")
        committing = steps(tree.commit)
        check(store)
    assert loading == (["sync", "record"] * 2 if durable else ["record"] * 2)
    assert committing == (["sync", "record"] if durable else ["record"])
