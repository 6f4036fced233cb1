"""Registries of images, as the distribution specification of OCI has them: manifests and blobs over HTTP.

What a server says is believed as far as a digest goes.  Who one is learns nobody but the registry and the token server that it
names, and never one to whom it redirects; a server elsewhere can send us neither into this machine nor to what is not
encrypted.

Sources: the OCI distribution specification, version 1.1; the token authentication specification of the CNCF distribution
project.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from isolib.errors import ArchiveError, ImageNotFound, PlanError, RegistryError, Unsupported
from isolib.unionfs.images.auth import challenges, kept_credentials
from isolib.unionfs.images.documents import LARGEST, Document, parse, sha256
from isolib.unionfs.images.oci import ACCEPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from types import ModuleType, TracebackType
    from typing import Self

    from isolib.unionfs.images.auth import Challenge, Credentials
    from isolib.unionfs.images.references import Reference
    from isolib.unionfs.images.wire import Answer

__all__ = ["Blob", "Registry", "check_insecure"]

T = TypeVar("T")

_OK, _PARTIAL, _BAD, _UNAUTHORIZED, _FORBIDDEN, _MISSING, _NO_RANGE = 200, 206, 400, 401, 403, 404, 416
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_HOPS: Final = 5
_RETRIES: Final = 5
#: Bytes of what is read of an answer that is not what was asked for, and of a token server's.
_SMALL: Final = 64 << 10
_PRINTABLE: Final = re.compile(r"[!-~]{1,16384}")
_CODE: Final = re.compile(r"[A-Z_]{1,40}")
_RANGE: Final = re.compile(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)")
#: Where the registry is that is called by another name.
_HOSTS: Final = {"docker.io": "registry-1.docker.io"}


def _wire() -> ModuleType:
    try:
        from isolib.unionfs.images import wire  # noqa: PLC0415 - needs an optional dependency, and is not needed without a registry
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "urllib3":
            raise
        raise Unsupported(
            "pulling images from registries",
            "the Python package urllib3, which is not installed or is older than 2.6",
            "pip install 'isolib[registry]'",
        ) from None
    return wire


def check_insecure(insecure: object) -> frozenset[str]:
    """Return the registries that may be spoken to without encryption.

    Raises
    ------
    PlanError
        They are not names.
    """
    names = (insecure,) if isinstance(insecure, str) else insecure
    if not isinstance(names, (tuple, list, set, frozenset)) or not all(
        isinstance(one, str) and "/" not in one for one in names
    ):
        raise PlanError("insecure: names of registries are expected, as references have them: 'registry.lan:5000'")
    return frozenset(names)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by its address or its name; nobody is asked for names."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Blob:
    """A blob that comes.

    Attributes
    ----------
    start
        From which byte on; None: the server has not so many.
    """

    def __init__(self, answer: Answer, start: int | None) -> None:
        self.start = start
        self.pieces: Callable[[], Iterator[bytes]] = answer.pieces


class Registry:
    """A repository in a registry, for one pull.

    Parameters
    ----------
    reference
        Which one.
    credentials
        Who one is; None: who the user's files say.
    insecure
        The registries that may be spoken to without encryption, beside this machine's own.
    timeout
        Seconds in which a server must answer.
    """

    def __init__(
        self, reference: Reference, credentials: Credentials | None, insecure: Collection[str], timeout: float
    ) -> None:
        library = _wire()
        self.name = reference.domain
        self._path = reference.path
        self._credentials = credentials
        self._insecure = insecure
        self._wire = library.Wire(timeout)
        self.transient: type[Exception] = library.TransientError
        self._authorization: str | None = None
        self._lock = Lock()
        self._base: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wire.close()

    def cancel(self) -> None:
        """End what other threads do with it."""
        self._wire.cancel()

    # What is asked for

    def manifest(self, which: str) -> tuple[bytes, str]:
        """Return a manifest or a list of them, and its type.

        Parameters
        ----------
        which
            A tag or a digest.

        Raises
        ------
        ImageNotFound
            There is none.
        ArchiveError
            It is too long, or is another than was asked for.
        RegistryError
            The registry cannot be reached or refuses.
        """
        what = f"{self.name}/{self._path}{'@' if ':' in which else ':'}{which}"
        accept = {"Accept": ", ".join(ACCEPTED)}

        def once() -> tuple[bytes, str]:
            with self._asked(f"manifests/{which}", accept) as answer:
                if answer.status == _MISSING:
                    raise ImageNotFound(f"{self.name} has no image {what}")
                self._check(answer, _OK)
                data = _whole(answer, what)
                expected = which if ":" in which else answer.header("Docker-Content-Digest") or ""
                if expected.startswith("sha256:") and sha256(data) != expected:
                    raise ArchiveError(f"its digest is {sha256(data)} instead of {expected}: it is another, or damaged", what)
                return data, _type(data, answer.header("Content-Type") or "", what)

        return self.patiently(once)

    def document(self, digest: str) -> bytes:
        """Return a small blob, whose digest is for the caller to compare.

        Raises
        ------
        ArchiveError
            It is too long.
        RegistryError
            The registry has none, cannot be reached, or refuses.
        """

        def once() -> bytes:
            with self._asked(f"blobs/{digest}", {}) as answer:
                self._check(answer, _OK)
                return _whole(answer, digest)

        return self.patiently(once)

    @contextmanager
    def blob(self, digest: str, size: int, start: int) -> Iterator[Blob]:
        """Have a blob come: one attempt, for who does it `patiently`.

        Parameters
        ----------
        digest, size
            Which one.
        start
            From which byte on.  The server decides whether it does so: see `Blob.start`.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._asked(f"blobs/{digest}", headers) as answer:
            if answer.status == _NO_RANGE and start:
                yield Blob(answer, None)
                return
            self._check(answer, _PARTIAL if start and answer.status == _PARTIAL else _OK)
            total, begin = answer.size, 0
            if answer.status == _PARTIAL:
                told = _RANGE.fullmatch(answer.header("Content-Range") or "")
                if told is None or int(told[1]) != start:
                    raise RegistryError(
                        self.name, f"it was asked for {digest} from byte {start} on, and sends another part of it"
                    )
                total, begin = None if told[2] == "*" else int(told[2]), start
            if total is not None and total != size:
                raise ArchiveError(f"it has {total} bytes instead of {size}", digest)
            yield Blob(answer, begin)

    def patiently(self, once: Callable[[], T]) -> T:
        """Do something until it goes well, a few times; what can go better the next time is `wire.TransientError`."""
        failures = 0
        while True:
            try:
                return once()
            except self.transient as error:
                failures += 1
                self.wait(error, failures)

    def broken(self, reason: str) -> Exception:
        """Return the exception for what may go better the next time."""
        return self.transient(RegistryError(self.name, reason), None)

    def wait(self, error: Any, failures: int) -> None:  # noqa: ANN401 - of a type that is there with urllib3 alone
        """Wait before the next attempt after so many that failed, or raise."""
        if failures > _RETRIES or self._wire.is_too_long(error.wish):
            raise error.error from None
        self._wire.pause(failures, error.wish)

    # How it is asked

    def _may_be_plain(self, host: str, port: int | None) -> bool:
        return is_loopback(host) or host in self._insecure or (port is not None and f"{host}:{port}" in self._insecure)

    def _found(self) -> str:
        """Return the address of the registry: where it may be so, it is seen whether it speaks without encryption."""
        if self._base is None:
            host = _HOSTS.get(self.name, self.name)
            told = urlsplit(f"//{host}")
            is_plain = self._may_be_plain(_host(told.hostname), told.port) and self._is_plain(host)
            self._base = f"{'http' if is_plain else 'https'}://{host}"
        return self._base

    def _is_plain(self, host: str) -> bool:
        url = f"http://{host}/v2/"
        try:
            with self._wire.get(self.name, url, {}, direct=is_loopback(_host(urlsplit(url).hostname))) as answer:
                answer.read(_SMALL)
                # Servers that speak TLS alone answer so, send elsewhere, or say nothing that is HTTP.
                return answer.status != _BAD and answer.status not in _REDIRECTS
        except self.transient:
            return False

    @contextmanager
    def _asked(self, what: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """Ask the registry, and say who one is when it wants to know that; the answer may be one that refuses."""
        url = f"{self._found()}/v2/{self._path}/{what}"
        said = self._authorization
        with self._followed(url, headers, said) as answer:
            if answer.status != _UNAUTHORIZED or _origin(answer.url) != _origin(url):
                yield answer
                return
            asked = challenges(answer.headers("WWW-Authenticate"))
            answer.read(_SMALL)
        said = self._authorized(asked, said)
        with self._followed(url, headers, said) as answer:
            yield answer

    @contextmanager
    def _followed(self, url: str, headers: Mapping[str, str], authorization: str | None) -> Iterator[Answer]:
        home = _origin(url)
        for _ in range(_HOPS):
            own = {"Authorization": authorization} if authorization and _origin(url) == home else {}
            host = _host(urlsplit(url).hostname)
            name = self.name if _origin(url) == home else host
            with self._wire.get(name, url, {**headers, **own}, direct=is_loopback(host)) as answer:
                if answer.status not in _REDIRECTS:
                    yield answer
                    return
                target = answer.header("Location") or ""
                answer.read(_SMALL)
            if not _PRINTABLE.fullmatch(target):
                raise RegistryError(name, "it redirects to no address")
            url = self._admitted(target, "redirects", url)
        raise RegistryError(self.name, f"it redirects more than {_HOPS} times")

    def _admitted(self, target: str, how: str, base: str = "") -> str:
        """Return an address that the registry has named, perhaps as seen from another, when it is one that it may name."""
        try:
            told = urlsplit(urljoin(base, target))
            host, port = _host(told.hostname), told.port
        except ValueError:
            raise RegistryError(self.name, f"it {how} to no address") from None
        if not host or told.scheme not in {"http", "https"} or told.username is not None or told.password is not None:
            raise RegistryError(self.name, f"it {how} to an address that is not one of HTTP: {told.scheme[:20]}:")
        home = urlsplit(self._found())
        if told.scheme == "http" and not (home.scheme == "http" and self._may_be_plain(host, port)):
            raise RegistryError(self.name, f"it {how} to {host} without encryption")
        if is_loopback(host) and not is_loopback(_host(home.hostname)):
            raise RegistryError(self.name, f"it {how} to this machine itself ({host})")
        return told._replace(fragment="").geturl()

    def _check(self, answer: Answer, expected: int) -> None:
        """Raise unless an answer is what was hoped for."""
        status = answer.status
        if status == expected:
            return
        name = self.name if _origin(answer.url) == _origin(self._found()) else _host(urlsplit(answer.url).hostname)
        error = RegistryError(name, f"it answers {status}{_code(answer)}{self._hint(status)}", status)
        if status not in _TRANSIENT:
            raise error
        raise self.transient(error, answer.wish)

    def _hint(self, status: int) -> str:
        if status not in {_UNAUTHORIZED, _FORBIDDEN}:
            return ""
        if self._known() is not None:
            return f": {self._path} does not exist, or is not for this user"
        return f": {self._path} does not exist, or takes credentials, and credentials= and the user's files have none"

    # Who asks

    def _known(self) -> Credentials | None:
        return self._credentials or kept_credentials(self.name, self._path)

    def _authorized(self, asked: list[Challenge], said: str | None) -> str:
        """Return what to say of oneself, in the place of what was said in vain."""
        with self._lock:
            if self._authorization is None or self._authorization == said:
                self._authorization = self._answered(asked)
            return self._authorization

    def _answered(self, asked: list[Challenge]) -> str:
        ways = {one.scheme: one.parameters for one in reversed(asked)}
        known = self._known()
        if realm := ways.get("bearer", {}).get("realm"):
            return f"Bearer {self._token(realm, ways['bearer'].get('service'), known)}"
        if "basic" in ways and known is not None:
            return known.header
        if not {"basic", "bearer"} & {*ways}:
            raise RegistryError(self.name, "it wants to know who asks, in a way that is not known here", _UNAUTHORIZED)
        raise RegistryError(self.name, f"it answers {_UNAUTHORIZED}{self._hint(_UNAUTHORIZED)}", _UNAUTHORIZED)

    def _token(self, realm: str, service: str | None, known: Credentials | None) -> str:
        """Return a token for this repository; no other is asked for, whatever the registry wants."""
        if not _PRINTABLE.fullmatch(realm):
            raise RegistryError(self.name, "it sends for a token to no address")
        url = self._admitted(realm, "sends for a token")
        query = {"scope": f"repository:{self._path}:pull", **({"service": service} if service else {})}
        url = f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}"
        name = _host(urlsplit(url).hostname)

        def once() -> bytes:
            with self._followed(url, {}, known.header if known else None) as answer:
                self._check(answer, _OK)
                return answer.read(_SMALL)

        try:
            document = Document(parse(self.patiently(once), "token"), "token").value
        except ArchiveError:
            document = {}
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not _PRINTABLE.fullmatch(token):
            raise RegistryError(name, "it was asked for a token, and has sent none")
        return token


