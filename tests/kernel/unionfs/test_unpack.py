"""Layers unpacked, on the real kernel."""

from __future__ import annotations

import gc
import io
import os
import stat
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from errno import EPERM, EROFS, EXDEV
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import attach, clone_tree, new_mount
from isolib.errors import ArchiveError, PermissionDenied, PlanError, SyscallError
from isolib.unionfs.archive import tar
from isolib.unionfs.disk.compare import difference
from isolib.unionfs.disk.scan import scan
from isolib.unionfs.disk.unpack import Limits, unpack
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Entry, Kind
from tests import hostile
from tests.interrupts import interrupt
from tests.layered import (
    OVERLAYS,
    anywhere,
    check_merged,
    check_union,
    directory,
    file,
    kept,
    layers,
    link,
    make,
    opaque,
    pieces,
    places,
    symlink,
    tree,
    union,
    whiteout,
)
from tests.seccomp import Denied
from tests.storage import disk
from tests.threads import in_a_thread, restrict_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from tests.layered import Made

OWNERS = (0, 1000) if os.geteuid() == 0 else (os.geteuid(),)
FORMS = [Form.MERGED, Form.USER_OVERLAY, pytest.param(Form.OVERLAY, marks=pytest.mark.root)]
TOP = Path(__file__).parents[3]


# ---- what it is to be ----


@given(st.lists(layers(OWNERS), min_size=1, max_size=3))
def test_model(stack: list[list[Made]]) -> None:
    """A tree into which layers are unpacked is what the rules of OCI say, whatever the order of their entries."""
    check_merged(stack)


@pytest.mark.root
@pytest.mark.parametrize("form", OVERLAYS)
@given(st.lists(layers(OWNERS), min_size=2, max_size=3))
def test_union(form: Form, stack: list[list[Made]]) -> None:
    """The kernel's overlay of layers that lie in directories of their own is the tree into which all are unpacked."""
    check_union(form, stack)


def in_user_namespace(code: str) -> None:
    """Run code as the root of a user namespace, with one id."""
    path = os.pathsep.join([*(one or os.getcwd() for one in sys.path), str(TOP)])
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", code]
    with tempfile.TemporaryDirectory() as home:
        env |= {"TMPDIR": home, "HYPOTHESIS_STORAGE_DIRECTORY": f"{home}/hypothesis"}
        done = subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_union_in_a_user_namespace(user_namespaces: None) -> None:
    """In a user namespace too, an overlay of layers is the tree into which all are unpacked."""
    in_user_namespace(
        "from hypothesis import given, settings, strategies as st\n"
        "from tests.layered import *\n"
        "settings(deadline=None)(given(st.lists(layers([0]), min_size=2, max_size=3))"
        "(lambda stack: check_union(Form.USER_OVERLAY, stack)))()\n",
    )


@pytest.mark.parametrize("form", FORMS)
def test_order_does_not_matter(form: Form) -> None:
    """Whiteouts and opaque marks hide what is below and nothing of their layer, before it or after it."""
    base = [directory(b""), directory(b"d", 0o700), file(b"d/old"), directory(b"e"), file(b"e/old")]
    top = [directory(b""), opaque(b"d"), file(b"d/new"), whiteout(b"e"), file(b"e/new")]
    seen = []
    for layer in (top, top[::-1]):
        with places(2) as (lower, upper):
            make(base, lower, form)
            if form is Form.MERGED:
                make(layer, lower)
                seen.append(tree(lower.fileno()))
            else:
                make(layer, upper, form, [lower])
                seen.append(tree(upper.fileno()))
                assert b"e" in seen[-1]
    assert seen[0] == seen[1]
    assert set(seen[0]) == {b"", b"d", b"d/new", b"e", b"e/new"}
    # It is as below, where the layer does not say; and a directory of which nothing is left below is a new one.
    assert (seen[0][b"d"].mode, seen[0][b"e"].mode) == (0o700, 0o755)


