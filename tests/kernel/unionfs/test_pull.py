"""Images come from registries: from Debian's, and from one that misbehaves in every way."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from base64 import b64encode
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import isolib
from isolib import ArchiveError, ImageNotFound, PlanError, RegistryError
from isolib.unionfs import Platform
from isolib.unionfs.images import wire
from tests.images import INDEX, LAYER, MANIFEST, Draft, content, described, digest, layer, layout, written
from tests.programs import together
from tests.registries import docker_registry, handmade, pushed
from tests.stores import check, driver, leftovers, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from isolib.unionfs import Image, Progress, Store
    from tests.registries import Handmade, Request

__all__ = ["driver", "store"]

SEEDED = random.Random(5)  # noqa: S311 - the same bytes each time
SMALL = layer({"etc": None, "etc/motd": b"hello\n"})
LARGE = layer({"data": SEEDED.randbytes(3 << 20)})
OTHER = layer({"other": SEEDED.randbytes(1 << 20)})
COMPRESSED = partial(gzip.compress, compresslevel=1, mtime=0)
HOST = Platform.host()
SECRET = "Tr0ub4dor"  # noqa: S105 - it is to be found nowhere
TOKEN = "abc"  # noqa: S105 - a test's


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep this user's files and proxies out of it, and do not wait for long before further attempts."""
    for name in ("HOME", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("REGISTRY_AUTH_FILE", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 0.01)


@pytest.fixture
def registry() -> Iterator[Handmade]:
    """Return a registry by hand."""
    with handmade() as served:
        yield served


@pytest.fixture
def elsewhere() -> Iterator[Handmade]:
    """Return another one."""
    with handmade() as served:
        yield served


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of the driver that everybody has, which must be in order at the end."""
    with isolib.open_store(tmp_path / "plain", driver="vfs") as opened:
        yield opened
        check(opened)


def parts(store: Store) -> dict[str, int]:
    """Return what is kept of blobs that have not come whole, and how much."""
    staging = f"{store.path}/staging"
    return {f"sha256:{name}": os.stat(f"{staging}/{name}/part").st_size for name in os.listdir(staging)}


def pulled(store: Store, registry: Handmade, which: str = ":1", **more: Any) -> Image:  # noqa: ANN401 - as of pull
    """Pull what the registry has."""
    return store.pull(f"{registry.name}/app{which}", **more)


# ---- what comes ----


def test_from_a_registry(store: Store, tmp_path: Path) -> None:
    """What skopeo has pushed to Debian's registry is pulled: layers, files, digests are those of the source."""
    draft = Draft([SMALL, LARGE, OTHER], run={"Cmd": ["sh"]}, compress=COMPRESSED)
    written(layout(("1", draft)), tmp_path / "layout")
    with docker_registry(tmp_path) as name:
        pushed(tmp_path / "layout", "1", f"{name}/team/app:1")
        image = store.pull(f"{name}/team/app:1")
        told = subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", "--format={{.Digest}}", f"docker://{name}/team/app:1"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert image.manifest_digest == told.stdout.strip()
        with pytest.raises(ImageNotFound, match="team/app:2"):
            store.pull(f"{name}/team/app:2")
        with pytest.raises(ImageNotFound, match="none:latest"):
            store.pull(f"{name}/none")
    assert (image.digest, image.names, image.config.cmd) == (draft.digest, (f"{name}/team/app:1",), ("sh",))
    assert [one.diff_id for one in image.layers] == [digest(one) for one in draft.layers]
    with store.checkout(image) as tree:
        assert content(tree.path)["etc/motd"] == (0o100644, digest(b"hello\n"))


def test_debians_registry_sends_the_rest(plain: Store, tmp_path: Path) -> None:
    """Of a blob of which the first half has come already, Debian's registry is asked for the second alone."""
    packed = COMPRESSED(LARGE)
    draft = Draft([LARGE], compress=COMPRESSED)
    written(layout(("1", draft)), tmp_path / "layout")
    half = f"{plain.path}/staging/{digest(packed)[7:]}"
    os.mkdir(half)
    with open(f"{half}/part", "wb") as part:
        part.write(packed[: len(packed) // 2])
    seen: list[int] = []
    with docker_registry(tmp_path) as name:
        pushed(tmp_path / "layout", "1", f"{name}/app:1")
        image = plain.pull(f"{name}/app:1", progress=lambda event: seen.append(event.done if event.is_fetched else 1 << 40))
    assert image.layers[0].diff_id == digest(LARGE)
    assert min(seen) > len(packed) // 2
    assert parts(plain) == {}


def test_what_the_store_has_is_not_fetched(plain: Store, registry: Handmade) -> None:
    """A second pull asks for the manifest, one by a known digest for nothing, one of a similar image for what is new."""
    which = registry.add("1", Draft([SMALL, LARGE], compress=COMPRESSED))
    image = pulled(plain, registry)
    registry.asked.clear()
    assert pulled(plain, registry) == image
    assert registry.paths("manifests|blobs") == ["/v2/app/manifests/1"]
    registry.asked.clear()
    assert pulled(plain, registry, f"@{which}") == image
    assert registry.asked == []
    other = Draft([SMALL, LARGE, OTHER], compress=COMPRESSED)
    registry.add("2", other)
    pulled(plain, registry, ":2")
    assert registry.paths("blobs") == [f"/v2/app/blobs/{one}" for one in (other.digest, digest(COMPRESSED(OTHER)))]


def test_what_it_is_called(plain: Store, registry: Handmade) -> None:
    """A tag gives a name, also beside a digest; a digest alone gives none; name= goes before."""
    which = registry.add("1", Draft([SMALL]))
    assert pulled(plain, registry, f"@{which}").names == ()
    assert pulled(plain, registry, f":2@{which}").names == (f"{registry.name}/app:2",)
    assert pulled(plain, registry, name="mine").names == (f"{registry.name}/app:2", "mine:latest")
    assert plain.image(which).digest == Draft([SMALL]).digest


def test_for_a_platform(plain: Store, registry: Handmade) -> None:
    """Of a list of manifests the one for this machine is pulled, or the one that is asked for."""
    foreign = Platform("linux", "s390x")
    drafts = {HOST: Draft([SMALL]), foreign: Draft([OTHER], platform=foreign)}
    listed = []
    for platform, draft in drafts.items():
        registry.add(platform.architecture, draft)
        told = {"os": platform.os, "architecture": platform.architecture}
        listed.append(described(draft.blobs()[0], platform=told))
    which = registry.add_index("1", {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed[::-1]})
    assert pulled(plain, registry).digest == drafts[HOST].digest
    assert pulled(plain, registry, f"@{which}", platform="linux/s390x").digest == drafts[foreign].digest
    with pytest.raises(ArchiveError, match="linux/riscv64"):
        pulled(plain, registry, platform="linux/riscv64")
    with pytest.raises(ArchiveError, match="not for linux/s390x"):
        pulled(plain, registry, f":{HOST.architecture}", platform="linux/s390x")


def test_manifests_of_docker(plain: Store, registry: Handmade) -> None:
    """Manifests and lists of Docker's own types are taken too, and both are asked for."""
    docker = "application/vnd.docker.distribution.manifest"
    draft = Draft([SMALL], compress=COMPRESSED)
    told = json.loads(draft.blobs()[0])
    told["mediaType"] = f"{docker}.v2+json"
    told["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    told["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    data = json.dumps(told).encode()
    registry.add("none", draft)
    registry.manifests[digest(data)] = (told["mediaType"], data)
    entry = {"mediaType": told["mediaType"], "digest": digest(data), "size": len(data)}
    entry["platform"] = {"os": HOST.os, "architecture": HOST.architecture}
    registry.add_index("1", {"schemaVersion": 2, "mediaType": f"{docker}.list.v2+json", "manifests": [entry]})
    assert pulled(plain, registry).digest == draft.digest
    accepted = next(headers["accept"] for path, headers in registry.asked if "manifests" in path)
    assert {INDEX, MANIFEST, f"{docker}.v2+json", f"{docker}.list.v2+json"} == {*accepted.split(", ")}


def test_a_blob_of_several_layers_is_fetched_once(plain: Store, registry: Handmade) -> None:
    """An image that has a layer three times fetches it once, and has it three times."""
    registry.add("1", Draft([LARGE, SMALL, LARGE, LARGE], compress=COMPRESSED))
    assert len(pulled(plain, registry).layers) == 4
    assert len(registry.paths(digest(COMPRESSED(LARGE)))) == 1


def test_an_image_without_layers(plain: Store, registry: Handmade) -> None:
    """An image without layers is one too."""
    registry.add("1", Draft([]))
    assert pulled(plain, registry).layers == ()


def test_progress(plain: Store, registry: Handmade) -> None:
    """Each layer is told of by the calling thread, as it is fetched and as it is unpacked, to its end."""
    draft = Draft([LARGE, OTHER, SMALL], compress=COMPRESSED)
    registry.add("1", draft)
    seen: list[tuple[int, Progress]] = []
    pulled(plain, registry, progress=lambda event: seen.append((threading.get_ident(), event)))
    assert {thread for thread, _ in seen} == {threading.get_ident()}
    sizes = [len(COMPRESSED(one)) for one in draft.layers]
    for is_fetched in (True, False):
        last = {event.layer: event for _, event in seen if event.is_fetched is is_fetched}
        assert {number: (event.layers, event.done, event.total) for number, event in last.items()} == {
            number + 1: (3, size, size) for number, size in enumerate(sizes)
        }


# ---- what should not come ----


def test_a_blob_with_another_digest(plain: Store, registry: Handmade) -> None:
    """A blob that is another of the same size is refused, and nothing of the image stays."""
    registry.add("1", Draft([SMALL, LARGE]))
    registry.blobs[digest(LARGE)] = LARGE[::-1]
    with pytest.raises(ArchiveError, match="another, or damaged"):
        pulled(plain, registry)
    assert (plain.images(), parts(plain)) == ((), {})


@pytest.mark.parametrize("change", [-1, 1])
def test_a_blob_of_another_size(plain: Store, registry: Handmade, change: int) -> None:
    """A blob that says it has another size than the manifest says is refused before it comes."""
    registry.add("1", Draft([LARGE]))
    registry.blobs[digest(LARGE)] = LARGE[:change] if change < 0 else LARGE + b"x"
    with pytest.raises(ArchiveError, match=f"{len(LARGE) + change} bytes instead of {len(LARGE)}"):
        pulled(plain, registry)
    assert parts(plain) == {}


def endless(request: Request, data: bytes = b"x" * (64 << 10)) -> None:
    """Answer with a body that has no end."""
    request.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        request.raw(data)


def test_a_blob_without_end(plain: Store, registry: Handmade) -> None:
    """A blob that goes on beyond its size is refused."""
    registry.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), endless)
    with pytest.raises(ArchiveError, match="more than its"):
        pulled(plain, registry)
    assert parts(plain) == {}


def test_a_manifest_without_end(plain: Store, registry: Handmade) -> None:
    """A manifest that goes on and on is refused."""
    registry.rule("manifests", endless)
    with pytest.raises(ArchiveError, match="8388608 are the most"):
        pulled(plain, registry)


def test_a_manifest_that_says_it_is_too_long(plain: Store, registry: Handmade) -> None:
    """A manifest that says it is too long is not read."""
    registry.rule("manifests", lambda request: request.answer(200, b"", length=1 << 40))
    with pytest.raises(ArchiveError, match="1099511627776"):
        pulled(plain, registry)


def test_a_config_that_is_too_long(plain: Store, registry: Handmade) -> None:
    """A config that is too long by its manifest is not asked for."""
    draft = Draft([SMALL])
    told = json.loads(draft.blobs()[0])
    told["config"]["size"] = 1 << 40
    registry.add_index("1", told)
    with pytest.raises(ArchiveError, match="1099511627776"):
        pulled(plain, registry)
    assert registry.paths("blobs") == []


def test_a_layer_beyond_the_limit(plain: Store, registry: Handmade) -> None:
    """A layer whose file alone is beyond the limit is not fetched."""
    told = json.loads(Draft([SMALL]).blobs()[0])
    registry.add("2", Draft([SMALL]))
    told["layers"][0]["size"] = 1 << 40
    registry.add_index("1", told)
    with pytest.raises(ArchiveError, match="beyond the limit"):
        pulled(plain, registry)
    assert registry.paths(digest(SMALL)) == []


def test_a_manifest_with_another_digest(plain: Store, registry: Handmade) -> None:
    """A manifest must be the one that is asked for, and, by a tag, the one that the server says."""
    which = registry.add("1", Draft([SMALL]))
    other = Draft([OTHER]).blobs()[0]
    registry.manifests[which] = (MANIFEST, other)
    with pytest.raises(ArchiveError, match="another, or damaged"):
        pulled(plain, registry, f"@{which}")
    registry.rule("manifests/1", lambda request: request.answer(200, other, Docker_Content_Digest=which, Content_Type=MANIFEST))
    with pytest.raises(ArchiveError, match="another, or damaged"):
        pulled(plain, registry)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (b"<html>", "no JSON"),
        (b"[]", "an object is expected"),
        (b"", "no JSON"),
        (json.dumps({"schemaVersion": 1}).encode(), "no manifest of an image"),
        (json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode(), "says it is"),
        (json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "manifests": [], "config": {}}).encode(), "no place"),
    ],
)
def test_what_is_no_manifest(plain: Store, registry: Handmade, told: bytes, message: str) -> None:
    """What is no manifest, is two things at once, or is another than the server says, is refused."""
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws" if b": 1" in told else MANIFEST
    registry.rule("manifests", lambda request: request.answer(200, told, Content_Type=kind))
    with pytest.raises(ArchiveError, match=message):
        pulled(plain, registry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "urls": ["http://a.example/"]},
            "elsewhere",
        ),
        ({"mediaType": f"{LAYER.replace('layer', 'layer.nondistributable')}"}, "elsewhere"),
        ({"mediaType": "application/x-chart"}, "media type of a layer"),
        ({"digest": "sha256:../../etc/passwd"}, "no digest"),
        ({"digest": "sha512:" + "0" * 128}, "no digest"),
        ({"size": -1}, "size"),
        ({"digest": digest(b"none")}, "answers 404"),
    ],
)
def test_layers_that_cannot_be(plain: Store, registry: Handmade, change: dict[str, object], message: str) -> None:
    """Layers that lie elsewhere, are no layers, have paths for digests or are missing are refused."""
    draft = Draft([SMALL])
    registry.add("2", draft)
    told = json.loads(draft.blobs()[0])
    told["layers"][0] |= change
    registry.add_index("1", told)
    with pytest.raises((ArchiveError, RegistryError), match=message):
        pulled(plain, registry)
    assert (plain.images(), parts(plain)) == ((), {})


