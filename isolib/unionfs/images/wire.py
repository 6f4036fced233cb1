"""HTTP as registries are spoken to: within time limits, in several threads, and so that all of it can be ended at once.

The work is urllib3's, an optional dependency that is imported with this module.  What is added: a server has to answer in a
given time however slowly it sends its headers, a body has to come at some speed, and whoever gives up cuts the lines of all
threads.
"""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from secrets import randbelow
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from isolib.errors import RegistryError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from urllib3.response import BaseHTTPResponse

__all__ = ["Answer", "CancelledError", "TransientError", "Wire"]

_CHUNK: Final = 256 << 10
#: Bytes a second: whoever sends less for the time of a whole time limit is given up.
_SLOWEST: Final = 1 << 10
#: Seconds before the second attempt; each further one takes twice as long, up to the longest.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 8.0
#: Seconds that a server may ask for.
_LONGEST_WISH: Final = 120.0
_JITTER: Final = 1000
_PORTS: Final = {"http": 80, "https": 443}


class CancelledError(Exception):
    """The transfer was given up by who had asked for it."""


class TransientError(Exception):
    """Something went wrong that may go better the next time.

    Attributes
    ----------
    error
        What is raised when there is no next time.
    wish
        In how many seconds the server wants to be asked again; None: it did not say.
    """

    def __init__(self, error: RegistryError, wish: float | None = None) -> None:
        super().__init__(error, wish)
        self.error = error
        self.wish = wish


