"""Device rules of a group in cgroup v1: replaced while nobody can use more by that, and as they were where one is refused."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from isolib.cgroups import removal
from isolib.cgroups.controllers.device_control import Devices
from isolib.cgroups.controllers.device_rules import DeviceRule
from isolib.cgroups.files import Directory
from isolib.errors import PermissionDenied, SyscallError, Unsupported
from tests.groups import parents

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture
def group() -> Iterator[Directory]:
    """Return a group in the hierarchy of the devices controller."""
    name = f"isolib-test-{os.getpid()}-devices"
    with Directory.open(parents(version=1, controller="devices")[0], 1) as parent:
        parent.make(name)
        with Directory.open(name, 1, parent=parent) as made:
            yield made
        removal.remove(parent, name)


def rules_of(group: Directory) -> list[str]:
    """Return what the kernel says of the group."""
    return group.read("devices.list").splitlines()


def controller(group: Directory) -> Devices:
    """Return the controller, as on a host without cgroup v2."""
    return Devices(None, lambda: group)


def test_rules_are_replaced(group: Directory) -> None:
    """What the file of the kernel says is the new list, whichever was before."""
    assert rules_of(group) == ["a *:* rwm"]
    devices = controller(group)
    for rules, listed in (
        (["c 1:3 rw"], ["c 1:3 rw"]),
        (["c 1:7 r", "b 7:0 m"], ["c 1:7 r", "b 7:0 m"]),
        (["a"], ["c *:* rwm", "b *:* rwm"]),
    ):
        devices.rules = rules
        assert rules_of(group) == listed
        assert [rule.text for rule in devices.rules or ()] == [rule if rule != "a" else "a *:* rwm" for rule in rules]


def test_refused_rules_leave_those_before(group: Directory) -> None:
    """Where the kernel refuses one rule of a list, for the group above has it not, the list before holds again."""
    controller(group).rules = ["c 1:3 rw", "c 1:7 r"]
    group.make("below")
    with Directory.open("below", 1, parent=group) as below:
        devices = controller(below)
        for before in (None, ["c 1:3 r"]):
            if before is not None:
                devices.rules = before
            held = rules_of(below)
            with pytest.raises(PermissionDenied, match=r"devices\.allow = 'c 1:5 r'"):
                devices.rules = ["c 1:7 r", "c 1:5 r"]
            assert rules_of(below) == held
            assert [rule.text for rule in devices.rules or ()] == (before or [])


def test_rules_of_a_group_with_others_below(group: Directory) -> None:
    """The kernel gives other rules only to a group that has none below; the message says so, and nothing changes."""
    devices = controller(group)
    devices.rules = ["c 1:3 rw"]
    group.make("below")
    with pytest.raises(SyscallError, match="has none below"):
        devices.rules = ["c 1:5 r"]
    assert rules_of(group) == ["c 1:3 rw"]
    assert [rule.text for rule in devices.rules or ()] == ["c 1:3 rw"]


def test_never_everything_for_a_moment(group: Directory) -> None:
    """A list that allows all but some passes through "all": for processes that are bound already it is refused."""
    devices = controller(group)
    devices.rules = ["c 1:3 rw"]
    all_but: list[DeviceRule | str] = ["a", DeviceRule.parse("c 1:5 w", allow=False)]
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            group.write("cgroup.procs", str(process.pid))
            with pytest.raises(Unsupported, match="for a moment"):
                devices.rules = all_but
            assert rules_of(group) == ["c 1:3 rw"]
        finally:
            process.kill()
    devices.rules = all_but
    assert rules_of(group) == ["a *:* rwm"]