@pytest.mark.root
@pytest.mark.parametrize("form", OVERLAYS)
def test_no_whiteout_of_nothing(form: Form) -> None:
    """A whiteout of what is not below is not made: in a directory that is not merged it would be seen."""
    with places(2) as (lower, upper):
        make([directory(b""), directory(b"d")], lower, form)
        make([directory(b""), directory(b"new"), whiteout(b"new/a"), whiteout(b"d/b"), whiteout(b"c")], upper, form, [lower])
        with union(form, [upper, lower]) as mounted:
            assert os.listdir(f"/proc/self/fd/{mounted.fileno()}/new") == []
        assert set(tree(upper.fileno())) == {b"", b"new"}


@pytest.mark.root
@pytest.mark.parametrize("form", OVERLAYS)
def test_opaque_root(form: Form) -> None:
    """An opaque root hides all that is below, name by name, for overlayfs does not look whether a layer's root is opaque."""
    with places(2) as (lower, upper):
        make([directory(b""), directory(b"d"), file(b"d/old"), file(b"f")], lower, form)
        make([directory(b""), opaque(b""), directory(b"d"), file(b"d/new")], upper, form, [lower])
        with union(form, [upper, lower]) as mounted:
            assert set(tree(mounted.fileno())) == {b"", b"d", b"d/new"}


@pytest.mark.root
@pytest.mark.parametrize("form", OVERLAYS)
def test_links_to_lower_files(form: Form) -> None:
    """A hard link to a file of a lower layer brings that file along, with all that it has, and both are one file again."""
    base = [
        directory(b""),
        file(b"f", b"x" * 100_000, 0o4751, uid=7, gid=8, mtime=9, xattrs={b"user.a": b"b"}),
        symlink(b"s", b"f"),
    ]
    base += [link(b"g", b"f")]
    with places(2) as (lower, upper):
        make(base, lower, form)
        make([directory(b""), link(b"d/one", b"f"), link(b"two", b"s"), link(b"three", b"g")], upper, form, [lower])
        found = tree(upper.fileno())
        assert found[b"f"].names == {b"f", b"d/one", b"g", b"three"}
        assert found[b"s"].names == {b"s", b"two"}
        below = tree(lower.fileno())[b"f"]
        assert {**vars(found[b"f"]), "names": below.names} == vars(below)


def test_attributes() -> None:
    """What a file has is given to it in an order in which nothing takes anything away again, and nothing is inherited."""
    entry = file(b"d/f", b"x", 0o6755, mtime=-5, xattrs={b"user.a": b"", b"user.b": bytes(range(256))})
    with places(1) as (root,):
        os.mkdir("d", dir_fd=root.fileno())
        acl = bytes.fromhex("0200000001000700ffffffff04000700ffffffff08000700 01000000 10000700ffffffff20000700ffffffff")
        with Fd(os.open("d", os.O_RDONLY, dir_fd=root.fileno())) as inner:
            os.setxattr(inner.fileno(), "system.posix_acl_default", acl)
            os.fchmod(inner.fileno(), 0o2777)
        make([entry, file(b"d/g", b"x", 0o640), directory(b"d/e", 0o750)], root)
        found = tree(root.fileno())
    assert (found[b"d/f"].mode, found[b"d/f"].mtime, found[b"d/f"].xattrs) == (0o6755, -5, dict(entry[0].xattrs))
    assert (found[b"d/g"].mode, found[b"d/g"].xattrs, found[b"d/e"].mode, found[b"d/e"].xattrs) == (0o640, {}, 0o750, {})
    assert (found[b"d"].mode, found[b"d"].xattrs) == (0o2777, {b"system.posix_acl_default": acl})


