"""Registries of the tests' own: Debian's docker-registry, and a small one by hand that misbehaves as it is told."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from tests.images import INDEX, MANIFEST, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.images import Draft

    #: Answers a request in its own way, or returns False: then it is answered as it should be.
    Rule: TypeAlias = "Callable[[Request], object]"

REGISTRY = "docker-registry"


@contextmanager
def docker_registry(path: Path) -> Iterator[str]:
    """Run Debian's registry on a free port of this machine, and return its name."""
    if not shutil.which(REGISTRY):
        pytest.skip(f"no {REGISTRY}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = path / "registry.yml"
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "info"},
                "storage": {"filesystem": {"rootdirectory": f"{path}/registry"}},
                "http": {"addr": f"127.0.0.1:{port}"},
            }
        )
    )
    with subprocess.Popen([REGISTRY, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        reader = threading.Thread(target=process.stderr.read)
        try:
            for line in process.stderr:
                if b"listening on" in line:
                    break
            else:
                pytest.fail("the registry has ended")
            reader.start()  # a full pipe would stop it
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            if reader.ident is not None:
                reader.join()


def pushed(layout: Path, tag: str, name: str) -> None:
    """Push an image of an OCI layout to a registry, as others do."""
    if not shutil.which("skopeo"):
        pytest.skip("no skopeo")
    argv = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    subprocess.run([*argv, f"oci:{layout}:{tag}", f"docker://{name}"], check=True, capture_output=True, timeout=60)


@dataclass
class Request:
    """One request, and how it is answered."""

    handler: BaseHTTPRequestHandler
    server: Handmade
    path: str

    @property
    def headers(self) -> dict[str, str]:
        """What was said with it."""
        return {name.lower(): value for name, value in self.handler.headers.items()}

    def answer(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> bool:
        """Answer; with a length, that is told instead of the right one, and the line is cut after the body."""
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.send_header("Content-Length", str(len(body) if length is None else length))
        self.handler.end_headers()
        if length is not None:
            self.handler.close_connection = True
        self.handler.wfile.write(body)
        return True

    def raw(self, data: bytes) -> None:
        """Answer with bytes, whatever they are, and cut the line."""
        self.handler.close_connection = True
        self.handler.wfile.write(data)


@dataclass
class Handmade:
    """A registry that does what a test wants.

    Attributes
    ----------
    manifests
        By tag and digest.
    blobs
        By digest.
    rules
        What is done with paths that match, in the place of what should be.
    asked
        The paths that were asked for, with the headers, in their order.
    """

    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    rules: list[tuple[str, Rule]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def name(self) -> str:
        """What references call it."""
        return f"127.0.0.1:{self.port}"

    def add(self, tag: str, draft: Draft) -> str:
        """Have an image; return the digest of its manifest."""
        manifest, blobs = draft.blobs()
        self.blobs |= blobs
        self.manifests[tag] = self.manifests[digest(manifest)] = (MANIFEST, manifest)
        return digest(manifest)

    def add_index(self, tag: str, told: dict[str, Any]) -> str:
        """Have a list of manifests; return its digest."""
        data = json.dumps(told).encode()
        self.manifests[tag] = self.manifests[digest(data)] = (told.get("mediaType", INDEX), data)
        return digest(data)

    def rule(self, pattern: str, rule: Rule) -> None:
        """Do something else with some requests from now on."""
        self.rules.insert(0, (pattern, rule))

    def paths(self, pattern: str) -> list[str]:
        """Return the paths that were asked for, those that match."""
        return [path for path, _ in self.asked if re.search(pattern, path)]

    def serve(self, request: Request) -> None:
        """Answer a request."""
        for pattern, rule in self.rules:
            if re.search(pattern, request.path) and rule(request) is not False:
                return
        kind, _, which = request.path.partition("?")[0].removeprefix("/v2/app/").partition("/")
        if request.path == "/v2/":
            request.answer(200, b"{}")
        elif kind == "manifests" and which in self.manifests:
            media_type, data = self.manifests[which]
            request.answer(200, data, Content_Type=media_type, Docker_Content_Digest=digest(data))
        elif kind == "blobs" and which in self.blobs:
            self.serve_blob(request, self.blobs[which])
        else:
            request.answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "secret"}]}')

    @staticmethod
    def serve_blob(request: Request, data: bytes) -> None:
        """Answer with a blob, or with the part of it that is asked for."""
        if (told := re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))) is None:
            request.answer(200, data)
        elif (start := int(told[1])) < len(data):
            request.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.answer(416)


@contextmanager
def handmade(*, tls: tuple[Path, Path] | None = None) -> Iterator[Handmade]:
    """Run a registry by hand, with encryption where it is given a certificate and its key."""
    served = Handmade()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            request = Request(self, served, self.path)
            served.asked.append((self.path, request.headers))
            try:
                served.serve(request)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        served.port = server.server_address[1]
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield served
        finally:
            served.over.set()
            server.shutdown()
            thread.join()