def test_what_is_no_image(plain: Store, registry: Handmade) -> None:
    """A manifest of something else than an image is refused."""
    told = json.loads(Draft([SMALL]).blobs()[0])
    told["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    registry.add_index("1", told)
    with pytest.raises(ArchiveError, match="not an image"):
        pulled(plain, registry)


@pytest.mark.parametrize(
    "name", ["127.0.0.1:1/../../etc", "127.0.0.1:1/a/../b", "127.0.0.1:1/A", "127.0.0.1:1/a:../b", "a b", "", "a?x=1"]
)
def test_names_that_are_none(plain: Store, name: str) -> None:
    """What is no name is refused before anybody is asked."""
    with pytest.raises(PlanError, match="reference"):
        plain.pull(name)


def test_arguments_that_are_no_good(plain: Store) -> None:
    """Arguments are looked at before anybody is asked."""
    for wrong in (
        {"timeout": 0},
        {"timeout": "1"},
        {"insecure": True},
        {"credentials": "me"},
        {"platform": "?"},
        {"name": "?"},
    ):
        with pytest.raises(PlanError):
            plain.pull("127.0.0.1:1/app", **wrong)


# ---- lines that break ----


def cutting(times: int, after: int) -> Callable[[Request], object]:
    """Return a rule: blobs are cut off after so many bytes, so many times."""
    left = [times]

    def rule(request: Request) -> object:
        if not left[0]:
            return False
        left[0] -= 1
        data = next(data for name, data in request.server.blobs.items() if name in request.path)
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        rest = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        return request.answer(206 if start else 200, data[start : start + after], length=len(data) - start, **rest)

    return rule


def ranges(registry: Handmade, which: str) -> list[int]:
    """Return from which bytes on a blob was asked for."""
    return [int(headers.get("range", "bytes=0-")[6:-1]) for path, headers in registry.asked if which in path]


def test_a_body_that_is_cut_off_is_continued(plain: Store, registry: Handmade) -> None:
    """A body that ends too early is continued where it ended, in the same pull."""
    registry.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), cutting(2, 1_500_000))
    pulled(plain, registry)
    assert ranges(registry, digest(LARGE)) == [0, 1_500_000, 3_000_000]


