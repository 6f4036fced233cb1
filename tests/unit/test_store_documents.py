"""What others wrote about images: configs, manifests, indexes, archives of Docker."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.errors import ArchiveError, PlanError
from isolib.unionfs.images import docker, oci
from isolib.unionfs.images.config import History, ImageConfig, Platform, derive, new_config, parse_time, read_config, write_time
from isolib.unionfs.images.documents import LARGEST, Document, dump, parse, sha256

DIGEST = f"sha256:{'1' * 64}"
OTHER = f"sha256:{'2' * 64}"
MANIFEST = {
    "schemaVersion": 2,
    "config": {"mediaType": oci.CONFIG, "digest": DIGEST, "size": 2},
    "layers": [{"mediaType": f"{oci.LAYER}+gzip", "digest": OTHER, "size": 3}],
}
CONFIG = {
    "architecture": "arm64",
    "os": "linux",
    "created": "2024-02-29T12:00:00.123456789Z",
    "author": "somebody",
    "unknown": {"kept": [1]},
    "container": "abc",
    "config": {
        "Env": ["PATH=/bin", "EMPTY=", "A=b=c", "REMOVED", "A=last"],
        "Cmd": ["sh", "-c", "true"],
        "WorkingDir": "/srv",
        "User": "1000:1000",
        "Labels": {"a": "b"},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "OnBuild": ["RUN x"],
    },
    "rootfs": {"type": "layers", "diff_ids": [DIGEST, OTHER]},
    "history": [{"created_by": "a", "created": "2024-01-01T00:00:00+01:00"}, {"comment": "b", "empty_layer": True}, {}],
}


def encoded(document: object) -> bytes:
    """Return a document as bytes."""
    return json.dumps(document).encode()


def changed(document: dict[str, Any], **changes: object) -> bytes:
    """Return a document with other members; None: without."""
    return encoded({key: value for key, value in {**document, **changes}.items() if value is not None})


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff{}", "no JSON"),
        (b'{"a": NaN}', "no JSON"),
        (b'{"a": Infinity}', "no JSON"),
        (b"[" * 65 + b"]" * 65, "levels deep"),
        (b'{"a":' * 100_000, "levels deep"),
        (b'"' + b"x" * LARGEST + b'"', "are the most"),
        (b"1" * 5000, "no JSON"),
    ],
)
def test_a_document_that_is_none_is_refused(data: bytes, what: str) -> None:
    """JSON that is broken, too long or too deep is an ArchiveError that names the document."""
    with pytest.raises(ArchiveError, match=what) as caught:
        parse(data, "index.json")
    assert caught.value.entry == "index.json"


def test_brackets_in_texts_are_no_levels() -> None:
    """What stands in a text counts for nothing, escaped quotes and all."""
    assert parse(encoded(["[[" * 100 + '\\"{' * 100]), "x") == ["[[" * 100 + '\\"{' * 100]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda some: st.lists(some) | st.dictionaries(st.text(), some),
        max_leaves=20,
    )
)
def test_a_document_survives_being_written(document: object) -> None:
    """What is written is read again as it was, lone surrogates too."""
    assert parse(dump(document), "x") == document


@pytest.mark.parametrize("value", [None, "3", 3.5, True, -1, 2**63])
def test_a_size_is_a_number(value: object) -> None:
    """What should be a number and is not is refused with its name."""
    with pytest.raises(ArchiveError, match="size: a number"):
        Document({"size": value}, "x").number("size")


def test_a_manifest_names_config_and_layers() -> None:
    """What a manifest says is read, in Docker's types as in OCI's."""
    found = oci.read_manifest(encoded(MANIFEST), "x")
    assert (found.config.digest, [one.digest for one in found.layers]) == (DIGEST, [OTHER])
    of_docker = changed(
        MANIFEST,
        mediaType="application/vnd.docker.distribution.manifest.v2+json",
        config={"mediaType": "application/vnd.docker.container.image.v1+json", "digest": DIGEST, "size": 2},
        layers=[{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": OTHER, "size": 3}],
    )
    assert oci.read_manifest(of_docker, "x").layers[0].size == 3


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (changed(MANIFEST, schemaVersion=1), "schemaVersion is 1"),
        (changed(MANIFEST, schemaVersion=None), "schemaVersion"),
        (changed(MANIFEST, mediaType=oci.INDEX), "not that of a manifest"),
        (changed(MANIFEST, manifests=[]), "manifests has no place"),
        (changed(MANIFEST, config=None), "mediaType|digest"),
        (
            changed(MANIFEST, config={"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": DIGEST, "size": 2}),
            "not an image",
        ),
        (changed(MANIFEST, layers={}), "a list"),
        (changed(MANIFEST, layers=[3]), "an object"),
        (
            changed(MANIFEST, layers=[{"mediaType": "application/x-blob", "digest": OTHER, "size": 1}]),
            "not the media type of a layer",
        ),
        (
            changed(
                MANIFEST,
                layers=[{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": OTHER, "size": 1}],
            ),
            "elsewhere",
        ),
        (
            changed(
                MANIFEST,
                layers=[{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": OTHER, "size": 1}],
            ),
            "elsewhere",
        ),
        (changed(MANIFEST, layers=[{"mediaType": oci.LAYER, "digest": "sha256:../../etc", "size": 1}]), "no digest"),
        (changed(MANIFEST, layers=[{"mediaType": oci.LAYER, "digest": f"md5:{'0' * 32}", "size": 1}]), "no digest"),
        (changed(MANIFEST, layers=[{"mediaType": oci.LAYER, "digest": OTHER, "size": -1}]), "a number"),
        (b"[]", "an object"),
    ],
)
def test_a_manifest_that_is_none_is_refused(data: bytes, what: str) -> None:
    """Manifests of other things, of old versions, ambiguous ones and those with layers that are not there are refused."""
    with pytest.raises(ArchiveError, match=what):
        oci.read_manifest(data, "x")


def test_an_index_with_layers_is_refused() -> None:
    """A document that is a manifest to one program and an index to another is neither."""
    with pytest.raises(ArchiveError, match="layers has no place"):
        oci.read_index(encoded({"schemaVersion": 2, "manifests": [], "layers": []}), "x")


def descriptor(platform: str | None) -> oci.Descriptor:
    """Return what an index says of a manifest for a platform."""
    return oci.Descriptor(
        oci.MANIFEST, sha256(str(platform).encode()), 1, None if platform is None else Platform.parse(platform)
    )


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/arm/v7", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm64", ["linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
        ("linux/arm", ["linux/arm/v6", "linux/arm"], "linux/arm"),
        ("linux/s390x", [None], None),
    ],
)
def test_the_platform_that_fits_is_chosen(wanted: str, offered: list[str | None], chosen: str | None) -> None:
    """Of several platforms the one that was asked for is taken, its very variant before others."""
    assert oci.choose([descriptor(one) for one in offered], Platform.parse(wanted), "x") == descriptor(chosen)


def test_where_nothing_fits_what_there_is_is_said() -> None:
    """A platform that is not there is refused, and those that are are named."""
    with pytest.raises(ArchiveError, match="nothing for linux/amd64 in it; platforms: linux/arm64, windows/amd64"):
        oci.choose([descriptor("windows/amd64"), descriptor("linux/arm64")], Platform(), "index.json")


@pytest.mark.parametrize("text", ["linux", "linux/", "/amd64", "a/b/c/d", ""])
def test_a_platform_has_two_or_three_parts(text: str) -> None:
    """What is no platform is refused."""
    with pytest.raises(PlanError, match="platform"):
        Platform.parse(text)


def test_a_config_says_how_to_run() -> None:
    """All of a config that there are attributes for is read; of a variable that is given twice, the last counts."""
    recorded = read_config(encoded(CONFIG), "config")
    assert recorded.diff_ids == (DIGEST, OTHER)
    config = recorded.config
    assert dict(config.env) == {"PATH": "/bin", "EMPTY": "", "A": "last"}
    assert (config.cmd, config.entrypoint, config.workdir, config.user) == (("sh", "-c", "true"), None, "/srv", "1000:1000")
    assert (dict(config.labels), config.exposed_ports, config.volumes) == ({"a": "b"}, ("80/tcp",), ("/data",))
    assert config.platform == Platform("linux", "arm64")
    assert config.created == datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
    assert recorded.history == (
        History(datetime(2023, 12, 31, 23, tzinfo=UTC), "a"),
        History(comment="b", empty_layer=True),
        History(),
    )


@pytest.mark.parametrize(
    "data",
    [
        changed(CONFIG, rootfs=None),
        changed(CONFIG, rootfs={"type": "layers"}),
        changed(CONFIG, rootfs={"type": "other", "diff_ids": []}),
        changed(CONFIG, rootfs={"type": "layers", "diff_ids": ["sha256:zz"]}),
        changed(CONFIG, os=None),
        changed(CONFIG, architecture=3),
        changed(CONFIG, created="yesterday"),
        changed(CONFIG, created="2024-02-30T00:00:00Z"),
        changed(CONFIG, config={"Env": "PATH=/bin"}),
        changed(CONFIG, config={"Env": [1]}),
        changed(CONFIG, config={"Labels": {"a": 1}}),
        changed(CONFIG, history=[{"empty_layer": "yes"}]),
    ],
)
def test_a_config_that_is_none_is_refused(data: bytes) -> None:
    """A config in which something is of the wrong type, or missing, is refused."""
    with pytest.raises(ArchiveError):
        read_config(data, "config")


def test_a_new_config_keeps_what_is_not_known() -> None:
    """An image that is derived from another has its config, what is not known of it too, and a step and a layer on top."""
    base = encoded(CONFIG)
    config = replace(read_config(base, "x").config, cmd=("run",), labels={})
    top = f"sha256:{'3' * 64}"
    told = json.loads(derive(base, config, top, History(created_by="made")))
    assert told["unknown"] == {"kept": [1]}
    assert told["config"]["OnBuild"] == ["RUN x"]
    assert "container" not in told
    assert "Labels" not in told["config"]
    recorded = read_config(encoded(told), "x")
    assert recorded.config == config
    assert recorded.diff_ids == (DIGEST, OTHER, top)
    assert recorded.history[-1] == History(created_by="made")
    without = read_config(derive(base, config, None, History(comment="only this")), "x")
    assert without.diff_ids == (DIGEST, OTHER)
    assert without.history[-1].empty_layer


def test_the_same_config_is_the_same_bytes() -> None:
    """A config is written in one way, whatever was said in which order."""
    one, other = ImageConfig(env={"A": "1"}, user="u"), ImageConfig(user="u", env={"A": "1"})
    assert new_config(one, [DIGEST], [History()]) == new_config(other, [DIGEST], [History()])


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_being_written(moment: datetime) -> None:
    """A moment is written so that it is read again."""
    assert parse_time(write_time(moment), "x") == moment


@pytest.mark.parametrize("text", ["1990-12-31T23:59:60Z", "2024-01-01t00:00:00z", "0001-01-01T00:00:00Z"])
def test_unusual_times_are_times(text: str) -> None:
    """Leap seconds, small letters and Go's zero time are read."""
    assert parse_time(text, "x") is not None


