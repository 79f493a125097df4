"""A proxy between an S3 client and its server that breaks the requests it is told to break."""

import enum
import itertools
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Fault(enum.Enum):
    """What can go wrong with one request."""

    RESET = "the connection is reset before the server hears of the request"
    TIMEOUT = "the request is read, but neither forwarded nor ever answered"
    ERROR_500 = "500 InternalError, without asking the server"
    SLOW_DOWN = "503 SlowDown, without asking the server"
    TRUNCATE = "the connection is closed after the first half of the reply's body"
    LOST_REPLY = "the server has done it, but the connection is reset instead of the reply"
    FLIP = "one bit in the middle of the reply's body is wrong"


@dataclass(frozen=True)
class Request:
    """One request as it arrived: `path` includes the query, `number` counts from 0."""

    method: str
    path: str
    number: int


class Reply(NamedTuple):
    """An answer of the server, or one in its name."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    content: bytes


def refusal(status: int, reason: str, code: str) -> Reply:
    """The answer of an S3 server that fails or wants to be left alone."""
    content = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))]
    return Reply(status, reason, headers, content)


REFUSALS = {
    Fault.ERROR_500: refusal(500, "Internal Server Error", "InternalError"),
    Fault.SLOW_DOWN: refusal(503, "Service Unavailable", "SlowDown"),
}
Plan = Callable[[Request], Fault | None]
Match = Callable[[Request], bool]


def always(fault: Fault, match: Match = lambda _: True) -> Plan:
    """The fault in every matching request."""
    return lambda request: fault if match(request) else None


def first(count: int, fault: Fault, match: Match = lambda _: True) -> Plan:
    """The fault in the first `count` matching requests, whichever threads they come from."""
    matched = itertools.count()
    return lambda request: fault if match(request) and next(matched) < count else None


class FaultProxy(ThreadingTCPServer):
    """A context manager that listens on `endpoint` and asks `fault` what to do to each request.

    `fault` may be replaced at any time; at first nothing goes wrong. Bodies are held in memory.
    """

    request_queue_size = 128

    def __init__(self, upstream: str, fault: Plan = lambda _: None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.upstream = urlsplit(upstream).netloc
        self.fault = fault
        # Method and path with query of all requests so far.
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] | None = set()
        self._listener = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._listener.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, break all connections, wait for their threads; may be called twice."""
        self.shutdown()
        self._listener.join()
        with self._lock:
            connections, self._open = self._open or set(), None
            for connection in connections:
                # Wakes the thread that reads from it, which then closes it.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def note(self, method: str, path: str) -> Request:
        """Remember and number a request."""
        with self._lock:
            self.requests.append((method, path))
            return Request(method, path, len(self.requests) - 1)

    @contextmanager
    def watched(self, connection: socket.socket) -> Iterator[None]:
        """Let `close` break a connection; ConnectionError when it is too late for that."""
        with self._lock:
            if self._open is None:
                raise ConnectionAbortedError("the proxy is closed")
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                if self._open is not None:
                    self._open.remove(connection)

    def shutdown_request(self, request: Any) -> None:
        """Only close: the usual shutdown sends an end before the reset that a fault asks for."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show only mistakes of this module or of a plan: connections are meant to break."""
        if not isinstance(sys.exception(), OSError | HTTPException):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection from a client; request headers pass unchanged, for the signature's sake."""

    server: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with self.server.watched(self.connection):
            super().handle()

    def answer(self) -> None:
        """Read a request, ask for its fault, and answer it or not."""
        path = self.requestline.split()[1]
        fault = self.server.fault(self.server.note(self.command, path))
        if fault is Fault.RESET:
            return self.reset()
        chunked = "Transfer-Encoding" in self.headers
        length = int(self.headers.get("Content-Length", 0))
        body = b"".join(self.read_chunks()) if chunked else self.read_exactly(length)
        if fault is Fault.TIMEOUT:
            self.rfile.read()
            raise ConnectionError("the client has gone")
        reply = REFUSALS[fault] if fault in REFUSALS else self.forward(path, body, chunked)
        if fault is Fault.LOST_REPLY:
            return self.reset()
        content = bytearray(b"" if self.command == "HEAD" else reply.content)
        if fault is Fault.FLIP and content:
            content[len(content) // 2] ^= 1
        if fault is Fault.TRUNCATE:
            del content[len(content) // 2 :]
        # Unlike `send_response`, which would add headers of its own.
        self.send_response_only(reply.status, reply.reason)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection |= fault is Fault.TRUNCATE

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def read_exactly(self, size: int) -> bytes:
        """That many bytes; ConnectionError when the connection ends within them."""
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionError("the connection ended within a body")
        return content

    def read_chunks(self) -> Iterator[bytes]:
        """The body of a request that comes in chunks, without the frames around them."""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.read_exactly(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def forward(self, path: str, body: bytes, chunked: bool) -> Reply:
        """What the server answers, over a connection of its own."""
        with closing(HTTPConnection(self.server.upstream)) as upstream:
            upstream.connect()
            with self.server.watched(upstream.sock):
                upstream.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    upstream.putheader(name, value)
                # A server that refuses need not have read everything.
                with suppress(ConnectionError):
                    upstream.endheaders([body], encode_chunked=chunked)
                with upstream.getresponse() as reply:
                    content = reply.read()
        bodiless = self.command == "HEAD" or reply.status in (204, 304)
        if not bodiless and "Content-Length" not in reply.headers:
            # It came in chunks or lasted until the end; this way half of it can be recognised.
            del reply.headers["Transfer-Encoding"]
            reply.headers["Content-Length"] = str(len(content))
        return Reply(reply.status, reply.reason, reply.headers.items(), content)

    def reset(self) -> None:
        """Let the connection end with a reset, which it does when its socket is closed."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
