"""The tree of namespaces, beside what lsns(8) says."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from contextlib import closing
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from isolib import namespaces as ns
from isolib.namespaces.tree import NamespaceNode, NamespaceTree

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"} & set(os.listdir("/proc/self/ns"))
TIME = "--time" if "time" in KINDS else ""
HOSTILE = "evil\x1b[2J\n</td><script>alert(1)</script>\udce9 \u202e" + "x" * 200


@pytest.fixture
def sample() -> NamespaceTree:
    """Return a small tree of every shape."""
    nodes = [
        NamespaceNode("user", 1, None, None, 10, 1, 0, "init"),
        NamespaceNode("net", 2, 1, None, 9, 1, 0, "init"),
        NamespaceNode("pid", 3, 1, None, 9, 1, 0, "init"),
        NamespaceNode("user", 4, 1, 1, 0, None, None, ""),
        NamespaceNode("user", 5, 4, 4, 1, 77, 1000, HOSTILE),
        NamespaceNode("net", 6, 5, None, 1, 77, 1000, "sh"),
        NamespaceNode("user", 7, 1, 1, 1, 78, 1000, "sh"),
        NamespaceNode("uts", 8, 99, None, 1, 79, 0, "above"),
    ]
    return NamespaceTree({node.id: node for node in nodes}, unreadable=3)


def lsns() -> dict[int, dict[str, Any]]:
    """Return what lsns says, by number."""
    argv = ["lsns", "--list", "--json", "--output", "NS,TYPE,NPROCS,PID,COMMAND,PNS,ONS"]
    done = subprocess.run(argv, capture_output=True, check=False)
    while done.returncode:  # it gives up when a process ends while it looks
        done = subprocess.run(argv, capture_output=True, check=False)
    return {entry["ns"]: entry for entry in json.loads(done.stdout)["namespaces"]}


@pytest.fixture
def several(needs_root: None) -> Iterator[set[int]]:
    """Return namespaces of every kind that processes are in, some of them in others."""
    outer = f"unshare --user --map-root-user --net --uts --ipc --cgroup --mount --pid {TIME} --fork"
    inner = "unshare --user --map-root-user --net --pid --fork sh -c"
    argv = [*outer.split(), *inner.split(), "echo; exec cat"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"\n"
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    with process, closing(ns.new_pidns()) as pids:
        ids = {os.stat(f"/proc/{pid}/ns/{kind}").st_ino for pid in family for kind in KINDS}
        yield ids - {os.stat(f"/proc/self/ns/{kind}").st_ino for kind in KINDS} | {pids.id}
        process.stdin.close()


def test_tree_is_what_lsns_says(several: set[int]) -> None:
    """Kind, owner, parent, number of processes, lowest pid and command of every namespace are those of lsns."""
    theirs, tree = lsns(), ns.tree()
    assert len(several) == len(KINDS) + 3 + 1
    # Of the rest of the host only what cannot end meanwhile.
    for number in several | {os.stat(f"/proc/self/ns/{kind}").st_ino for kind in KINDS}:
        node, entry = tree[number], theirs[number]
        assert node.kind == entry["type"]
        assert (node.owner or 0) == entry["ons"]
        assert (node.parent or 0) == entry["pns"]
        assert node.pid == entry["pid"]
        assert node.command == entry["command"]
    assert {number: tree[number].processes for number in several} == {number: theirs[number]["nprocs"] for number in several}


def test_tree_is_nested(several: set[int]) -> None:
    """Each namespace is beneath its owner; pid and user namespaces know their parents."""
    tree = ns.tree()
    root = tree[os.stat("/proc/self/ns/user").st_ino]
    assert root in tree.roots
    assert root.owner is root.parent is None
    assert {node.id for node in tree if node.owner == root.id} == {node.id for node in tree.children(root)}
    inner, outer = sorted(
        (tree[number] for number in several if tree[number].kind == "user"), key=lambda node: node.owner == root.id
    )
    assert inner.owner == inner.parent == outer.id
    assert outer.owner == outer.parent == root.id
    assert {node.kind for node in tree.children(outer)} == KINDS
    assert {node.kind for node in tree.children(inner)} == {"pid", "net"}
    (inner_pids,) = [node for node in tree.children(inner) if node.kind == "pid"]
    (outer_pids,) = [node for node in tree.children(outer) if node.kind == "pid"]
    assert inner_pids.parent == outer_pids.id


def test_own_namespaces_are_in_the_tree() -> None:
    """Whoever asks finds the namespaces of his own process."""
    tree = ns.tree()
    for kind in KINDS:
        number = os.stat(f"/proc/self/ns/{kind}").st_ino
        assert number in tree
        assert tree[number].kind == kind
        assert tree[number].processes >= 1
    assert len(tree) == len(list(tree))


@pytest.mark.unprivileged
def test_processes_of_others_are_counted() -> None:
    """Processes that may not be asked are missing, and it is said how many."""
    tree = ns.tree()
    assert tree.unreadable > 0
    assert f"{tree.unreadable} process" in str(tree)


def test_order_of_a_tree(sample: NamespaceTree) -> None:
    """Every namespace comes once, after its owner; further user namespaces come last."""
    assert [node.id for node in sample] == [8, 1, 3, 2, 4, 5, 6, 7]
    assert [node.id for node in sample.roots] == [8, 1]
    assert [node.id for node in sample.children(sample[1])] == [3, 2, 4, 7]
    assert sample.children(sample[2]) == ()
    assert len(sample) == 8
    assert 99 not in sample


def test_table(sample: NamespaceTree) -> None:
    """As text it is a table with lines that show the nesting, and nothing in it reaches the terminal as a command."""
    lines = str(sample).splitlines()
    assert len(lines) == 1 + 8 + 1
    assert lines[0].split() == ["NAMESPACE", "PROCESSES", "PID", "UID", "COMMAND"]
    assert len({line.index(line.split()[-1]) for line in lines[:5]}) == 1
    assert [re.sub(" {2,}", "  ", line) for line in (*lines[1:6], *lines[7:9])] == [
        "uts 8  1  79  0  above",
        "user 1  10  1  0  init",
        "├─pid 3  9  1  0  init",
        "├─net 2  9  1  0  init",
        "├─user 4  0  -  -",
        "│  └─net 6  1  77  1000  sh",
        "└─user 7  1  78  1000  sh",
    ]
    assert lines[6].startswith("│ └─user 5 ")
    assert "3 processes are missing" in lines[-1]
    assert all(character.isprintable() for line in lines for character in line)
    assert r"evil\x1b[2J\n" in lines[6]
    assert lines[6].endswith("…")


class _Checker(HTMLParser):
    """Collects the text, and fails at tags that do not belong together or come from a name."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"div", "table", "thead", "tbody", "tr", "th", "td", "span", "code", "p"}
        assert {name for name, _ in attrs} <= {"style"}
        assert not re.search(r"url\(|#[0-9a-f]{3}|rgb", str(attrs))
        self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html(sample: NamespaceTree) -> None:
    """In a notebook it is a table of its own: well-formed, escaped, without colours and without anything to load."""
    checker = _Checker()
    checker.feed(sample._repr_html_())
    checker.close()
    assert checker.open == []
    assert checker.rows == 1 + 8
    assert "<script>alert(1)</script>" in checker.text
    assert "3 processes are missing" in checker.text
    sample._repr_html_().encode()


def test_empty_tree() -> None:
    """A tree of nothing can be shown too."""
    tree = NamespaceTree({})
    assert list(tree) == []
    assert str(tree).split() == ["NAMESPACE", "PROCESSES", "PID", "UID", "COMMAND"]
    assert tree._repr_html_().count("<tr>") == 1


def test_nodes_are_values(sample: NamespaceTree) -> None:
    """A node cannot be changed, and equals one that says the same."""
    node = sample[1]
    assert node == dataclasses.replace(node)
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.id = 2  # type: ignore[misc]
    assert sample == NamespaceTree(dict(sample.namespaces), unreadable=3)