def test_what_has_come_is_kept_for_the_next_pull(plain: Store, registry: Handmade) -> None:
    """Where a registry breaks off for good, what has come is kept, and the next pull asks for the rest alone."""
    registry.add("1", Draft([LARGE, SMALL]))
    registry.rule(digest(LARGE), cutting(6, 100_000))
    with pytest.raises(RegistryError, match="broke") as caught:
        pulled(plain, registry)
    assert caught.value.registry == registry.name
    assert parts(plain)[digest(LARGE)] == 600_000
    assert plain.verify() == ()
    pulled(plain, registry)
    assert ranges(registry, digest(LARGE))[-1] == 600_000
    assert parts(plain) == {}


def test_the_collector_takes_what_has_come(plain: Store, registry: Handmade) -> None:
    """What is kept of a broken pull goes with the next collection."""
    registry.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), cutting(6, 100_000))
    with pytest.raises(RegistryError):
        pulled(plain, registry)
    assert plain.gc().leftovers == 1
    assert leftovers(plain) == {}


def test_a_registry_that_drips_does_not_go_on_for_ever(plain: Store, registry: Handmade) -> None:
    """A server that cuts every answer off after a byte is given up."""
    registry.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), cutting(10**6, 1))
    with pytest.raises(RegistryError, match="broke"):
        pulled(plain, registry)
    assert len(ranges(registry, digest(LARGE))) == 6