@pytest.mark.root
def test_capabilities_and_devices() -> None:
    """Capabilities of a file survive its owner, and devices have their numbers and modes."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    layer: list[Made] = [
        file(b"ping", b"x", 0o755, uid=5, gid=6, xattrs={b"security.capability": capability}),
        (Entry(b"null", Kind.CHARACTER, 0o666, 1, 2, 3, device=(1, 3)), b""),
        (Entry(b"disk", Kind.BLOCK, 0o660, 0, 6, 3, device=(4095, 1048575)), b""),
    ]
    with places(1) as (root,):
        make(layer, root)
        assert tree(root.fileno())[b"ping"].xattrs == {b"security.capability": capability}
        assert kept(scan(root.fileno(), Form.MERGED))[1:] == sorted(layer, key=lambda one: one[0].path)


def test_books_are_left_out() -> None:
    """Attributes that would make overlayfs or a security module see something else are not set."""
    names = [b"user.overlay.redirect", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque", b"security.selinux", b"user.kept"]
    names += [b"trusted.overlay.metacopy", b"btrfs.compression", b"system.nfs4_acl"]
    with places(1) as (root,):
        make([directory(b"d", xattrs=dict.fromkeys(names, b"y"))], root, Form.USER_OVERLAY)
        assert os.listxattr(f"/proc/self/fd/{root.fileno()}/d") == ["user.kept"]


def test_contents_that_have_descriptors(tmp_path: Path) -> None:
    """A content with a descriptor is copied by the kernel, wherever the descriptor stands, and as far as the entry says."""
    data = os.urandom(3 << 20)
    (tmp_path / "source").write_bytes(data)
    with places(1) as (root,):
        for size in (0, 5, len(data)):
            with (tmp_path / "source").open("rb") as opened:
                opened.seek(7)
                unpack([(replace(file(b"f")[0], size=size), opened)], root.fileno(), Form.MERGED)
            assert tree(root.fileno())[b"f"].content == data[:size]
        with (tmp_path / "source").open("rb") as opened, pytest.raises(SyscallError, match="shorter"):
            unpack([(replace(file(b"f")[0], size=len(data) + 1), opened)], root.fileno(), Form.MERGED)
        assert set(tree(root.fileno())) == {b""}


@pytest.mark.root
@pytest.mark.parametrize("form", OVERLAYS)
def test_whiteouts_without_devices(form: Form) -> None:
    """Where device nodes are refused, whiteouts are made in the form that the kernel has for that, and hide the same."""
    base = [directory(b""), directory(b"d"), file(b"d/a"), file(b"d/b"), file(b"c"), directory(b"e"), file(b"e/f")]
    with places(2) as (lower, upper):
        make(base, lower, form)

        def refused() -> None:
            restrict_thread(Denied("mknodat", EPERM))
            make([directory(b""), whiteout(b"d/a"), whiteout(b"c"), opaque(b"e")], upper, form, [lower])

        in_a_thread(refused)
        told = [(entry.path, entry.kind, entry.opaque) for entry, _ in scan(upper.fileno(), form)][1:]
        assert told == [
            (b"c", Kind.WHITEOUT, False),
            (b"d", Kind.DIRECTORY, False),
            (b"d/a", Kind.WHITEOUT, False),
            (b"e", Kind.DIRECTORY, True),
        ]
        assert stat.S_ISREG(os.stat("c", dir_fd=upper.fileno()).st_mode)
        if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 8):
            pytest.skip("overlayfs knows these since Linux 6.8")
        with union(form, [upper, lower]) as mounted:
            assert set(tree(mounted.fileno())) == {b"", b"d", b"d/b", b"e"}


def test_attributes_without_new_calls() -> None:
    """On a kernel without the calls for attributes of names in directories, links and files have the same ones."""
    code = f"""
from errno import {{error}}
from tests.layered import *
from tests.interrupts import interrupt
from tests.seccomp import Denied
from tests.threads import restrict_thread
restrict_thread(*(Denied(name, {{error}}) for name in ("getxattrat", "listxattrat", "setxattrat")))
from dataclasses import replace
from isolib.unionfs.disk.scan import scan
layer = [file(b"f", b"x", xattrs={{{{b"user.a": b"b" * 1000}}}}), symlink(b"s", b"f"), file(b"t", b"x")]
if {os.geteuid()} == 0:
    layer[1] = replace(layer[1][0], xattrs={{{{b"trusted.a": b"c"}}}}), b""
with places(1) as (root,):
    make(layer, root)
    assert kept(scan(root.fileno(), Form.MERGED))[1:] == layer
