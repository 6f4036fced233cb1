"""What others make is loaded, what is saved others take and run, and by way of a registry too; all agree on the digests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib.unionfs import ImageConfig, Platform
from tests.images import Draft, content, layer, layout, packed
from tests.programs import need, output
from tests.registries import docker_registry
from tests.stores import driver, other, store

if TYPE_CHECKING:
    from isolib.unionfs import Image, Store

__all__ = ["driver", "other", "store"]

INSECURE = ["skopeo", "--insecure-policy"]
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    char line[100] = "";
    FILE *file = fopen("/etc/motd", "r");
    if (!file || !fgets(line, sizeof line, file))
        return 1;
    return printf("%s %s", getenv("WHO"), line) < 0;
}
"""


def made(store: Store, tmp_path: Path) -> Image:
    """Return an image of three layers with a static program, of which the last takes something away."""
    (tmp_path / "program.c").write_text(PROGRAM)
    program = tmp_path / "program"
    output(["cc", "-static", "-O1", "-o", str(program), str(tmp_path / "program.c")])
    draft = Draft([layer({"etc": None, "etc/gone": b"x", "etc/motd": b"below\n"}), layer({"bin": None, "bin/said": b"said"})])
    with store.checkout(store.load(packed(layout(("", draft)), tmp_path / "base.tar"))) as tree:
        Path(tree.path, "bin/program").write_bytes(program.read_bytes())
        Path(tree.path, "bin/program").chmod(0o755)
        os.link(f"{tree.path}/bin/program", f"{tree.path}/bin/again")
        Path(tree.path, "etc/motd").write_text("of the upper layer\n")
        Path(tree.path, "etc/gone").unlink()
        Path(tree.path, "proc").mkdir()
        Path(tree.path, "dev").mkdir()
        host = Platform.host()
        config = ImageConfig(
            architecture=host.architecture, os=host.os, variant=host.variant, entrypoint=("/bin/again",), env={"WHO": "this is"}
        )
        return tree.commit("a program", tag="example.org/team/app:1", config=config)


@pytest.mark.root
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_crun_runs_what_is_saved(store: Store, tmp_path: Path, compression: str | None) -> None:
    """What umoci has unpacked of an image that was saved, crun runs, with the environment and the program of its config."""
    need("umoci", "crun")
    image = made(store, tmp_path)
    (tmp_path / "layout").mkdir()
    image.save(tmp_path / "layout", compression=compression)
    bundle = tmp_path / "bundle"
    output(["umoci", "unpack", "--image", f"{tmp_path}/layout:1", str(bundle)])
    spec = json.loads((bundle / "config.json").read_text())
    assert spec["process"]["args"] == ["/bin/again"]
    spec["process"]["terminal"] = False
    # Limits and cgroups are this host's matter, and none of the image's.
    spec["linux"] = {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]}
    spec["mounts"] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    (bundle / "config.json").write_text(json.dumps(spec))
    # It refuses hosts that have cgroups of both versions.
    alone = 'umount -l /sys/fs/cgroup || true; mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'
    argv = [
        "unshare",
        "--mount",
        "sh",
        "-ec",
        alone,
        "sh",
        "crun",
        "--root",
        str(tmp_path / "run"),
        "--cgroup-manager=disabled",
    ]
    assert output([*argv, "run", "-b", str(bundle), f"isolib-{os.getpid()}"]) == "this is of the upper layer\n"


@pytest.mark.root
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "oci"])
def test_what_buildah_makes_is_loaded(store: Store, tmp_path: Path, form: str) -> None:
    """An image of two layers that buildah has made comes in with its config, its history and its files, in each format."""
    need("buildah")
    storage = ["--root", str(tmp_path / "storage"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]

    def buildah(*argv: str) -> str:
        return output(["buildah", *storage, *argv]).strip()

    (tmp_path / "motd").write_text("by buildah\n")
    first = buildah("from", "scratch")
    buildah("copy", "--quiet", first, str(tmp_path / "motd"), "/etc/motd")
    buildah("config", "--env", "A=1", "--cmd", "sh", "--workingdir", "/etc", "--label", "who=me", first)
    buildah("commit", "--quiet", first, "made:1")
    second = buildah("from", "made:1")
    buildah("copy", "--quiet", "--chown", "7:8", second, str(tmp_path / "motd"), "/etc/other")
    buildah("config", "--port", "80", "--user", "7", second)
    identity = buildah("commit", "--quiet", second, "localhost/made:2")
    buildah("push", "--quiet", "localhost/made:2", f"{form}:{tmp_path}/out:localhost/made:2")
    image = store.load(tmp_path / "out")
    assert image.digest == f"sha256:{identity}"
    assert image.names == ("localhost/made:2",)
    told = json.loads(buildah("inspect", "--type", "image", identity))
    assert [one.diff_id for one in image.layers] == told["OCIv1"]["rootfs"]["diff_ids"]
    assert len(image.layers) == 2
    assert (image.config.env["A"], image.config.user, image.config.workdir) == ("1", "7", "/etc")
    assert image.config.labels["who"] == "me"
    with store.checkout(image) as tree:
        assert Path(tree.path, "etc/motd").read_text() == "by buildah\n"
        status = os.stat(f"{tree.path}/etc/other")
        assert (status.st_uid, status.st_gid) == (7, 8)


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_by_way_of_a_registry(store: Store, other: Store, tmp_path: Path, compression: str | None) -> None:
    """What skopeo pushes of a saved image to Debian's registry is pulled as the same image, and all digests agree."""
    need("skopeo")
    image = made(store, tmp_path)
    written = image.save(tmp_path / "saved.tar", compression=compression)
    (tmp_path / "registry").mkdir()
    with docker_registry(tmp_path / "registry") as name:
        where = f"docker://{name}/team/app:1"
        source = f"oci-archive:{tmp_path}/saved.tar"
        output([*INSECURE, "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", source, where])
        told = json.loads(output([*INSECURE, "inspect", "--tls-verify=false", where]))
        pulled = other.pull(f"{name}/team/app:1")
        assert (pulled, pulled.layers, pulled.history) == (image, image.layers, image.history)
        assert pulled.manifest_digest == told["Digest"] == written
        by_digest = other.pull(f"{name}/team/app@{told['Digest']}")
        assert by_digest == image
        output([*INSECURE, "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false", where, f"oci:{tmp_path}/out:1"])
    again = other.load(tmp_path / "out")
    assert (again, again.manifest_digest) == (image, written)
    with store.checkout(image) as ours, other.checkout(again) as theirs:
        assert content(ours.path) == content(theirs.path)


def test_a_signature_of_digests_is_the_same_for_all(store: Store, tmp_path: Path) -> None:
    """skopeo computes the digest of a saved image's manifest as `save` returns it, and the layers' as the image has them."""
    need("skopeo")
    image = made(store, tmp_path)
    digest = image.save(tmp_path / "saved.tar")
    told = json.loads(output([*INSECURE, "inspect", f"oci-archive:{tmp_path}/saved.tar"]))
    assert told["Digest"] == digest
    assert told["Layers"] == [one.diff_id for one in image.layers]
    raw = subprocess.run(
        [*INSECURE, "inspect", "--raw", f"oci-archive:{tmp_path}/saved.tar"], check=True, capture_output=True, timeout=60
    ).stdout
    assert json.loads(raw)["config"]["digest"] == image.digest
