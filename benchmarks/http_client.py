"""A client of ``/v1/completions`` that takes little time of its own: HTTP/1.1 on bare sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Timed:
    """A streamed answer: when its first and last text came, in seconds since it was asked for."""

    first: float
    last: float
    num_tokens: int


class Connection:
    """One connection, kept open; one request at a time.

    Args:
        url: of the server, e.g. ``http://127.0.0.1:8020``.
        headers: sent with every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._is_tls = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._head = f"Host: {parts.netloc}\r\nContent-Type: application/json\r\n{extra}"

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(
            self._host, self._port, ssl=self._is_tls or None
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    async def get(self, path: str) -> str:
        """Return what is at ``path``."""
        return b"".join([piece async for piece in self._exchange("GET", path, b"")]).decode()

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a whole answer."""
        pieces = [piece async for piece in self._ask(body)]
        answer: dict[str, Any] = json.loads(b"".join(pieces))
        return answer

    async def stream(self, body: Mapping[str, Any]) -> Timed:
        """Read a streamed answer to its end, and return when it came."""
        asked, first, last, num_tokens = time.perf_counter(), 0.0, 0.0, 0
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async for event in _events(self._ask({**body, **options})):
            if event.get("choices"):
                last = time.perf_counter() - asked
                first = first or last
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
        return Timed(first, last, num_tokens)

    def _ask(self, body: Mapping[str, Any]) -> AsyncIterator[bytes]:
        return self._exchange("POST", "/v1/completions", json.dumps(body).encode())

    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncIterator[bytes]:
        """Send a request and yield the answer's body as it comes."""
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        if "\r\ncontent-length:" in answer:
            size = int(answer.split("\r\ncontent-length:")[1].split("\r\n")[0])
            pieces = _once(await self._reader.readexactly(size))
        else:
            pieces = self._chunks()
        if not answer.startswith("http/1.1 200"):
            text = b"".join([piece async for piece in pieces]).decode()
            raise RuntimeError(f"{answer.splitlines()[0]}: {text}")
        async for piece in pieces:
            yield piece

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readline(), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()


async def _once(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of each server-sent event."""
    rest = b""
    async for piece in pieces:
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            data = block.removeprefix(b"data: ")
            if data != b"[DONE]":
                yield json.loads(data)