"""
    path = os.pathsep.join([*(one or os.getcwd() for one in sys.path), str(TOP)])
    for error in ("ENOSYS", "EPERM"):
        argv = [sys.executable, "-c", code.format(error=error)]
        subprocess.run(argv, env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}, check=True)


# ---- hostile layers ----


@contextmanager
def canary() -> Iterator[tuple[Path, Fd]]:
    """Make a directory to unpack into, beside one that must not change."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (base / "canary").mkdir()
        (base / "canary" / "secret").write_text("secret")
        (base / "root").mkdir()
        with Fd(os.open(base / "canary", os.O_RDONLY)) as beside, Fd(os.open(base / "root", os.O_RDONLY)) as root:
            before = tree(beside.fileno())
            yield base / "canary", root
            calls.remove_tree(root.fileno(), None, "")  # what is too deep for shutil
            assert tree(beside.fileno()) == before


HOSTILE: list[list[Made]] = [
    [symlink(b"a", b"CANARY"), file(b"a/secret", b"x")],
    [symlink(b"a", b"CANARY"), file(b"a/new", b"x")],
    [symlink(b"a", b"../canary"), symlink(b"b", b"a"), file(b"b/new", b"x")],
    [symlink(b"a", b"CANARY/secret"), file(b"a", b"x")],
    [symlink(b"a", b"CANARY/new"), file(b"a", b"x")],
    [symlink(b"a", b"CANARY"), directory(b"a", 0o777), file(b"a/secret", b"x")],
    [symlink(b"a", b"CANARY"), directory(b"a", 0o777)],
    [symlink(b"a", b"CANARY"), opaque(b"a")],
    [symlink(b"a", b"CANARY"), whiteout(b"a/secret")],
    [symlink(b"a", b"CANARY"), link(b"b", b"a/secret"), file(b"b", b"x")],
    [symlink(b"a", b"CANARY/secret"), link(b"b", b"a"), file(b"b", b"x")],
    [link(b"b", b"../canary/secret")],
    [link(b"b", b"CANARY/secret")],
    [file(b"../canary/new", b"x")],
    [file(b"CANARY/new", b"x")],
    [file(b"a/../../canary/new", b"x")],
    [whiteout(b"../canary/secret")],
    [whiteout(b"a/..")],
    [whiteout(b"..")],
    [whiteout(b".")],
    [whiteout(b"")],
    [opaque(b"../canary")],
    [opaque(b"..")],
    [directory(b"..", 0o000)],
    [directory(b".", 0o000), directory(b"./a")],
    [symlink(b"", b"CANARY")],
    [file(b"", b"x")],
    [file(b"a\0b", b"x")],
    [file(b"a//b", b"x")],
    [file(b"/a", b"x")],
    [file(b"a/", b"x")],
    [symlink(b"a", b"")],
    [link(b"a", b"a")],
    [file(b"d/f"), link(b"d", b"d/f")],
    [directory(b"d"), link(b"l", b"d")],
    [link(b"l", b"nothing")],
    [file(b"f"), file(b"f/below")],
    [(Entry(b"p", Kind.FIFO), b""), file(b"p/below")],
    [file(b"f"), link(b"l", b"f/below")],
    [(Entry(b"f", Kind.FILE, size=-1), b"")],
    [(Entry(b"f", Kind.FILE, uid=2**32 - 1), b"")],
    [(Entry(b"f", Kind.FILE, gid=-1), b"")],
    [(Entry(b"f", Kind.FILE, mode=0o100644), b"")],
    [(Entry(b"c", Kind.CHARACTER, device=(0, 0)), b"")],
    [(Entry(b"c", Kind.CHARACTER, device=(4096, 0)), b"")],
    [(Entry(b"c", Kind.BLOCK, device=(0, -1)), b"")],
]
#: They mean something, and what they mean is harmless.
HARMLESS = {3, 4, 6, 7, 8, 10}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile(number: int, form: Form) -> None:
    """A layer that leads out of its tree, or means nothing, is refused, and nothing outside is read or changed."""
    with canary() as (path, root), places(1) as (lower,):
        aim = os.fsencode(path)
        layer = []
        for entry, content in HOSTILE[number]:
            fields = {"path": entry.path.replace(b"CANARY", aim), "target": entry.target.replace(b"CANARY", aim)}
            layer.append((Entry(**{name: getattr(entry, name) for name in Entry.__slots__} | fields), content))
        layer = [(replace_owner(entry), content) for entry, content in layer]
        if number in HARMLESS or (number == 5):
            if form is not Form.OVERLAY or os.geteuid() == 0:
                make(layer, root, form, [lower])
            if number == 10:
                assert tree(root.fileno())[b"b"].content == b"x"
            return
        with pytest.raises(ArchiveError):
            make(layer, root, form, [lower])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", hostile.HARMLESS, ids=str)
