"""Names of images: the grammar, and which of two are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.errors import PlanError
from isolib.unionfs.images.references import Reference, is_digest

DIGEST = f"sha256:{'0a' * 32}"

SAME = [
    ("debian", "docker.io/library/debian:latest", "debian:latest"),
    ("debian:12", "docker.io/library/debian:12", "debian:12"),
    ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
    ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
    ("user/app:1", "docker.io/user/app:1", "user/app:1"),
    ("library/user/app", "docker.io/library/user/app:latest", "library/user/app:latest"),
    ("quay.io/a/b/c:v1.0_x-y", "quay.io/a/b/c:v1.0_x-y", "quay.io/a/b/c:v1.0_x-y"),
    ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
    ("localhost:5000/app:2", "localhost:5000/app:2", "localhost:5000/app:2"),
    ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
    (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
    (f"debian:12@{DIGEST}", f"docker.io/library/debian:12@{DIGEST}", f"debian:12@{DIGEST}"),
    ("a--b/c__d", "docker.io/a--b/c__d:latest", "a--b/c__d:latest"),
]

WRONG = [
    *("", ":", "Debian", "debian:", "debian:a b", "debian:-x", "a/../b", "/a", "a/", "a//b", "a___b", "a\nb", "a\0b", "../x"),
    *(
        "debian@sha256:12",
        f"debian@{DIGEST.upper()}",
        "debian@",
        f"debian:{'x' * 129}",
        "x" * 256,
        "host:port/app",
        "_a",
        "a._b",
    ),
]


@pytest.mark.parametrize(("text", "full", "short"), SAME)
def test_what_is_left_out_is_filled_in(text: str, full: str, short: str) -> None:
    """A name has one full form, and a short one that means the same."""
    reference = Reference.parse(text)
    assert (reference.full, str(reference)) == (full, short)
    assert Reference.parse(full) == Reference.parse(short) == reference


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_name_is_refused(text: str) -> None:
    """A text that is no name is refused with the name of the argument."""
    with pytest.raises(PlanError, match=r"^tag: "):
        Reference.parse(text, "tag")


@given(st.text(max_size=40) | st.from_regex(r"[a-z0-9./:@_-]{1,40}", fullmatch=True))
def test_a_name_that_is_read_is_written_as_one_that_means_the_same(text: str) -> None:
    """Whatever is taken for a name survives being written, in both forms."""
    try:
        reference = Reference.parse(text)
    except PlanError:
        return
    assert Reference.parse(str(reference)) == Reference.parse(reference.full) == reference


@pytest.mark.parametrize(
    "text", [None, 3, b"sha256:", "sha256:", DIGEST[:-1], DIGEST + "0", DIGEST + "\n", "sha512:" + "0" * 64]
)
def test_a_digest_is_64_lower_case_digits_of_sha256(text: object) -> None:
    """Nothing else is taken for a digest, for digests become names of files."""
    assert is_digest(DIGEST)
    assert not is_digest(text)
