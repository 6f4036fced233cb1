"""What is said to zfs(8), and what it answers."""

from __future__ import annotations

import pytest

from isolib import PlanError
from isolib.unionfs.drivers import zfs_words as words


def test_the_words_are_those_of_the_manual() -> None:
    """Each operation is the command that the manual has for it."""
    properties = "-o mountpoint=legacy -o xattr=sa -o acltype=posixacl"
    assert words.create_words("tank/a") == f"create {properties} tank/a".split()
    assert words.snapshot_words("tank/a", "now") == ["snapshot", "tank/a@now"]
    assert words.clone_words("tank/a", "now", "tank/b") == f"clone {properties} tank/a@now tank/b".split()
    assert words.clone_words("tank/a", "now", "tank/b", 5) == f"clone {properties} -o quota=5 tank/a@now tank/b".split()
    assert words.forget_words("tank/a", "now") == ["destroy", "-d", "tank/a@now"]
    assert words.destroy_words("tank/a") == ["destroy", "-r", "tank/a"]
    assert words.promote_words("tank/b") == ["promote", "tank/b"]
    assert words.set_words("tank/a", "readonly", "on") == ["set", "readonly=on", "tank/a"]
    assert words.get_words("tank/a", "used") == ["get", "-H", "-p", "-o", "value", "used", "tank/a"]
    listed = "list -H -p -t filesystem,snapshot -d 2 -o name,origin,createtxg tank"
    assert words.standing_words("tank") == listed.split()


def test_what_stands_on_a_dataset_is_read() -> None:
    """Of the datasets that stand on one, that on its youngest snapshot is told, whatever the order of their names is."""
    snapshots = "tank/a@one\t-\t7\ntank/a@two\t-\t9\ntank/a@none\t-\t10\ntank/aa@one\t-\t11\n"
    datasets = "tank\t-\t1\ntank/a\t-\t2\ntank/b\ttank/a@two\t9\ntank/c\ttank/a@one\t12\ntank/d\ttank/aa@one\t13\n"
    assert words.parse_standing(datasets + snapshots, "tank/a") == "tank/b"
    assert words.parse_standing(snapshots + datasets, "tank/aa") == "tank/d"
    assert words.parse_standing(datasets, "tank/b") is None
    assert words.parse_standing("", "tank/a") is None


@pytest.mark.parametrize("name", ["tank", "tank/a", "rpool/ROOT/debian-12", "tank/a b", "t_1/x.y:z"])
def test_names_of_datasets(name: str) -> None:
    """What ZFS takes as a name is passed."""
    assert words.check_dataset(name) == name


@pytest.mark.parametrize("name", ["", "/tank", "tank/", "tank//a", "tank@snap", "tank/..", "-o", "1tank", "tank\n", "t" * 256])
def test_names_that_are_none(name: str) -> None:
    """What is no dataset, or would be taken for an option or a snapshot, is refused."""
    with pytest.raises(PlanError):
        words.check_dataset(name)


def test_room_is_left_for_names_below() -> None:
    """A dataset below which nothing of ours would have a name is refused."""
    assert words.check_dataset("t" * 191, 64)
    with pytest.raises(PlanError):
        words.check_dataset("t" * 192, 64)