def test_hostile_archives(case: hostile.Hostile, form: Form) -> None:
    """An archive that the reader lets pass changes nothing outside the tree, whether it is unpacked or refused."""
    with canary() as (path, root):
        archive = io.BytesIO(case.archive(os.fsencode(path)))
        try:
            unpack(tar.read(archive), root.fileno(), form, allow=["devices", "owners", "xattrs"])
        except (ArchiveError, SyscallError):
            return
        if os.geteuid() == 0:  # others cannot read what is closed to its owner
            assert b"secret" not in {thing.content for thing in tree(root.fileno()).values()}


def replace_owner(entry: Entry) -> Entry:
    """Return an entry that the caller may make, unless its owner is what is wrong with it."""
    return replace(entry, uid=entry.uid or os.geteuid(), gid=entry.gid or os.getegid())


def test_symlinks_from_below() -> None:
    """A symbolic link of a lower layer that stands where a directory is needed is replaced, and never followed."""
    with canary() as (path, root):
        make([symlink(b"a", os.fsencode(path)), symlink(b"b/c", b"../../canary")], root)
        make([file(b"a/secret", b"x"), whiteout(b"b/c/secret"), file(b"b/c/d/e", b"y")], root)
        found = tree(root.fileno())
        assert (found[b"a/secret"].content, found[b"b/c/d/e"].content) == (b"x", b"y")


def test_limits() -> None:
    """A layer that grows beyond its limits is refused before it does: contents, entries, directories that it does not list."""
    for layer, limits in (
        ([file(b"a", b"12345"), file(b"b", b"12345")], Limits(size=9)),
        ([file(b"a"), file(b"b"), file(b"c")], Limits(entries=2)),
        ([file(b"a/b/c/d")], Limits(entries=2)),
        ([whiteout(b"a/b/c/d")], Limits(entries=2)),
        ([file(b"a/b/c")], Limits(depth=2)),
        ([file(b"abcdef")], Limits(path=5)),
    ):
        with places(1) as (root,), pytest.raises(ArchiveError, match="limit"):
            unpack(pieces(layer), root.fileno(), Form.MERGED, limits=limits)
    with places(1) as (root,), pytest.raises(ArchiveError, match="5 bytes of content, not 6"):
        unpack([(Entry(b"f", Kind.FILE, size=6), next(pieces([file(b"f", b"12345")]))[1])], root.fileno(), Form.MERGED)


ATTACK = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
root = int(sys.argv[1])
os.symlink(sys.argv[2], "link", dir_fd=root)
print("ready", flush=True)
while True:
    libc.renameat2(root, b"d", root, b"link", 2)