class _Line:
    """The line of a connection, to be cut by another thread: another descriptor of its socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected.dup()
        self.is_left = False

    def cut(self) -> None:
        """Let every call on it end now."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class _Lines:
    """The lines that are in use, by thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[int, _Line] = {}
        self.is_over = False

    def use(self, line: _Line | None) -> None:
        """Note that this thread uses a line from now on; None: it is about to connect."""
        with self._lock:
            if self.is_over:
                raise CancelledError
            if line is not None:
                self._used[threading.get_ident()] = line

    def leave(self, line: _Line) -> None:
        """Give a line up that its connection has closed; its body may be read still, by this thread."""
        with self._lock:
            if self._used.get(threading.get_ident()) is line:
                line.is_left = True
                return
        line.close()

    def done(self) -> None:
        """Note that this thread uses none any more."""
        with self._lock:
            line = self._used.pop(threading.get_ident(), None)
        if line is not None and line.is_left:
            line.close()

    def cut(self, thread: int) -> None:
        """Cut the line of a thread."""
        with self._lock:
            if (line := self._used.get(thread)) is not None:
                line.cut()

    def cut_all(self) -> None:
        """Cut all lines, also those that are still to come."""
        with self._lock:
            self.is_over = True
            for line in self._used.values():
                line.cut()


def _connected(host: str, port: int, timeout: float | None, options: Any, lines: _Lines) -> tuple[socket.socket, _Line]:  # noqa: ANN401 - urllib3's
    """Connect; the line can be cut meanwhile."""
    failed: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
        opened = socket.socket(family, kind, protocol)
        try:
            line = _Line(opened)
        except BaseException:
            opened.close()
            raise
        try:
            opened.settimeout(timeout)
            for option in options or ():
                opened.setsockopt(*option)
            lines.use(line)
            opened.connect(address)
        except BaseException as error:
            opened.close()
            lines.leave(line)
            lines.done()
            if not isinstance(error, OSError):
                raise
            failed = error
        else:
            return opened, line
    raise failed or OSError("the name has no address")


class _Cuttable(HTTPConnection):
    """A connection whose line can be cut."""

    lines: _Lines
    line: _Line | None = None

    def _new_conn(self) -> socket.socket:
        # As urllib3's own, but that the socket is known while it connects; contrib.socks has its own one too.
        try:
            timeout = self.timeout if isinstance(self.timeout, (int, float)) else None
            connected, self.line = _connected(self._dns_host, self.port, timeout, self.socket_options, self.lines)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"no connection within {self.timeout} s") from error
        except OSError as error:
            raise NewConnectionError(self, f"{error.strerror or error}") from error
        return connected

    def request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        self.lines.use(self.line)
        super().request(*args, **kwargs)

    def close(self) -> None:
        line, self.line = self.line, None
        try:
            super().close()
        finally:
            if line is not None:
                self.lines.leave(line)


class _CuttableTls(_Cuttable, HTTPSConnection):
    """The same by TLS."""


def _pools(lines: _Lines) -> dict[str, type[HTTPConnectionPool]]:
    """Return what makes connections that have their lines there."""

    class Plain(_Cuttable):
        pass

    class Tls(_CuttableTls):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    Plain.lines = Tls.lines = lines
    return {"http": PlainPool, "https": TlsPool}


class Answer:
    """An answer, with its body to be read.

    Attributes
    ----------
    status
        Its status.
    url
        Who gave it.
    """

    def __init__(self, wire: Wire, name: str, response: BaseHTTPResponse, url: str, limit: _Limit) -> None:
        self.status = response.status
        self.url = url
        self._wire = wire
        self._name = name
        self._response = response
        self._limit = limit

    def header(self, name: str) -> str | None:
        """Return a header; None: it has none."""
        return self._response.headers.get(name)

    def headers(self, name: str) -> list[str]:
        """Return all headers of a name."""
        return list(self._response.headers.getlist(name))

    @property
    def size(self) -> int | None:
        """How many bytes it says its body has; None: it does not say."""
        text = self.header("Content-Length") or ""
        return int(text) if text.isascii() and text.isdigit() and not self.header("Transfer-Encoding") else None

    @property
    def wish(self) -> float | None:
        """In how many seconds it wants to be asked again."""
        with suppress(HTTPError, OverflowError, ValueError):
            return urllib3.Retry().get_retry_after(self._response)
        return None

    def read(self, limit: int) -> bytes:
        """Return its body, all of which must come within the time limit; of longer ones a byte more than the limit."""
        data = bytearray()
        while len(data) <= limit and (more := self._read(limit + 1 - len(data))):
            data += more
        return bytes(data)

    def pieces(self) -> Iterator[bytes]:
        """Yield its body, for as long as it takes, provided that it comes at some speed."""
        self._limit.end()
        began, size = monotonic(), 0
        while data := self._read(_CHUNK):
            yield data
            size += len(data)
            if (took := monotonic() - began) >= self._wire.timeout:
                if size < _SLOWEST * took:
                    raise TransientError(RegistryError(self._name, f"it has sent {size} bytes in {took:.0f} s"))
                began, size = monotonic(), 0

    def _read(self, size: int) -> bytes:
        # As it comes: what was said of its encoding does not matter, for digests are those of what is sent.
        with self._wire.translated(self._name, self._limit):
            if data := self._response.read1(size, decode_content=False):
                return data
            # Where the server says no length, a line that was cut looks like the end.
            self._wire.check(self._name, self._limit)
            return b""


class _Limit:
    """A time limit: when it is over, the line of the thread is cut that had set it."""

    def __init__(self, lines: _Lines, seconds: float) -> None:
        self._lines = lines
        self._thread = threading.get_ident()
        self.is_over = False
        self._timer = threading.Timer(seconds, self._strike)
        self._timer.daemon = True
        self._timer.start()

    def _strike(self) -> None:
        self.is_over = True
        self._lines.cut(self._thread)

    def end(self) -> None:
        """End it."""
        self._timer.cancel()
        self._timer.join()


class Wire:
    """Connections to servers, shared by threads.

    Parameters
    ----------
    timeout
        Seconds in which a server must answer, and in which something must come of a body.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._lines = _Lines()
        self._over = threading.Event()
        self._tls = ssl.create_default_context()
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def _manager(self, url: urllib3.util.Url, *, direct: bool) -> urllib3.PoolManager:
        proxy = "" if direct else _proxy(url)
        with self._lock:
            if (found := self._managers.get(proxy)) is None:
                options: dict[str, Any] = {"ssl_context": self._tls, "maxsize": 8, "num_pools": 8}
                if proxy:
                    said = urllib3.util.parse_url(proxy).auth
                    options["proxy_headers"] = urllib3.util.make_headers(proxy_basic_auth=unquote(said)) if said else None
                found = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                found.pool_classes_by_scheme = _pools(self._lines)
                self._managers[proxy] = found
            return found

    @contextmanager
    def get(self, name: str, url: str, headers: Mapping[str, str], *, direct: bool) -> Iterator[Answer]:
        """Ask, and have the answer, whichever it is; redirections are answers too.

        Parameters
        ----------
        name
            What the server is called in messages: addresses may have secrets in them.
        url
            What is asked for.
        headers
            Said with it.
        direct
            Whether to pass by the proxies that the environment names.

        Raises
        ------
        TransientError
            There is no answer.
        RegistryError
            It has no certificate that is valid.
        CancelledError
            `cancel` was called.
        """
        manager = self._manager(urllib3.util.parse_url(url), direct=direct)
        limit = _Limit(self._lines, self.timeout)
        response: BaseHTTPResponse | None = None
        try:
            with self.translated(name, limit):
                response = manager.request(
                    "GET",
                    url,
                    headers={"Accept-Encoding": "identity", "User-Agent": "isolib", **headers},
                    preload_content=False,
                    redirect=False,
                    retries=False,
                    timeout=urllib3.Timeout(connect=self.timeout, read=self.timeout),
                )
            yield Answer(self, name, response, url, limit)
        finally:
            limit.end()
            if response is not None:
                response.close()
            self._lines.done()

    @contextmanager
    def translated(self, name: str, limit: _Limit) -> Iterator[None]:
        """Say what went wrong: urllib3's own words may have addresses in them, which may have secrets."""
        if self._over.is_set():
            raise CancelledError
        try:
            yield
        except (HTTPError, OSError, ValueError) as error:
            late = isinstance(error, (ConnectTimeoutError, ReadTimeoutError)) and not isinstance(error, NewConnectionError)
            self.check(name, limit, is_late=late)
            raise _said(name, error) from None

    def check(self, name: str, limit: _Limit, *, is_late: bool = False) -> None:
        """Raise what explains it where a line was cut."""
        if self._over.is_set():
            raise CancelledError from None
        if limit.is_over or is_late:
            raise TransientError(RegistryError(name, f"it has not answered within {self.timeout:g} s")) from None

    def pause(self, failures: int, wish: float | None) -> None:
        """Wait before the next attempt, but not longer than until `cancel`.

        Raises
        ------
        CancelledError
            `cancel` was called.
        """
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1))
        seconds = longest * (_JITTER + randbelow(_JITTER)) / (2 * _JITTER) if wish is None else wish
        if self._over.wait(seconds):
            raise CancelledError

    def is_too_long(self, wish: float | None) -> bool:
        """Return whether a server wants to be left alone for longer than anybody should wait."""
        return wish is not None and wish > _LONGEST_WISH

    def cancel(self) -> None:
        """End everything that other threads do with it, now."""
        self._over.set()
        self._lines.cut_all()

    def close(self) -> None:
        """Close all connections; nobody uses them any more."""
        for manager in self._managers.values():
            # What it drops it leaves to be collected, and an exception may hold on to it.
            for key in manager.pools.keys():  # noqa: SIM118 - it is no mapping that can be iterated
                if (pool := manager.pools.get(key)) is not None:
                    pool.close()
            manager.clear()


