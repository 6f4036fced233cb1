"""A whole Debian is an image: programs are installed, compiled and run in trees of it, and it goes from store to store."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib.mounts import Bind
from tests.storage import disk
from tests.stores import check
from tests.trees import facts

if TYPE_CHECKING:
    from isolib.unionfs import Image, Store, Tree

pytestmark = [pytest.mark.root, pytest.mark.slow]

MIRROR = os.environ.get("ISOLIB_DEBIAN_MIRROR", "http://deb.debian.org/debian")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
INSTALL = """
apt-get -qq update
apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io install gcc libc6-dev
apt-get clean
rm -rf /var/lib/apt/lists/*
"""
HELLO = """
#include <stdio.h>
#include "/opt/number.h"
int main(void) { return printf("layer %d\\n", NUMBER) < 0; }
"""
BUILD = "gcc -O2 -Wall -o /opt/hello /opt/hello.c"
LAYERS = 10
ROOM = 3 << 30
"""What the second store's disk holds, of which about a quarter is used."""


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """Return a tar of a new Debian, reached as this host reaches its own mirror."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    options = ["--dpkgopt=force-unsafe-io", *(f"--aptopt={one}" for one in sorted(glob.glob("/etc/apt/apt.conf.d/99*")))]
    path = tmp_path / "debian.tar"
    argv = ["unshare", "--mount", "mmdebstrap", "--quiet"]  # what it mounts is nobody else's
    subprocess.run([*argv, "--variant=minbase", *options, "bookworm", path, MIRROR], check=True)
    return path


def inside(tree: Tree, script: str) -> str:
    """Run a shell's script as root of a tree, with the host's network; return what it wrote."""
    resolver = Bind("/etc/resolv.conf", "/etc/resolv.conf")
    argv, new = ["sh", "-euc", script], {"user", "mnt", "pid", "ipc"}
    with isolib.spawn(
        argv, root=tree, mounts=[resolver], new=new, id_map="auto", env=ENVIRONMENT, stdout=isolib.PIPE, stderr=isolib.STDOUT
    ) as process:
        out, _ = process.communicate()
    text = (out or b"").decode()
    assert process.returncode == 0, text
    return text


def grown(store: Store, base: Image) -> Image:
    """Return an image of ten layers, in each of which files that were deleted come back and others go."""
    image = base
    while len(image.layers) < LAYERS:
        number = len(image.layers) + 1
        odd = "rm -rf /opt/turn; mkdir /opt/turn; touch /opt/turn/in" if number % 2 else "rm -r /opt/turn; echo file >/opt/turn"
        script = f"""
            echo '#define NUMBER {number}' >/opt/number.h
            {BUILD}
            touch /opt/of-{number}
            rm -f /opt/of-{number - 2} /usr/bin/cal /etc/issue
            echo again >/opt/of-{number - 3}
            [ -e /opt/turn ] || mkdir /opt/turn
            {odd}
            rm -rf /usr/share/doc/gcc; mkdir /usr/share/doc/gcc; echo {number} >/usr/share/doc/gcc/number
            echo {number} >/etc/issue; chmod {640 + number % 5} /etc/issue; ln -f /etc/issue /etc/issue.net
            mv /usr/share/base-files /usr/share/moved 2>/dev/null || mv /usr/share/moved /usr/share/base-files
        """
        with store.checkout(image) as tree:
            inside(tree, script)
            image = tree.commit(f"layer {number}", tag=f"debian:{number}")
        told = isolib.run(["sh", "-c", "/opt/hello; cat /etc/issue /usr/share/doc/gcc/number"], root=image)
        assert told.stdout.decode() == f"layer {number}\n{number}\n{number}\n", told
    return image


def test_debian(tmp_path: Path, debian: Path) -> None:
    """gcc is installed in a tree of Debian; in ten layers programs are compiled and run, in two stores of other drivers."""
    with isolib.open_store(tmp_path / "store", driver="overlay") as store:
        base = store.load(debian, name="debian:1")
        with store.checkout(base) as tree:
            assert inside(tree, "cat /etc/debian_version").startswith("12.")
            assert "gcc" in inside(tree, INSTALL + "\ndpkg --get-selections gcc")
            Path(tree.path, "opt/hello.c").write_text(HELLO)
            with_gcc = tree.commit("install gcc", tag="debian:2")
        assert [one.diff_id for one in with_gcc.layers[:-1]] == [one.diff_id for one in base.layers]
        image = grown(store, with_gcc)
        with store.checkout(image) as tree:
            expected = facts(tree.path)
        # Made in its layer, gone two later, back three later.
        assert {one for one in expected if one.startswith("opt/of-")} == {f"opt/of-{number}" for number in {*range(11)} - {8}}
        image.save(tmp_path / "saved.tar", compression="zstd")
        check(store)
    with disk("btrfs", size=ROOM) as there, isolib.open_store(f"{there.path}/other", driver="btrfs") as other:
        again = other.load(tmp_path / "saved.tar")
        assert (again, again.layers, again.names) == (image, image.layers, ("debian:10",))
        with other.checkout(again) as tree:
            assert facts(tree.path) == expected
            assert inside(tree, f"{BUILD} && /opt/hello") == "layer 10\n"
        assert other.verify() == ()
        again.save(tmp_path / "again.tar", compression="zstd")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "saved.tar").read_bytes()