def test_what_was_kept_is_checked_as_a_whole(plain: Store, registry: Handmade) -> None:
    """What is kept and has gone bad is fetched anew."""
    registry.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), cutting(6, 100_000))
    with pytest.raises(RegistryError):
        pulled(plain, registry)
    with open(f"{plain.path}/staging/{digest(LARGE)[7:]}/part", "r+b") as part:
        part.write(b"bad")
    pulled(plain, registry)
    assert ranges(registry, digest(LARGE))[-2:] == [600_000, 0]


def test_more_was_kept_than_there_is(plain: Store, registry: Handmade) -> None:
    """What is kept and is too long is fetched anew."""
    registry.add("1", Draft([SMALL]))
    where = f"{plain.path}/staging/{digest(SMALL)[7:]}"
    os.mkdir(where)
    with open(f"{where}/part", "wb") as part:
        part.write(SMALL + b"more")
    pulled(plain, registry)
    assert ranges(registry, digest(SMALL)) == [0]


@pytest.mark.parametrize(
    ("status", "told", "message"),
    [
        (206, "bytes 5-9/10", "another part"),
        (206, "", "another part"),
        (206, "bytes 600000-700000/700001", "700001 bytes instead"),
        (204, "", "answers 204"),
    ],
)
def test_another_part_than_was_asked_for(plain: Store, registry: Handmade, status: int, told: str, message: str) -> None:
    """A server that sends another part than the one that is missing is refused."""
    registry.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), cutting(6, 100_000))
    with pytest.raises(RegistryError):
        pulled(plain, registry)
    registry.rule(digest(LARGE), lambda request: request.answer(status, b"" if status == 204 else b"x", Content_Range=told))
    with pytest.raises((RegistryError, ArchiveError), match=message):
        pulled(plain, registry)


def test_a_server_that_has_less_than_it_had(plain: Store, registry: Handmade) -> None:
    """A server that says it has less than what is kept is read from the beginning."""
    registry.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), cutting(6, 100_000))
    with pytest.raises(RegistryError):
        pulled(plain, registry)
    registry.rule(digest(LARGE), lambda request: "range" in request.headers and request.answer(416))
    pulled(plain, registry)
    assert ranges(registry, digest(LARGE))[-2:] == [600_000, 0]


def test_ranges_are_ignored(plain: Store, registry: Handmade) -> None:
    """A server that sends everything where a part was asked for is read from the beginning."""
    registry.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), cutting(6, 100_000))
    with pytest.raises(RegistryError):
        pulled(plain, registry)
    registry.rule(digest(LARGE), lambda request: request.answer(200, LARGE))
    assert pulled(plain, registry).layers[0].diff_id == digest(LARGE)