def _host(name: str | None) -> str:
    return f"[{name}]" if name and ":" in name else name or ""


def _origin(url: str) -> tuple[str, str | None, int]:
    told = urlsplit(url)
    return told.scheme, told.hostname, told.port or {"http": 80, "https": 443}.get(told.scheme, 0)


def _too_long(size: str, what: str) -> NoReturn:
    raise ArchiveError(f"a document of {size} bytes; {LARGEST} are the most", what)


def _whole(answer: Answer, what: str) -> bytes:
    if (size := answer.size) is not None and size > LARGEST:
        _too_long(str(size), what)
    data = answer.read(LARGEST)
    if len(data) > LARGEST:
        _too_long(f"more than {LARGEST}", what)
    return data


def _type(data: bytes, told: str, what: str) -> str:
    """Return the type of a manifest: what it says itself, or else the server."""
    said = Document.read(data, what).text("mediaType", "")
    told = told.partition(";")[0].strip().lower()
    if said and told in ACCEPTED and said != told:
        # One program would take it for a list of manifests, and another for a manifest (CVE-2021-41190).
        raise ArchiveError(f"it says it is {said[:80]!r}, and the registry that it is {told!r}", what)
    found = said or told
    if found not in ACCEPTED:
        raise ArchiveError(f"it is of the type {found[:80]!r}, and no manifest of an image that is known here", what)
    return found


def _code(answer: Answer) -> str:
    """Return the code of an error that a registry gives; nothing else of its text, which may be anything."""
    try:
        document = Document.read(answer.read(_SMALL), "error")
        codes = [one.text("code") for one in document.objects("errors")]
    except ArchiveError:
        return ""
    return f" ({codes[0]})" if codes and _CODE.fullmatch(codes[0]) else ""
