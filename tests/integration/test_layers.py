"""What is mounted: the host's own mounts, odd names, many layers, and layers that do not go together."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import IdMap, SetupFailed
from isolib.mounts import Bind, Dev, File, Mask, Overlay
from tests.programs import IS_ROOT, KINDS, as_host, on_skeleton

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("user_namespaces")


def test_mounts_of_the_host_are_read_only() -> None:
    """A file system that the host has mounted below a visible directory, writable for everybody, is not so in a sandbox."""
    setup = 'mount -t tmpfs -o mode=777 none /srv; touch /srv/seen; chmod 666 /srv/seen; exec "$@"'
    options = ["--propagation", "private"] if IS_ROOT else ["--user", "--map-current-user", "--keep-caps"]
    program = """
        import isolib, os
        done = isolib.run(["sh", "-c", "ls /srv; echo > /srv/new; echo > /srv/seen; mkdir /srv/x"], cwd="/tmp")
        print(done.stdout, done.stderr.count(b"Read-only file system"), os.listdir("/srv"))
    """
    out = as_host(program, "unshare", "--mount", *options, "sh", "-ec", setup, "sh")
    assert out == "b'seen\\n' 3 ['seen']\n"


def test_names_that_are_no_text(place: Path) -> None:
    """Names that are no UTF-8 work as source and target, and are not changed."""
    odd = os.fsencode(place) + b"/caf\xe9"
    os.mkdir(odd)
    with open(odd + b"/\xff", "w", encoding="ascii") as file:
        file.write("content")
    os.chmod(odd, 0o755)
    out = on_skeleton("cat /d*/s*/*; ls /d?", Bind(odd, b"/d\xe9/s\xfe"), File(b"/d\xe9/file\xfd", "x"))
    assert os.fsencode(out).startswith(b"content")
    assert {b"file\xfd", b"s\xfe"} <= set(
        os.fsencode(on_skeleton("ls /d*", File(b"/d\xe9/file\xfd", ""), Dev(b"/d\xe9/s\xfe"))).split()
    )


def test_covered_directory_is_empty(place: Path) -> None:
    """A masked directory has the link count of an empty one, so that find(1) does not look for more."""
    (place / "a" / "b").mkdir(parents=True)
    assert on_skeleton("stat -c %h /data; find /data", Bind(place, "/data"), Mask("/data")).split() == ["2", "/data"]


def test_most_layers(place: Path) -> None:
    """500 layers with names of 150 characters are one file system."""
    lowers = []
    for number in range(500):
        lower = place / f"{number} {'x' * 150}"
        lower.mkdir()
        (lower / str(number)).touch()
        lowers.append(lower)
    assert on_skeleton("ls /data | wc -l", Overlay("/data", lowers)) == "500\n"


WRONG_LAYERS: dict[str, Callable[[Path, Path], tuple[Path, Path, Path]]] = {
    "work on another file system": lambda one, other: (one / "lower", one / "upper", other),
    "lower in upper": lambda one, _: (one / "upper" / "in", one / "upper", one / "work"),
    "work in upper": lambda one, _: (one / "lower", one / "upper", one / "upper" / "in"),
    "lower by a link is upper": lambda one, _: (one / "link", one / "upper", one / "work"),
}


@pytest.mark.parametrize("layers", WRONG_LAYERS)
def test_layers_that_do_not_go_together(layers: str, place: Path) -> None:
    """Layers that overlay refuses together are an error that names the mount and says what is wrong with them."""
    for name in ("lower", "upper", "work", "upper/in"):
        (place / name).mkdir()
    (place / "link").symlink_to("upper")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if os.stat(other).st_dev == place.stat().st_dev:
            pytest.skip("/dev/shm is on the file system of /var/tmp")
        lower, upper, work = WRONG_LAYERS[layers](place, Path(other))
        new = KINDS - {"user"} if IS_ROOT else KINDS
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", Overlay("/data", [lower], upper=upper, work=work), new=new)
    assert caught.value.op == "fsconfig"
    assert caught.value.target is not None
    assert caught.value.target.startswith("/data")
    assert caught.value.hint is not None
    assert "upper" in caught.value.hint
    assert not os.listdir(place / "upper" / "in")


@pytest.mark.root
def test_several_id_maps_of_one_source(place: Path) -> None:
    """One directory can be bound several times, with other owners in each place; what is written lands with the right one."""
    os.chown(place, 4000, 4000)
    place.chmod(0o777)
    binds = [
        Bind(place, "/one", readonly=False, id_map=[IdMap(7, 4000)]),
        Bind(place, "/two", readonly=False, id_map=[IdMap(7, 5000), IdMap(8, 4000)]),
    ]
    out = on_skeleton("stat -c %u /one /two; touch /one/a /two/b", *binds, user=(7, 7))
    assert out.split() == ["7", "8"]
    assert ((place / "a").stat().st_uid, (place / "b").stat().st_uid) == (4000, 5000)
