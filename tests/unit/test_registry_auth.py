"""What registries ask for, and where the answer is found."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib import PlanError
from isolib.unionfs.images.auth import Challenge, Credentials, challenges, check_credentials, kept_credentials
from isolib.unionfs.images.registry import check_insecure, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REALM = "https://auth.example/token?x=1"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([f'Bearer realm="{REALM}",service="a, b=c"'], [("bearer", {"realm": REALM, "service": "a, b=c"})]),
        (['BASIC Realm = "say \\"a\\""'], [("basic", {"realm": 'say "a"'})]),
        (["Bearer realm=a,scope=b", "Basic realm=c"], [("bearer", {"realm": "a", "scope": "b"}), ("basic", {"realm": "c"})]),
        (['Digest a=1, Bearer realm="x", Negotiate'], [("digest", {"a": "1"}), ("bearer", {"realm": "x"}), ("negotiate", {})]),
        (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"})]),
        (["", '="x"', '"'], []),
    ],
)
def test_challenges(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    """Every way to say who one is is found with its parameters, quoted or not, several in one header or each in its own."""
    assert challenges(headers) == [Challenge(*one) for one in expected]


@given(st.lists(st.text(alphabet='Bearer realm="x\\,=\t'), max_size=3))
def test_no_header_breaks_it(headers: list[str]) -> None:
    """Whatever a server sends is understood or left out, and nothing is raised."""
    for one in challenges(headers):
        assert one.scheme == one.scheme.lower()


def test_a_password_is_not_shown() -> None:
    """Credentials say what HTTP wants, and their representation has no password."""
    credentials = Credentials("me", "secret:ä")
    assert credentials.header == "Basic " + b64encode("me:secret:ä".encode()).decode()
    assert "secret" not in repr(credentials)


@pytest.mark.parametrize("wrong", ["me:secret", ("me",), ("me", b"secret"), ("m:e", "secret"), 5, {"me": "secret"}])
def test_wrong_credentials(wrong: object) -> None:
    """What is no name and password is refused, and not shown."""
    with pytest.raises(PlanError) as caught:
        check_credentials(wrong)
    assert "secret" not in str(caught.value)


def written(path: Path, entries: Mapping[str, object]) -> Path:
    """Write a file of credentials."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": entries, "credsStore": "pass"}))
    return path


def entry(user: str) -> dict[str, str]:
    """Return an entry for a user."""
    return {"auth": b64encode(f"{user}:secret".encode()).decode()}


@pytest.mark.parametrize(
    ("domain", "path", "user"),
    [
        ("docker.io", "library/debian", "hub"),
        ("a.example:5000", "app", "a"),
        ("b.example", "team/app", "team"),
        ("b.example", "team/other", "b"),
        ("b.example", "team/app/more", "team"),
        ("c.example", "app", None),
        ("d.example", "app", None),
        ("b.exampl", "app", None),
    ],
)
def test_credentials_are_found(tmp_path: Path, domain: str, path: str, user: str | None) -> None:
    """An entry is found by its registry, by the addresses of old, and the one for less goes before."""
    entries = {
        "https://index.docker.io/v1/": entry("hub"),
        "http://a.example:5000/v2/": entry("a"),
        "b.example": entry("b"),
        "b.example/team/app": entry("team"),
        "d.example": {},
    }
    written(tmp_path / "config.json", entries)
    found = kept_credentials(domain, path, {"HOME": "/nowhere", "DOCKER_CONFIG": str(tmp_path)})
    assert found == (Credentials(user, "secret") if user else None)


def test_which_file_counts(tmp_path: Path) -> None:
    """The file that the environment names goes before that of the session, that of Podman before Docker's."""
    environ = {"HOME": str(tmp_path)}
    places = [
        tmp_path / ".docker/config.json",
        tmp_path / ".config/containers/auth.json",
        tmp_path / "run/containers/auth.json",
    ]
    for number, place in enumerate(places):
        written(place, {"a.example": entry(str(number))})
        if number == 2:
            environ["XDG_RUNTIME_DIR"] = f"{tmp_path}/run"
        assert kept_credentials("a.example", "app", environ) == Credentials(str(number), "secret")
    environ["REGISTRY_AUTH_FILE"] = str(written(tmp_path / "named", {"b.example": entry("named")}))
    assert kept_credentials("a.example", "app", environ) == Credentials("2", "secret")
    assert kept_credentials("b.example", "app", environ) == Credentials("named", "secret")


@pytest.mark.parametrize(
    "text", ["secret", "[1]", '{"auths": {"a.example": {"auth": "secret!"}}}', '{"auths": {"a.example": {"auth": "c2VjcmV0"}}}']
)
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    """A damaged file of credentials is named, and what is in it is not."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PlanError) as caught:
        kept_credentials("a.example", "app", {"HOME": "/nowhere", "DOCKER_CONFIG": str(tmp_path)})
    assert f"{tmp_path}/config.json" in str(caught.value)
    assert not {"secret", "c2VjcmV0"} & {*str(caught.value).replace("/", " ").split()}


def test_files_that_say_nothing(tmp_path: Path) -> None:
    """No file, a directory, and a file without entries are the same as none."""
    (tmp_path / "config.json").mkdir()
    environ = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path), "REGISTRY_AUTH_FILE": "/dev/zero"}
    assert kept_credentials("a.example", "app", environ) is None
    (tmp_path / ".config/containers").mkdir(parents=True)
    (tmp_path / ".config/containers/auth.json").write_text('{"auths": 5}')
    assert kept_credentials("a.example", "app", environ) is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]", "::1"])
def test_this_machine(host: str) -> None:
    """The names and addresses of this machine are known without asking."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example", "128.0.0.1", "[::2]", "127.0.0.1.example", "0.0.0.0", "2130706433", ""])
def test_not_this_machine(host: str) -> None:
    """What only looks like this machine is not it."""
    assert not is_loopback(host)


def test_insecure_is_said_by_name() -> None:
    """Registries without encryption are named: one or several, and nothing stands for all."""
    assert check_insecure("a.example:5000") == {"a.example:5000"}
    assert check_insecure(["a", "b"]) == {"a", "b"}
    for wrong in (True, 5, ["http://a.example"], [b"a"], None):
        with pytest.raises(PlanError, match="insecure"):
            check_insecure(wrong)