"""


@pytest.mark.parametrize("form", [Form.MERGED, Form.USER_OVERLAY])
def test_exchanged_meanwhile(form: Form) -> None:
    """Somebody who keeps exchanging a directory with a symbolic link gains nothing: all stays inside, or it is an error."""
    with canary() as (path, root):
        argv = [sys.executable, "-I", "-c", ATTACK, str(root.fileno()), str(path)]
        os.mkdir("d", 0o755, dir_fd=root.fileno())
        with subprocess.Popen(argv, pass_fds=[root.fileno()], stdout=subprocess.PIPE) as attacker:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == b"ready\n"
            try:
                for number in range(300):
                    name = b"d/%d" % number
                    layer = [
                        file(name + b"/f", b"x"),
                        directory(name + b"/e"),
                        symlink(name + b"/s", b"t"),
                        whiteout(b"d/secret"),
                    ]
                    with suppress(SyscallError, ArchiveError):
                        make(layer, root, form)
            finally:
                attacker.kill()


# ---- refusals ----


def test_closed_directories() -> None:
    """What lies in directories that their owner has no rights over is changed and removed, and they stay closed."""
    with places(1) as (root,):
        make([directory(b"a", 0o000), directory(b"a/b", 0o000), file(b"a/b/f"), directory(b"c", 0o000), file(b"c/d/e")], root)
        make([file(b"a/b/g", b"x"), whiteout(b"a/b/f"), file(b"c")], root)
        with Fd(os.open(".", os.O_RDONLY, dir_fd=root.fileno())) as again:
            assert stat.S_IMODE(os.stat("a", dir_fd=again.fileno()).st_mode) == 0
        os.chmod(f"/proc/self/fd/{root.fileno()}/a", 0o700)
        assert stat.S_IMODE(os.stat("a/b", dir_fd=root.fileno()).st_mode) == 0
        os.chmod(f"/proc/self/fd/{root.fileno()}/a/b", 0o700)
        found = tree(root.fileno())
    assert set(found) == {b"", b"a", b"a/b", b"a/b/g", b"c"}


@pytest.mark.unprivileged
def test_owners_and_devices_refused() -> None:
    """What an ordinary user may not do is refused with what would help, or is left out and named where that is allowed."""
    layer: list[Made] = [
        file(b"f", b"x", 0o4755, uid=0, gid=0),
        file(b"g", b"x", 0o755, uid=0, gid=0, xattrs={b"security.capability": b"\1\0\0\2" + bytes(16), b"user.a": b"b"}),
        (Entry(b"null", Kind.CHARACTER, 0o666, 0, 0, 0, device=(1, 3)), b""),
    ]
    for number, name in ((0, "owners"), (2, "devices")):
        with places(1) as (root,), pytest.raises(PermissionDenied, match=f"allow=.'{name}'"):
            make([layer[number]], root)
    with places(1) as (root,):
        make([(Entry(b"null", Kind.FIFO, 0o600, os.geteuid(), os.getegid()), b"")], root)
        done = unpack(pieces(layer), root.fileno(), Form.MERGED, allow=["devices", "owners", "xattrs"])
        found = tree(root.fileno())
    assert [(one.path, one.what, one.detail) for one in done.skipped] == [
        (b"f", "owners", "0:0"),
        (b"g", "owners", "0:0"),
        (b"g", "xattrs", "security.capability"),
        (b"null", "devices", "character device 1:3"),
    ]
    assert all(one.errno for one in done.skipped)
    assert set(found) == {b"", b"f", b"g"}
    assert (found[b"f"].mode, found[b"f"].owner, found[b"g"].xattrs) == (
        0o4755,
        (os.geteuid(), os.getegid()),
        {b"user.a": b"b"},
    )


def test_allow_is_checked() -> None:
    """What cannot be left out cannot be allowed to be left out."""
    for allow in ("devices", ["contents"]):
        with places(1) as (root,), pytest.raises(PlanError, match="allow="):
            unpack([], root.fileno(), Form.MERGED, allow=allow)


def test_ids() -> None:
    """Owners are mapped as the caller says, and what is copied of lower directories keeps the ids that are on disk."""
    me = os.geteuid(), os.getegid()
    with places(2) as (lower, upper):
        unpack(pieces([directory(b"d", uid=77, gid=78)]), lower.fileno(), Form.USER_OVERLAY, ids=lambda *_: me)
        unpack(
            pieces([file(b"d/f", uid=77, gid=78)]),
            upper.fileno(),
            Form.USER_OVERLAY,
            lowers=[lower.fileno()],
            ids=lambda *_: me,
        )
        assert {thing.owner for thing in tree(upper.fileno()).values()} == {me}


@pytest.mark.root
def test_read_only() -> None:
    """A read-only file system is said to be one, with the path that was to be made."""
    with disk("tmpfs") as made, made.readonly() as root, pytest.raises(SyscallError) as caught:
        make([file(b"d/f")], root)
    assert (caught.value.errno, caught.value.target) == (EROFS, "/d")


@pytest.mark.root
def test_full() -> None:
    """A full file system is said to be one, and no half of a file is left."""
    with disk("tmpfs", size=1 << 19) as made:
        for size in (1 << 20, 3 << 20):
            with pytest.raises(SyscallError, match=r"write: /f: No space left") as caught:
                make([file(b"f", b"x" * size)], made.root)
            assert caught.value.op == "write"
            assert os.listdir(made.path) == []


@pytest.mark.root
def test_immutable() -> None:
    """A file that cannot be removed is named."""
    with disk("ext4", size=32 << 20) as made:
        make([file(b"d/f")], made.root)
        with Fd(os.open(f"{made.path}/d/f", os.O_RDONLY)) as immutable:
            ioctl(immutable.fileno(), 0x40086602, (0x10).to_bytes(8, sys.byteorder))  # FS_IOC_SETFLAGS, FS_IMMUTABLE_FL
        for layer in ([file(b"d/f", b"x")], [whiteout(b"d")], [file(b"d")]):
            with pytest.raises(PermissionDenied) as caught:
                make(layer, made.root)
            assert caught.value.target == "/d/f"


@pytest.mark.root
def test_mounts_are_not_crossed() -> None:
    """What is mounted in the tree is neither changed nor removed."""
    with Fd(new_mount("tmpfs", {"mode": "755"})) as outer:
        os.mkdir("d", dir_fd=outer.fileno())
        with Fd(clone_tree("", dir_fd=outer.fileno())) as root, Fd(new_mount("tmpfs")) as inner:
            with Fd(os.open("d", os.O_PATH, dir_fd=root.fileno())) as place:
                try:
                    attach(inner.fileno(), place.fileno(), "d")
                except SyscallError:
                    pytest.skip("this kernel attaches nothing to a detached mount")
            make([file(b"kept", b"x")], inner)
            with pytest.raises(SyscallError) as caught:
                make([file(b"d/f")], root)
            assert (caught.value.errno, caught.value.target) == (EXDEV, "/d")
            with pytest.raises(SyscallError) as caught:
                list(scan(root.fileno(), Form.MERGED))
            assert (caught.value.errno, caught.value.target) == (EXDEV, "/d")
            # A mount of another mount namespace, as this one is, does not keep its place from being removed.
            make([whiteout(b"d")], root)
            assert set(tree(inner.fileno())) == {b"", b"kept"}
            assert set(tree(root.fileno())) == {b""}


def test_interrupted() -> None:
    """An interrupt at any point of unpacking, scanning or comparing leaves no descriptor open."""
    layer = [file(b"a/b/f", b"x", xattrs={b"user.a": b""}), link(b"a/g", b"a/b/f"), directory(b"c"), file(b"c"), whiteout(b"d")]
    layer += [file(b"big", b"x" * 70_000), file(b"a/b/c/d/e/f/g"), whiteout(b"o/x")]
    base = [directory(b"d"), file(b"d/e"), file(b"o/x"), directory(b"o/y")]

    def action() -> None:
        with places(3) as (lower, upper, merged):
            make(base, lower, Form.USER_OVERLAY)
            make(layer, upper, Form.USER_OVERLAY, [lower])
            make(base, merged)
            kept(scan(upper.fileno(), Form.USER_OVERLAY))
            kept(difference(lower.fileno(), merged.fileno()))

    def is_ours(code: CodeType) -> bool:
        return "isolib/unionfs" in code.co_filename or code.co_filename.endswith("calls/files.py")

    before = sorted(os.listdir("/proc/self/fd"))
    turn = 1
    while interrupt(turn, action, is_ours) == 0:
        gc.collect()
        assert sorted(os.listdir("/proc/self/fd")) == before, turn
        turn += 1 + turn // 8
    assert turn > 1000


def test_longest_path() -> None:
    """A path as long as Linux has them, of 2,048 names, is made; and removed."""
    path = b"/".join([b"d"] * 2047 + [b"f"])
    assert len(path) == 4095
    with anywhere() as root:
        make([file(path, b"x")], root)
        assert sum(1 for _ in scan(root.fileno(), Form.MERGED)) == 2049
        make([whiteout(b"d")], root)
        assert os.listdir(f"/proc/self/fd/{root.fileno()}") == []