def test_an_encoding_is_not_undone(plain: Store, registry: Handmade) -> None:
    """Nothing is expanded because of what a server says: the digest is that of what is sent, and nothing else is asked for."""
    registry.add("1", Draft([SMALL], compress=COMPRESSED))
    packed = COMPRESSED(SMALL)
    registry.rule(digest(packed), lambda request: request.answer(200, packed, Content_Encoding="gzip"))
    pulled(plain, registry)
    assert {headers["accept-encoding"] for _, headers in registry.asked} == {"identity"}
    plain.image(Draft([SMALL]).digest).remove()
    plain.gc()
    registry.rule(digest(packed), lambda request: request.answer(200, COMPRESSED(packed), Content_Encoding="gzip"))
    with pytest.raises(ArchiveError):
        pulled(plain, registry)


def test_in_chunks(plain: Store, registry: Handmade) -> None:
    """A body that comes in chunks, without a length, is a body like others; one whose chunks are cut off is not whole."""
    registry.add("1", Draft([SMALL]))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(SMALL[at : at + 700]), SMALL[at : at + 700]) for at in range(0, len(SMALL), 700))
    registry.rule(digest(SMALL), lambda request: request.raw(head + chunks[:2000]))
    with pytest.raises(RegistryError):
        pulled(plain, registry)
    plain.gc()
    registry.rule(digest(SMALL), lambda request: request.raw(head + chunks + b"0\r\n\r\n"))
    pulled(plain, registry)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_go_better_is_tried_again(plain: Store, registry: Handmade, status: int) -> None:
    """A server that is busy is asked again, manifests and blobs alike, and as late as it wishes."""
    registry.add("1", Draft([SMALL]))
    seen: set[str] = set()

    def busy(request: Request) -> object:
        if request.path in seen:
            return False
        seen.add(request.path)
        return request.answer(status, Retry_After="0")

    registry.rule("manifests|blobs", busy)
    pulled(plain, registry)
    assert len(registry.paths("manifests|blobs")) == 6


def test_a_server_that_wants_to_be_left_alone(plain: Store, registry: Handmade) -> None:
    """A server that wants to be asked again in an hour is not waited for."""
    registry.rule("manifests", lambda request: request.answer(429, Retry_After="3600"))
    with pytest.raises(RegistryError, match="answers 429") as caught:
        pulled(plain, registry)
    assert caught.value.status == 429
    assert len(registry.paths("manifests")) == 1


def test_a_server_that_never_recovers(plain: Store, registry: Handmade) -> None:
    """A server that goes on failing is given up, and its own text is not passed on."""
    registry.rule("manifests", lambda request: request.answer(503, b'{"errors": [{"code": "BUSY", "message": "\\u001b[31m"}]}'))
    with pytest.raises(RegistryError, match=r"answers 503 \(BUSY\)\Z"):
        pulled(plain, registry)
    assert len(registry.paths("manifests")) == 6


def test_nobody_is_there(plain: Store) -> None:
    """Where nobody listens, that is said."""
    with handmade() as gone:
        name = gone.name
    with pytest.raises(RegistryError, match=f"{name}: no connection: Connection refused"):
        plain.pull(f"{name}/app")


def wait_to_the_end(request: Request) -> None:
    """Say nothing until the test is over."""
    request.handler.close_connection = True
    request.server.over.wait()


def drip(request: Request) -> None:
    """Send headers so slowly that they take a year."""
    request.raw(b"HTTP/1.1 200 OK\r\nX: ")
    while not request.server.over.wait(0.02):
        request.raw(b"x")


def drip_body(request: Request) -> None:
    """Send a body so slowly."""
    request.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE))
    while not request.server.over.wait(0.02):
        request.raw(b"x")


@pytest.mark.parametrize("slow", [wait_to_the_end, drip, drip_body])
@pytest.mark.parametrize("what", ["manifests", digest(LARGE)])
def test_a_slow_server(
    plain: Store, registry: Handmade, monkeypatch: pytest.MonkeyPatch, slow: Callable[[Request], None], what: str
) -> None:
    """A server that says nothing, or a byte now and then, is given up after the time limit."""
    monkeypatch.setattr("isolib.unionfs.images.registry._RETRIES", 1)
    registry.add("1", Draft([LARGE]))
    registry.rule(what, slow)
    with pytest.raises(RegistryError, match=r"has not answered within 0.2 s|has sent .* bytes in"):
        pulled(plain, registry, timeout=0.2)
    assert len(registry.paths(what)) == 2


# ---- redirections ----


def redirecting(to: str, status: int = 307) -> Callable[[Request], object]:
    """Return a rule that sends elsewhere."""
    return lambda request: request.answer(status, Location=to.replace("PATH", request.path))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_followed_without_a_word_of_who_asks(
    plain: Store, registry: Handmade, elsewhere: Handmade, status: int
) -> None:
    """A blob may lie on another server, which does not learn who asks."""
    registry.add("1", Draft([LARGE]))
    elsewhere.add("1", Draft([LARGE]))
    registry.rule(digest(LARGE), redirecting(f"http://{elsewhere.name}PATH?signature={SECRET}", status))
    asking(registry, "Basic realm=x")
    pulled(plain, registry, credentials=("me", SECRET))
    assert any("authorization" in headers for _, headers in registry.asked)
    assert len(elsewhere.asked) == 1
    assert "authorization" not in elsewhere.asked[0][1]