def test_an_archive_of_docker_lists_its_images() -> None:
    """The manifest of an archive tells configs, layers and names."""
    data = encoded(
        [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["x/layer.tar", "./y.tar"]}, {"Config": "d", "RepoTags": None}]
    )
    assert docker.read_archive(data) == (
        docker.Listed("c.json", ("x/layer.tar", "y.tar"), ("a:1",)),
        docker.Listed("d", (), ()),
    )
    assert docker.is_archive(data)
    assert docker.read_archive(docker.write_archive(docker.read_archive(data))) == docker.read_archive(data)


@pytest.mark.parametrize("path", ["", "/etc/shadow", "../x", "a/../../x", "..", "a\0b"])
def test_paths_in_an_archive_of_docker_stay_in_it(path: str) -> None:
    """A path that leads out of the archive is refused."""
    with pytest.raises(ArchiveError, match="not the path of a file in the archive"):
        docker.read_archive(encoded([{"Config": "c", "Layers": [path]}]))


@pytest.mark.parametrize("data", [b"{}", b"[1]", b'{"name": "a web page\'s"}', b"x", b'[{"config": 1}]'])
def test_other_files_of_that_name_are_no_manifests(data: bytes) -> None:
    """A manifest.json of something else is not taken for an archive's."""
    assert not docker.is_archive(data)
