"""A Hugging Face hub on loopback: as much of its protocol as downloading a model takes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO = "organisation/tiny-opt"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server hands out, and what it was asked for.

    Attributes:
        folder: the repo's files.
        refusal: status and ``X-Error-Code`` for every request, or None.
        gated: whether only the repo's description is public.
        fetched: names of the files that were sent.
    """

    folder: Path
    refusal: tuple[int, str] | None = None
    gated: bool = False
    fetched: list[str] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve the files of ``folder`` as the repo REPO at commit COMMIT, tagged v1."""
    hub = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        api, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        if self.hub.refusal is not None:
            self._refuse(*self.hub.refusal)
        elif path.startswith("/api/models/") and api == REPO:
            self._describe(revision or "main")
        elif path.startswith(f"/{REPO}/resolve/"):
            self._send_file(*path.removeprefix(f"/{REPO}/resolve/").split("/", 1))
        else:
            self._refuse(401, "RepoNotFound")

    def _describe(self, revision: str) -> None:
        if revision not in ("main", "v1", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": file.name} for file in sorted(self.hub.folder.iterdir())]
        description = {"id": REPO, "sha": COMMIT, "siblings": siblings}
        body = json.dumps(description).encode()
        return self._send(200, {"Content-Type": "application/json"}, body)

    def _send_file(self, revision: str, name: str) -> None:
        file = self.hub.folder / name
        if self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if revision not in ("main", "v1", COMMIT) or not file.is_file():
            return self._refuse(404, "EntryNotFound")
        content = file.read_bytes()
        if self.command == "GET":
            self.hub.fetched.append(name)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._send(200, {"ETag": etag, "X-Repo-Commit": COMMIT}, content)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, {"X-Error-Code": code}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
