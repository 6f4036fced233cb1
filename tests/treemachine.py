"""A machine that does the same things to a tree of a store and to a model of one, and looks whether both agree."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from errno import EEXIST, EINVAL, EISDIR, ENOTDIR, ENOTEMPTY, ESTALE, EXDEV
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.store.layers import replayed
from tests.images import Draft, layout, written
from tests.stores import check
from tests.treemodel import CAPABILITY, TOP, Actor, Model, agree, bonds, parent, without_bonds
from tests.trees import facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib.unionfs import Image, Store, Tree
    from tests.trees import Facts

#: "a-" comes before "a/", and "\udcff" is no UTF-8.
NAMES: Final = ("a", "b", "a-", "\udcff", "new\nline")
CONTENTS: Final = (b"", b"one", b"two", b"x" * 5000, b"y" * 70_000)
TIMES: Final = (0, 1, -1, -(10**9) - 5, 1_234_567_890_123_456_789)
DEVICE: Final = os.makedev(1, 3)
#: cap_net_bind_service, effective and permitted (linux/capability.h, vfs_cap_data of revision 2).
CAPABILITIES: Final = (b"\1\0\0\2\0\4" + bytes(14), b"\0\0\0\2\0\4" + bytes(14))


@dataclass(frozen=True)
class Rights:
    """What this process may do to files.

    Attributes
    ----------
    owners
        To whom it may give them.
    is_root
        Whether it is root of the first user namespace.
    overrides
        Whether it reads and writes what nobody may.
    """

    owners: Sequence[tuple[int, int]]
    is_root: bool
    overrides: bool

    @classmethod
    def own(cls) -> Rights:
        """Return those of this process."""
        me = os.geteuid(), os.getegid()
        mapped = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
        if me[0] != 0 or int(mapped[2]) < 65536:
            return cls((me,), is_root=False, overrides=me[0] == 0)
        return cls((me, (1000, 0), (0, 100), (65534, 65534)), is_root=int(mapped[2]) == 2**32 - 1, overrides=True)

    @property
    def modes(self) -> tuple[int, ...]:
        """Permissions that a file may get."""
        return (0o644, 0o755, 0o6711, 0o1777, *((0o000, 0o2055) if self.overrides else (0o700,)))

    @property
    def xattrs(self) -> dict[str, Sequence[bytes]]:
        """Attributes that a file may get; of another kind than files and directories, only those that are "trusted"."""
        values = (b"", b"x", b"\0\xff" * 40)
        found: dict[str, Sequence[bytes]] = {"user.one": values, "user.two": values}
        return {**found, "trusted.one": values, CAPABILITY: CAPABILITIES} if self.is_root else found


@dataclass(frozen=True)
class Moment:
    """What a tree is, and what it stands on.

    Attributes
    ----------
    model, base
        What is seen, and what lies below.
    tars
        The layers that those are, the lowest first.
    """

    model: Model
    base: Model
    tars: tuple[bytes, ...] = ()

    def settled(self) -> Moment:
        """Return the same, as it is when all of it lies in layers."""
        return Moment(self.model.settled(), self.base.settled(), self.tars)


@dataclass
class Bench:
    """A store whose trees are tried, with an image to begin with.

    Attributes
    ----------
    open
        Opens the store, again and again.
    others
        Stores that take the layers that are made in it.
    layers
        What is in each layer that was made, by its chain id.
    is_used
        Whether a machine works with it, or has failed to.
    """

    open: Callable[[], Store]
    others: dict[str, Store]
    rights: Rights
    layers: dict[str, dict[str, Facts]] = field(default_factory=dict)
    is_used: bool = False

    def __post_init__(self) -> None:
        self.store = self.open()
        self.is_overlay = self.store._records.driver.form is not Form.MERGED
        # Where a file was copied up from, the kernel cannot look up without privileges: its names may show several numbers.
        self.shows_bonds = self.store._records.driver.form is not Form.USER_OVERLAY
        self.start: Moment
        self._begin()

    def _begin(self) -> None:
        """Make an image of two layers, in which there is some of everything."""
        with self.store.checkout() as tree:
            model = Model(breaks_bonds=self.is_overlay)
            actor = Actor(model, lambda: tree.path)
            tars = []
            for step in (_lowest, _upper):
                step(actor)
                tars.append(diff(tree))
                self.look_at_layers(tree.commit(tag="base"))
                actor.model = actor.model.settled()
                self.look_at(tree, actor.model)
            self.start = Moment(actor.model, actor.model.copy(), tuple(tars))

    def look_at(self, tree: Tree, model: Model) -> None:
        """See whether a tree is what a model says."""
        if self.shows_bonds:
            agree(facts(tree.path), model.facts())
        else:
            agree(without_bonds(facts(tree.path)), without_bonds(model.facts()))

    def look_at_layers(self, image: Image) -> None:
        """Remember what is in layers, and that it is what it was."""
        for layer in image.layers:
            with self.store._records.driver.open_layer(layer.chain_id.partition(":")[2]) as root:
                found = facts(f"/proc/self/fd/{root.fileno()}")
            agree(found, self.layers.setdefault(layer.chain_id, found))

    def forget_layers(self) -> None:
        """Remember only the layers that there are still: another one may be the same, but for what a driver notes in it."""
        there = {layer.chain_id for image in self.store.images() for layer in image.layers}
        self.layers = {layer: found for layer, found in self.layers.items() if layer in there}


def _lowest(actor: Actor) -> None:
    actor.directory("a")
    actor.directory("a/a")
    actor.file("a/a/a", b"one")
    actor.file("a/a-", b"two" * 3000, 0o755)
    actor.symlink("a/a/b", "../b")
    actor.directory("b", 0o1777)
    actor.directory("b/a")
    actor.directory("b/a/a")
    actor.file("b/a/a/a", b"deep")
    actor.file("b/b", b"")
    actor.link("a/a/a", "a/b")
    actor.node("\udcff", stat.S_IFIFO | 0o644)
    actor.utime("a/a-", -1)


def _upper(actor: Actor) -> None:
    actor.remove("b/a")
    actor.directory("b/a")
    actor.file("b/a/b", b"new")
    actor.remove("b/b")
    actor.file("a/a/a-", b"upper")
    actor.link("a/a/a-", "a-")
    actor.set_xattr("a", "user.one", b"x")
    actor.set_xattr("a/a-", "user.one", b"x")


def diff(tree: Tree) -> bytes:
    """Return what a tree has changed, as a tar."""
    sink = io.BytesIO()
    told = tree.diff(sink)
    assert told.size == len(sink.getvalue())
    again = io.BytesIO()
    assert tree.diff(again) == told
    assert again.getvalue() == sink.getvalue(), "the same changes are to make the same bytes"
    return sink.getvalue()


class TreeMachine(RuleBasedStateMachine):
    """The machine."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        bench.is_used = True
        self.rights = bench.rights
        self.forks = 0
        self.tree = bench.store.checkout("base", name="tree")
        self.base, self.tars = bench.start.base.copy(), bench.start.tars
        self.actor = Actor(bench.start.model.copy(), lambda: self.tree.path)
        self.snapshots: dict[str, Moment] = {}
        #: What was ever one file in a layer.
        self.bonds_below = self.base.bonds()

    @property
    def model(self) -> Model:
        """The model."""
        return self.actor.model

    # What is drawn

    def some_path(self, data: st.DataObject, paths: Sequence[str]) -> str:
        """Draw a path of those."""
        return data.draw(st.sampled_from(paths), "path")

    def new_path(self, data: st.DataObject, *, outside: str | None = None) -> str:
        """Draw a path that something may be brought to, be it taken or not; not one above another."""
        within = set() if outside is None else set(self.model.inside(outside))
        directory = data.draw(st.sampled_from([one for one in self.model.directories() if one not in within]), "directory")
        name = data.draw(st.sampled_from(NAMES), "name")
        return name if directory == TOP else f"{directory}/{name}"

    # Things come and go

    @rule(data=st.data(), content=st.sampled_from(CONTENTS))
    def make_file(self, data: st.DataObject, content: bytes) -> None:
        """Make a file, whatever was there."""
        self.actor.file(self.new_path(data), content, data.draw(st.sampled_from(self.rights.modes), "mode"))

    @rule(data=st.data())
    def make_directory(self, data: st.DataObject) -> None:
        """Make a directory, whatever was there."""
        self.actor.directory(self.new_path(data), data.draw(st.sampled_from([0o755, 0o2775]), "mode"))

    @rule(data=st.data())
    def make_another(self, data: st.DataObject) -> None:
        """Make a symbolic link, a FIFO or a device, whatever was there."""
        kinds = ["link", "FIFO", *["device"] * self.rights.is_root]
        kind = data.draw(st.sampled_from(kinds), "kind")
        path = self.new_path(data)
        if kind == "link":
            self.actor.symlink(path, data.draw(st.sampled_from(["a", "../b", "/\udcff", "x" * 200]), "target"))
        elif kind == "FIFO":
            self.actor.node(path, stat.S_IFIFO | 0o640)
        else:
            self.actor.node(path, stat.S_IFCHR | 0o666, DEVICE)

    @precondition(lambda self: any(not node.is_directory for node in self.model.nodes.values()))
    @rule(data=st.data())
    def make_link(self, data: st.DataObject) -> None:
        """Give a file one more name."""
        old = self.some_path(data, [path for path in self.model.paths() if not self.model.nodes[path].is_directory])
        new = self.new_path(data)
        if old not in self.model.inside(new):
            self.actor.link(old, new)

    @precondition(lambda self: self.model.paths())
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Remove a file, or a directory with all that is in it."""
        self.actor.remove(self.some_path(data, self.model.paths()))

    @precondition(lambda self: self.model.paths())
    @rule(data=st.data())
    def make_again(self, data: st.DataObject) -> None:
        """Remove a directory and make it again, or replace what it is by one."""
        self.actor.directory(self.some_path(data, self.model.paths()))

    @precondition(lambda self: self.model.paths())
    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        """Rename something, or copy it where that cannot be, as mv(1) does."""
        old, new = self.some_path(data, self.model.paths()), self.new_path(data)
        expected, refused = self._refusals(old, new), 0
        try:
            os.rename(self.actor.at(old), self.actor.at(new))
        except OSError as error:
            note(f"{error}")
            refused = error.errno or -1
        if refused == ESTALE and self._may_be_stale(old, new):
            return
        assert refused in (expected or {0})
        if refused == EXDEV:
            self.actor.make_room(new)
            subprocess.run(["mv", "-T", self.actor.at(old), self.actor.at(new)], check=True)
            self.actor.copied(old, new)
        elif not refused and not self._is_one(old, new):
            self.actor.moved(old, new)

    def _is_one(self, old: str, new: str) -> bool:
        """Return whether two paths are one file, of which rename(2) leaves both."""
        node = self.model.nodes[old]
        return old == new or (self.model.nodes.get(new) is node and not (self.model.breaks_bonds and node.is_lower))

    def _may_be_stale(self, one: str, other: str) -> bool:
        """Return whether the kernel may refuse to rename one to the other, for it takes two names of one file for two files."""
        return not self.bench.shows_bonds and one != other and self.model.nodes[one] is self.model.nodes.get(other)

    def _refusals(self, old: str, new: str) -> set[int]:
        nodes, found = self.model.nodes, set()
        if new.startswith(f"{old}/"):
            return {EINVAL}
        if old.startswith(f"{new}/"):
            return {ENOTEMPTY}
        if new in nodes and not self._is_one(old, new):
            if nodes[old].is_directory and not nodes[new].is_directory:
                return {ENOTDIR}
            if nodes[new].is_directory and not nodes[old].is_directory:
                return {EISDIR}
            if len(self.model.inside(new)) > 1:
                found |= {ENOTEMPTY, EEXIST}
        if not self.model.may_move(old) and old != new:
            found.add(EXDEV)
        return found

    @precondition(lambda self: self.model.paths())
    @rule(data=st.data())
    def exchange(self, data: st.DataObject) -> None:
        """Exchange two things, where the kernel can."""
        one, other = (self.some_path(data, self.model.paths()) for _ in range(2))
        if one in self.model.inside(other) or other in self.model.inside(one):
            return
        refused = 0
        with Fd(os.open(self.tree.path, os.O_PATH | os.O_CLOEXEC)) as top:
            try:
                calls.rename(top.fileno(), one, top.fileno(), other, calls.RENAME_EXCHANGE, one)
            except OSError as error:
                refused = error.errno or -1
        if refused == ESTALE and self._may_be_stale(one, other):
            return
        assert refused == (0 if self.model.may_move(one) and self.model.may_move(other) else EXDEV)
        if not refused:
            spare = f"{parent(one)}/spare"
            for path in (*self.model.inside(one), *self.model.inside(other)):
                self.model.own(path)
            self.model.move(one, spare)
            self.model.move(other, one)
            self.model.move(spare, other)
            self.actor.touch(parent(one), parent(other))

    # Things change

    @precondition(lambda self: self.model.files())
    @rule(data=st.data(), at=st.sampled_from([None, 0, 1, 6000]), content=st.sampled_from(CONTENTS))
    def write(self, data: st.DataObject, at: int | None, content: bytes) -> None:
        """Write into a file."""
        self.actor.write(self.some_path(data, self.model.files()), at, content)

    @precondition(lambda self: self.model.files())
    @rule(data=st.data(), size=st.sampled_from([0, 2, 5001, 100_000]))
    def truncate(self, data: st.DataObject, size: int) -> None:
        """Cut a file off, or make it longer."""
        self.actor.truncate(self.some_path(data, self.model.files()), size)

    @precondition(lambda self: self.model.files())
    @rule(data=st.data())
    def replace_content(self, data: st.DataObject) -> None:
        """Change a file, but neither its size nor its time."""
        self.actor.replace(self.some_path(data, self.model.files()))

    @precondition(lambda self: self.model.files())
    @rule(data=st.data())
    def open_to_write(self, data: st.DataObject) -> None:
        """Open a file to be written, and write nothing."""
        path = self.some_path(data, self.model.files())
        os.close(os.open(self.actor.at(path), os.O_RDWR | os.O_CLOEXEC))
        self.model.own(path)

    @rule(data=st.data(), mtime=st.sampled_from(TIMES))
    def set_time(self, data: st.DataObject, mtime: int) -> None:
        """Set a time."""
        self.actor.utime(self.some_path(data, [TOP, *self.model.paths()]), mtime)

    @rule(data=st.data())
    def set_mode(self, data: st.DataObject) -> None:
        """Change permissions."""
        paths = [path for path in (TOP, *self.model.paths()) if not stat.S_ISLNK(self.model.nodes[path].mode)]
        path = self.some_path(data, paths)
        modes = [0o755, 0o1777, 0o2775, 0o711] if self.model.nodes[path].is_directory else self.rights.modes
        self.actor.chmod(path, data.draw(st.sampled_from(modes), "mode"))

    @precondition(lambda self: len(self.rights.owners) > 1)
    @rule(data=st.data())
    def set_owner(self, data: st.DataObject) -> None:
        """Change an owner."""
        path = self.some_path(data, [TOP, *self.model.paths()])
        self.actor.chown(path, data.draw(st.sampled_from(self.rights.owners), "owner"))

    @rule(data=st.data())
    def set_attribute(self, data: st.DataObject) -> None:
        """Set an extended attribute."""
        path = self.some_path(data, [TOP, *self.model.paths()])
        kind = self.model.nodes[path].kind
        names = [
            name
            for name in self.rights.xattrs
            if name.startswith("trusted.") or kind == stat.S_IFREG or (kind == stat.S_IFDIR and name != CAPABILITY)
        ]
        if names:
            name = data.draw(st.sampled_from(names), "name")
            self.actor.set_xattr(path, name, data.draw(st.sampled_from(self.rights.xattrs[name]), "value"))

    @precondition(lambda self: any(node.xattrs for node in self.model.nodes.values()))
    @rule(data=st.data())
    def remove_attribute(self, data: st.DataObject) -> None:
        """Remove an extended attribute."""
        path = self.some_path(data, [path for path, node in sorted(self.model.nodes.items()) if node.xattrs])
        self.actor.remove_xattr(path, data.draw(st.sampled_from(sorted(self.model.nodes[path].xattrs)), "name"))

    # What a store does

    def look(self) -> None:
        """See whether the tree is what it should be, and says what has changed."""
        self.bench.look_at(self.tree, self.model)
        expected, other = self.model.changes(self.base)
        found = {change.path: change.kind.value for change in self.tree.changes()}
        assert len(found) == len(self.tree.changes())
        agree({path: kind for path, kind in found.items() if path not in other}, expected)

    def look_at(self, tree: Tree, *, exactly: bool) -> None:
        """See whether another tree is what this one should be.

        An overlay breaks the bonds that names of one file have in lower layers, and a layer of one does not say so where the
        file is otherwise the same.
        """
        if exactly:
            self.bench.look_at(tree, self.model)
            return
        found, expected = facts(tree.path), self.model.facts()
        agree(without_bonds(found), without_bonds(expected))
        here, there = self.model.bonds(), bonds((path, one[-1]) for path, one in found.items())
        below = self.bonds_below
        for group in here:
            if not any(len(group & one) > 1 for one in below):
                assert any(group <= one for one in there), (group, there)
        allowed = here | below
        for group in there:
            assert any(group <= one for one in allowed) or any(len(group & one) > 1 for one in below), (group, allowed)

    @rule()
    def see(self) -> None:
        """Look at the tree."""
        self.look()

    @rule()
    def commit(self) -> None:
        """Make an image of it; the tree goes on above it, and a new one of that image is the same."""
        self.look()
        changed, other = self.model.changes(self.base)
        tar, before = diff(self.tree), len(self.tars)
        image = self.tree.commit()
        assert len(image.layers) == before + bool(changed) or other
        if len(image.layers) == before:  # times of directories are no changes
            self.look()
            return
        assert b"".join(replayed(self.bench.store._records, image.layers[-1])) == tar
        self.bench.look_at_layers(image)
        self.tars = (*self.tars, tar)
        with self.bench.store.checkout(image) as again:
            self.look_at(again, exactly=not self.bench.is_overlay)
            assert again.changes() == []
        self._go_on(self.model.settled())
        self.base = self.model.settled()
        self.bonds_below |= self.base.bonds()
        assert self.tree.changes() == []

    def _go_on(self, model: Model) -> None:
        """Go on with a tree that lies in layers; which of its names are of one file, those say."""
        self.actor.model = model
        self.look_at(self.tree, exactly=not self.bench.is_overlay)
        self._bind()

    def _bind(self) -> None:
        found = facts(self.tree.path)
        first = {path: self.model.nodes[path] for path in self.model.nodes}
        self.model.nodes = {path: first[str(one[-1])] for path, one in found.items()}

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def snapshot(self) -> None:
        """Keep it as it is."""
        name = self.tree.snapshot()
        assert self.tree.snapshots == tuple(sorted([*self.snapshots, name]))
        self.snapshots[name] = Moment(self.model.copy(), self.base.copy(), self.tars)

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        """Take it back to a snapshot, or to what it stands on."""
        name = data.draw(st.sampled_from([None, *sorted(self.snapshots)]), "snapshot")
        self.tree.reset(name)
        if name is not None:
            moment = self.snapshots[name]
            self.base, self.tars = moment.base.copy(), moment.tars
            self._go_on(moment.model.settled())
        else:
            self._go_on(self.base.settled())
        self.look()

    @rule(is_taken=st.booleans())
    def fork(self, is_taken: bool) -> None:  # noqa: FBT001 - hypothesis draws it
        """Make another tree of it, and go on with one of the two."""
        self.forks += 1
        other = self.tree.fork(name=f"fork{self.forks}")
        self.look_at(other, exactly=not self.bench.is_overlay)
        left = self.tree if is_taken else other
        with open(f"{left.path}/only here", "xb"):
            pass
        if is_taken:
            self.tree, self.snapshots = other, {}
            self._go_on(self.model.settled())
        left.remove()
        self.bench.look_at(self.tree, self.model)

    @rule(is_whole=st.booleans())
    def close_and_open(self, is_whole: bool) -> None:  # noqa: FBT001 - hypothesis draws it
        """Close it, and take it again, from the same store or from one that is opened anew."""
        name = self.tree.name
        self.tree.close()
        if is_whole:
            self.bench.store.close()
            self.bench.store = self.bench.open()
        self.tree = self.bench.store.tree(name)
        assert self.tree.snapshots == tuple(sorted(self.snapshots))
        self.look()

    @rule()
    def carry(self) -> None:
        """Take its layers and its changes to the other stores: what comes out there is the same."""
        tars = [*self.tars, diff(self.tree)]
        for name, store in self.bench.others.items():
            note(f"in {name}")
            with tempfile.TemporaryDirectory() as where:
                image = store.load(written(layout(("", Draft(tars))), Path(where)), name="carried")
            with store.checkout(image) as tree:
                is_overlay = self.bench.is_overlay or store._records.driver.form is not Form.MERGED
                self.look_at(tree, exactly=not is_overlay)

    def teardown(self) -> None:
        """Look at everything once more, and leave the store as it was."""
        if sys.exc_info()[0] is not None:  # what a failure leaves says nothing, and what was cut short no more
            self.tree.close()
            return
        self.look()
        self.carry()
        self.bench.look_at_layers(self.bench.store.image("base"))
        self.tree.remove()
        for store in (self.bench.store, *self.bench.others.values()):
            store.gc(unnamed=True)
        self.bench.forget_layers()
        assert self.bench.store.verify() == ()
        assert self.bench.store.trees() == ()
        self.bench.is_used = False


def try_trees(open_store: Callable[[str], Store], others: dict[str, Store], *, examples: int, steps: int) -> None:
    """Run the machine on stores that a function opens by their names."""
    rights, benches = Rights.own(), list[Bench]()

    def machine() -> TreeMachine:
        # After a failure there may be anything in a store.
        if not benches or benches[-1].is_used:
            benches.append(Bench(partial(open_store, f"store{len(benches)}"), others, rights))
        return TreeMachine(benches[-1])

    wanted = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        print_blob=True,
        suppress_health_check=[*HealthCheck],
    )
    try:
        run_state_machine_as_test(machine, settings=wanted)  # type: ignore[arg-type]  # any factory will do
        check(benches[-1].store)
        for store in others.values():
            check(store)
    finally:
        for bench in benches:
            bench.store.close()