def test_a_redirection_at_home(plain: Store, registry: Handmade) -> None:
    """A redirection within the registry is followed, with who asks."""
    registry.add("1", Draft([SMALL]))
    registry.rule("manifests/1", redirecting("here"))
    registry.rule("manifests/here", lambda request: request.answer(200, registry.manifests["1"][1], Content_Type=MANIFEST))
    asking(registry, "Basic realm=x")
    pulled(plain, registry, credentials=("me", SECRET))
    assert all("authorization" in headers for path, headers in registry.asked if "here" in path)


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("file:///etc/passwd", "not one of HTTP: file:"),
        ("ftp://127.0.0.1/x", "not one of HTTP: ftp:"),
        ("http://192.0.2.1/x", "192.0.2.1 without encryption"),
        ("http://localhost.example/x", "without encryption"),
        ("http://me:secret@127.0.0.1/x", "not one of HTTP"),
        ("http://[::1/x", "no address"),
        ("http://127.0.0.1:99999/x", "no address"),
        ("http://127.0.0.1/ x", "no address"),
        ("", "no address"),
        ("PATH", "more than 5 times"),
    ],
)
@pytest.mark.parametrize("what", ["manifests", digest(SMALL)])
def test_redirections_that_are_not_followed(plain: Store, registry: Handmade, what: str, to: str, message: str) -> None:
    """Nobody is sent to files, to other protocols, to what is not encrypted, or round in circles."""
    registry.add("1", Draft([SMALL]))
    registry.rule(what, redirecting(to))
    with pytest.raises(RegistryError, match=message):
        pulled(plain, registry)
    assert (plain.images(), parts(plain)) == ((), {})


# ---- who asks ----


def asking(registry: Handmade, how: str, answer: str | None = None) -> None:
    """Have a registry ask who it is."""
    expected = answer or "Basic " + b64encode(f"me:{SECRET}".encode()).decode()

    def rule(request: Request) -> object:
        if request.headers.get("authorization") == expected:
            return False
        return request.answer(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}', WWW_Authenticate=how)

    registry.rule("/v2/", rule)


def tokens(server: Handmade, **told: str) -> str:
    """Have a server give tokens; return its address."""
    server.rule("^/token", lambda request: request.answer(200, json.dumps(told).encode()))
    return f"http://{server.name}/token"


@pytest.mark.parametrize("key", ["token", "access_token"])
def test_a_token(plain: Store, registry: Handmade, elsewhere: Handmade, key: str) -> None:
    """A token is fetched from who gives them, for reading this repository alone, and goes to the registry alone."""
    registry.add("1", Draft([SMALL, LARGE, OTHER]))
    realm = tokens(elsewhere, **{key: SECRET})
    asking(registry, f'Bearer realm="{realm}",service="a b",scope="repository:app:pull,push *"', f"Bearer {SECRET}")
    pulled(plain, registry)
    assert [path for path, _ in elsewhere.asked] == ["/token?scope=repository%3Aapp%3Apull&service=a+b"]
    assert "authorization" not in elsewhere.asked[0][1]


def test_a_token_for_credentials(plain: Store, registry: Handmade, elsewhere: Handmade, tmp_path: Path) -> None:
    """Who gives tokens learns who asks; the registry does not: from the argument, or from the user's files."""
    registry.add("1", Draft([SMALL]))
    asking(registry, f'Bearer realm="{tokens(elsewhere, token=TOKEN)}"', f"Bearer {TOKEN}")
    basic = "Basic " + b64encode(f"me:{SECRET}".encode()).decode()
    pulled(plain, registry, credentials=("me", SECRET))
    (tmp_path / "home/containers").mkdir(parents=True)
    (tmp_path / "home/containers/auth.json").write_text(json.dumps({"auths": {registry.name: {"auth": basic[6:]}}}))
    pulled(plain, registry)
    assert [headers["authorization"] for _, headers in elsewhere.asked] == [basic, basic]
    assert {headers.get("authorization") for _, headers in registry.asked} == {None, f"Bearer {TOKEN}"}


def test_a_token_that_has_run_out(plain: Store, registry: Handmade) -> None:
    """A token that is not good any more is replaced, once for all threads that have had it."""
    registry.add("1", Draft([SMALL, LARGE, OTHER]))
    given = iter(["first", "second"])
    registry.rule("^/token", lambda request: request.answer(200, json.dumps({"token": next(given)}).encode()))

    def rule(request: Request) -> object:
        good = "Bearer second" if digest(SMALL) in request.path or digest(LARGE) in request.path else "Bearer first"
        if request.headers.get("authorization") in {good, "Bearer second"}:
            return False
        return request.answer(401, WWW_Authenticate=f'Bearer realm="http://{registry.name}/token"')

    registry.rule("/v2/app", rule)
    pulled(plain, registry)
    assert len(registry.paths("^/token")) == 2


def test_basic(plain: Store, registry: Handmade) -> None:
    """A registry that wants name and password gets them, when it asks."""
    registry.add("1", Draft([SMALL]))
    asking(registry, "Basic realm=x")
    with pytest.raises(RegistryError, match="takes credentials") as caught:
        pulled(plain, registry)
    assert caught.value.status == 401
    assert all("authorization" not in headers for _, headers in registry.asked)
    pulled(plain, registry, credentials=("me", SECRET))


