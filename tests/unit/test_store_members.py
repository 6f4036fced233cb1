"""Where files lie in a tar: compared with Python's tarfile."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.errors import ArchiveError
from isolib.unionfs.images.members import members

if TYPE_CHECKING:
    from isolib.unionfs.images.members import Member

NAMES = st.from_regex(r"[a-zé]{1,120}(/[a-z]{1,120}){0,2}", fullmatch=True)


def packed(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def found(data: bytes) -> list[Member]:
    """Return what is found in a tar."""
    return list(members(lambda size, offset: data[offset : offset + size]))


@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_contents_are_found_where_they_are(files: dict[str, bytes], form: int) -> None:
    """Every file is found with its content, in both dialects, whatever the length of its name."""
    data = packed(files, form)
    assert {one.path: data[one.offset : one.offset + one.size] for one in found(data)} == files


def test_links_lead_to_paths_of_the_archive() -> None:
    """A symbolic link's path counts from its directory, and a hard link's from the root, as in archives of docker save."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target in [("a/layer.tar", tarfile.SYMTYPE, "../b/layer.tar"), ("c", tarfile.LNKTYPE, "b/layer.tar")]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        directory = tarfile.TarInfo("d")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
    assert [(one.path, one.link, one.is_file) for one in found(out.getvalue())] == [
        ("a/layer.tar", "b/layer.tar", True),
        ("c", "b/layer.tar", True),
        ("d", None, False),
    ]


HALF = packed({"a": b"1", "b": b""})[:1124]


@pytest.mark.parametrize("data", [b"", b"x" * 512, b"x" * 100, HALF, packed({"../a": b""})])
def test_what_is_no_tar_is_refused(data: bytes) -> None:
    """Noise, half a header and paths that lead out are ArchiveErrors."""
    with pytest.raises(ArchiveError):
        found(data)