def _proxy(url: urllib3.util.Url) -> str:
    """Return the proxy that the environment names for an address; empty: none."""
    scheme, host = url.scheme or "", (url.host or "").strip("[]")
    if proxy_bypass(f"{host}:{url.port or _PORTS[scheme]}") or not (proxy := getproxies().get(scheme)):
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise Unsupported(
            "pulling images through a proxy",
            f"{scheme}_proxy in the environment, which names one that is not spoken to by HTTP",
            f"one that is, or no_proxy={host}",
        )
    return proxy


def _said(name: str, error: Exception) -> Exception:
    """Return the exception for one of urllib3's."""
    if isinstance(error, ProxyError):
        return TransientError(RegistryError(name, "the proxy that the environment names does not connect to it"))
    if isinstance(error, NameResolutionError):
        return TransientError(RegistryError(name, "its name has no address"))
    if isinstance(error, NewConnectionError):
        failed = error.__cause__
        reason = failed.strerror if isinstance(failed, OSError) and failed.strerror else "its addresses do not answer"
        return TransientError(RegistryError(name, f"no connection: {reason}"))
    cause = error.args[0] if isinstance(error, SSLError) and error.args else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return RegistryError(
            name,
            f"its certificate is not valid: {cause.verify_message}; SSL_CERT_FILE names a file of authorities to believe",
        )
    if isinstance(cause, ssl.SSLError):
        return TransientError(RegistryError(name, f"TLS: {cause.reason or type(cause).__name__}"))
    return TransientError(RegistryError(name, f"the connection broke ({type(error).__name__})"))