@pytest.mark.parametrize("how", ["Basic realm=x", "BEARER", 'Negotiate, Bearer realm="REALM"'])
def test_a_registry_that_is_never_content(plain: Store, registry: Handmade, how: str) -> None:
    """A registry that asks again and again is answered once, and the error tells nothing that is secret."""
    realm = tokens(registry, token=SECRET)
    asking(registry, how.replace("REALM", realm).replace("BEARER", f'Bearer realm="{realm}"'), "never")
    with pytest.raises(RegistryError, match=r"answers 401 \(UNAUTHORIZED\): app does not exist") as caught:
        pulled(plain, registry, credentials=("me", SECRET))
    assert len(registry.paths("manifests")) == 2
    told = "".join(traceback.format_exception(caught.value))
    assert SECRET not in told + repr(caught.value)
    assert b64encode(f"me:{SECRET}".encode()).decode() not in told


@pytest.mark.parametrize(
    ("realm", "message"),
    [
        ("http://192.0.2.1/token", "without encryption"),
        ("file:///etc/passwd", "not one of HTTP"),
        ("http://a:b@127.0.0.1/", "not one of HTTP"),
        ("", "takes credentials|not for this user"),
        ("/token", "not one of HTTP"),
        ("http://127.0.0.1:1/ token", "no address"),
    ],
)
def test_token_servers_that_are_not_asked(plain: Store, registry: Handmade, realm: str, message: str) -> None:
    """Nobody says who he is to what is not encrypted, or is no server of HTTP."""
    asking(registry, f'Bearer realm="{realm}"')
    with pytest.raises(RegistryError, match=message):
        pulled(plain, registry, credentials=("me", SECRET))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"secret"),
        (200, b"{}"),
        (200, b'{"token": "a\\r\\nX: b"}'),
        (200, b'{"token": 5}'),
        (200, b"[" * 1000),
        (200, b'{"token": "' + b"x" * 100_000 + b'"}'),
        (401, b""),
        (403, b'{"errors": [{"code": "DENIED"}]}'),
        (404, b""),
    ],
)
def test_tokens_that_are_none(plain: Store, registry: Handmade, elsewhere: Handmade, status: int, body: bytes) -> None:
    """What is no token is never sent to anybody, and the error names who gave it."""
    elsewhere.rule("^/token", lambda request: request.answer(status, body))
    asking(registry, f'Bearer realm="http://{elsewhere.name}/token"')
    with pytest.raises(RegistryError, match=r"token, and has sent none|answers 40[134]") as caught:
        pulled(plain, registry)
    assert caught.value.registry == "127.0.0.1"
    assert "secret" not in str(caught.value)
    assert len(registry.paths("manifests")) == 1


def test_a_token_server_that_sends_on(plain: Store, registry: Handmade, elsewhere: Handmade) -> None:
    """To whom a token server redirects, he does not learn who asks."""
    registry.add("1", Draft([SMALL]))
    registry.rule("^/token", redirecting(f"{tokens(elsewhere, token=TOKEN)}?x"))
    asking(registry, f'Bearer realm="http://{registry.name}/token"', f"Bearer {TOKEN}")
    pulled(plain, registry, credentials=("me", SECRET))
    assert [headers.get("authorization") for _, headers in elsewhere.asked] == [None]


# ---- encryption and proxies ----


