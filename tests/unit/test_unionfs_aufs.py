"""What AUFS is told."""

from __future__ import annotations

import pytest

from isolib import PlanError
from isolib.unionfs.drivers.aufs import BRANCHES, branch, mount_groups, mount_text


def test_a_mount_is_that_of_the_manual() -> None:
    """The branch that is written to comes first, the others may hide what is below, and rights are those of the topmost."""
    groups = mount_groups("/rw", ["/b", "/a"])
    assert groups == [[("br", "/rw=rw:/b=ro+wh:/a=ro+wh"), ("dio", None), ("xino", "/dev/shm/isolib.xino"), ("dirperm1", None)]]
    assert mount_text(groups) == ["br:/rw=rw:/b=ro+wh:/a=ro+wh,dio,xino=/dev/shm/isolib.xino,dirperm1"]


def test_a_mount_without_a_branch_to_write_to() -> None:
    """What is only to be read has no branch that is written to."""
    assert mount_groups(None, ["/a"])[0][0] == ("br", "/a=ro+wh")


def test_further_branches_are_appended() -> None:
    """Branches for which the options have no room come by remounts, one each, in order; no value is too long for fsconfig."""
    lowers = [f"/proc/self/fd/{number}" for number in range(100, 100 + BRANCHES - 1)]
    first, *others = mount_groups("/proc/self/fd/99", lowers)
    value = first[0][1]
    assert value is not None
    found = value.split(":") + [str(value) for ((key, value),) in others if key == "append"]
    assert found == ["/proc/self/fd/99=rw", *(f"{lower}=ro+wh" for lower in lowers)]
    assert len(value) <= 255
    assert mount_text([first, *others])[-1] == "remount,append:/proc/self/fd/225=ro+wh"


def test_more_branches_than_there_may_be() -> None:
    """More branches than AUFS takes are refused before anything is mounted."""
    mount_groups("/rw", ["/a"] * (BRANCHES - 1))
    with pytest.raises(PlanError, match="128 branches"):
        mount_groups("/rw", ["/a"] * BRANCHES)


@pytest.mark.parametrize("path", ["/a:b", "/a,b", "/a=b", "/a\\b", "/a\nb"])
def test_paths_that_would_mean_something_else(path: str) -> None:
    """A path with a sign that has a meaning in an option is refused."""
    with pytest.raises(PlanError):
        branch(path, "rw")