def test_a_registry_elsewhere_is_spoken_to_with_encryption(
    plain: Store, registry: Handmade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry elsewhere is spoken to by TLS; without, only where it is named; and through the proxy of the environment."""
    registry.add("1", Draft([SMALL]))
    proxy = f"http://me:{SECRET}@{registry.name}"
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setattr("isolib.unionfs.images.registry._RETRIES", 0)
    with pytest.raises(RegistryError, match="the proxy that the environment names does not connect to it"):
        plain.pull("registry.test:5000/app:1", insecure="other.test")
    assert registry.asked == []
    behind(registry, "http://registry.test:5000")
    image = plain.pull("registry.test:5000/app:1", insecure=["registry.test:5000"])
    assert image.names == ("registry.test:5000/app:1",)
    assert {headers["proxy-authorization"] for _, headers in registry.asked} == {
        "Basic " + b64encode(f"me:{SECRET}".encode()).decode()
    }


def behind(proxy: Handmade, origin: str) -> None:
    """Have a server answer as a proxy to another that it is itself."""

    def rule(request: Request) -> object:
        if not request.path.startswith(origin):
            return False
        request.path = request.path.removeprefix(origin)
        proxy.serve(request)
        return True

    proxy.rule("^http:", rule)


@pytest.mark.parametrize("to", ["http://127.0.0.1:1/", "https://localhost/", "https://[::1]/"])
def test_a_registry_elsewhere_does_not_send_to_this_machine(
    plain: Store, registry: Handmade, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """A registry elsewhere cannot have this machine ask itself."""
    registry.add("1", Draft([SMALL]))
    monkeypatch.setenv("http_proxy", f"http://{registry.name}")
    behind(registry, "http://registry.test")
    registry.rule("^/v2/.*manifests", redirecting(to))
    with pytest.raises(RegistryError, match="to this machine itself"):
        plain.pull("registry.test/app:1", insecure="registry.test")


def test_certificates_are_verified(plain: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine too TLS is spoken where the server wants it, and its certificate has to be one of the authorities'."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x", "-addext"]
    try:
        subprocess.run(
            [*argv, "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
            timeout=60,
        )
    except FileNotFoundError:
        pytest.skip("no openssl")
    with handmade(tls=(certificate, key)) as registry:
        registry.add("1", Draft([SMALL]))
        with pytest.raises(RegistryError, match="certificate is not valid: self-signed"):
            pulled(plain, registry)
        assert registry.asked == []
        with pytest.raises(RegistryError, match="certificate is not valid"):
            pulled(plain, registry, insecure=registry.name)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        pulled(plain, registry)


def test_without_urllib3(tmp_path: Path) -> None:
    """Without urllib3 everything but a pull works, and that says what to install."""
    code = f"""if True:
        import sys
        sys.modules["urllib3"] = None
        import isolib
        with isolib.open_store({str(tmp_path / "store")!r}, driver="vfs") as store:
            try:
                store.pull("127.0.0.1:1/app")
            except isolib.Unsupported as error:
                print(error.remedy)
    """
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout == "pip install 'isolib[registry]'\n"


# ---- interrupts, and several at once ----


def interrupt(ready: threading.Barrier) -> None:
    """Do as a user does who loses patience."""
    ready.wait()
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_ends_all_threads(plain: Store, registry: Handmade) -> None:
    """A user's interrupt ends a pull at once, though servers say nothing for hours; what has come is kept."""
    layers = [LARGE, OTHER, *(layer({f"file{number}": b""}) for number in range(4))]
    registry.add("1", Draft(layers))
    ready = threading.Barrier(3)

    def half(request: Request) -> None:
        request.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE[: 2 << 20])
        ready.wait()
        request.server.over.wait()

    def silent(request: Request) -> None:
        ready.wait()
        wait_to_the_end(request)

    registry.rule(digest(LARGE), half)
    registry.rule(digest(OTHER), silent)
    interrupter = threading.Thread(target=interrupt, args=(ready,))
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        pulled(plain, registry, timeout=3600)
    interrupter.join()
    assert "isolib-pull" not in {thread.name for thread in threading.enumerate()}
    assert not registry.over.is_set()
    assert plain.verify() == ()
    registry.rules.clear()
    pulled(plain, registry)
    assert parts(plain) == {}


def test_what_the_progress_raises_ends_the_pull(plain: Store, registry: Handmade) -> None:
    """An exception of the caller's ends the pull, and is passed on."""
    registry.add("1", Draft([LARGE, OTHER]))

    def refuse(_: Progress) -> None:
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        pulled(plain, registry, progress=refuse)
    assert plain.images() == ()


CODE = """if True:
    import sys, isolib
    with isolib.open_store(sys.argv[1]) as store:
        sys.stdin.read()
        print(store.pull(sys.argv[2]).digest)
"""


def test_two_processes_pull_the_same(plain: Store, registry: Handmade) -> None:
    """Two processes that pull the same image into one store both have it, and each blob was fetched once."""
    draft = Draft([LARGE, SMALL, OTHER, LARGE], compress=COMPRESSED)
    registry.add("1", draft)
    argv = [sys.executable, "-c", CODE, plain.path, f"{registry.name}/app:1"]
    assert together(argv, 2) == {f"{draft.digest}\n"}
    for one in draft.layers:
        assert len(registry.paths(digest(COMPRESSED(one)))) == 1
    assert (len(plain.images()), parts(plain)) == (1, {})


def test_threads_pull_at_once(plain: Store, registry: Handmade) -> None:
    """Threads that pull images which share layers, in different orders, all have them."""
    blobs = [LARGE, OTHER, SMALL]
    drafts = [Draft([blobs[number], blobs[(number + 1) % 3], blobs[(number + 2) % 3]]) for number in range(3)]
    for number, draft in enumerate(drafts):
        registry.add(str(number), draft)
    found: dict[int, str] = {}

    def one(number: int) -> None:
        found[number] = pulled(plain, registry, f":{number % 3}").digest

    threads = [threading.Thread(target=one, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: drafts[number % 3].digest for number in range(9)}
    assert parts(plain) == {}


def test_a_killed_pull_is_continued(plain: Store, registry: Handmade) -> None:
    """A process that is killed while it pulls leaves a part that another process continues."""
    registry.add("1", Draft([LARGE]))
    ready = threading.Event()

    def half(request: Request) -> None:
        request.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE[: 2 << 20])
        ready.set()
        wait_to_the_end(request)

    registry.rule(digest(LARGE), half)
    argv = [sys.executable, "-c", CODE, plain.path, f"{registry.name}/app:1"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        ready.wait()
        process.kill()
    assert plain.verify() == ()
    registry.rules.clear()
    pulled(plain, registry)
    assert len(ranges(registry, digest(LARGE))) == 2


def test_a_collection_during_a_pull(plain: Store, registry: Handmade) -> None:
    """A collection while a pull goes on takes nothing that it needs."""
    registry.add("1", Draft([LARGE, OTHER, SMALL]))
    pulled(plain, registry, progress=lambda _: plain.gc())
    assert len(plain.images()) == 1
