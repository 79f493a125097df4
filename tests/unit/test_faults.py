"""The proxy breaks exactly what it is told to break, or tests of retries would prove nothing."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import botocore.exceptions as errors
import botocore.session
import pytest
from urllib3.exceptions import ProtocolError

from tests.support import s3
from tests.support.faults import Fault, FaultProxy, Request, always, first

CONTENT = os.urandom(5_000_001)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    server = s3.start(tmp_path_factory.mktemp("s3"))
    try:
        server.make_bucket("faults")
        with closing(server.client()) as client:
            put(client, "there")
        yield server
    finally:
        server.stop()


@pytest.fixture
def proxy(server: s3.Server) -> Iterator[FaultProxy]:
    threads = threading.active_count()
    with FaultProxy(server.endpoint) as proxy:
        yield proxy
    assert threading.active_count() == threads


@pytest.fixture
def client(server: s3.Server, proxy: FaultProxy) -> Iterator[Any]:
    # Checksums only where S3 demands them: a flipped bit is to come through.
    options = {"read_timeout": 2, "response_checksum_validation": "when_required"}
    with closing(server.client(proxy.endpoint, **options)) as client:
        yield client


@pytest.fixture
def direct(server: s3.Server) -> Iterator[Any]:
    with closing(server.client()) as client:
        yield client


def put(client: Any, key: str, content: bytes = CONTENT) -> None:
    client.put_object(Bucket="faults", Key=key, Body=content)


def get(client: Any, key: str) -> bytes:
    with client.get_object(Bucket="faults", Key=key)["Body"] as body:
        return body.read()


def is_whole(client: Any, key: str) -> bool:
    # Not an assertion of its own: pytest would take minutes to explain how 5 MB differ.
    return get(client, key) == CONTENT


def exists(client: Any, key: str) -> bool:
    return "Contents" in client.list_objects_v2(Bucket="faults", Prefix=key)


def is_put(request: Request) -> bool:
    return request.method == "PUT"


def test_nothing_is_harmed_without_a_fault(client: Any, proxy: FaultProxy) -> None:
    put(client, "fine")
    assert is_whole(client, "fine")
    assert client.head_object(Bucket="faults", Key="fine")["ContentLength"] == len(CONTENT)
    assert exists(client, "fine")
    client.delete_object(Bucket="faults", Key="fine")
    assert not exists(client, "fine")
    listing = ("GET", "/faults?list-type=2&prefix=fine&encoding-type=url")
    methods = ("PUT", "GET", "HEAD", "DELETE")
    expected = [(method, "/faults/fine") for method in methods]
    assert proxy.requests == [*expected[:3], listing, expected[3], listing]


def test_many_threads_may_use_it_at_once(client: Any, proxy: FaultProxy) -> None:
    proxy.fault = first(5, Fault.SLOW_DOWN, is_put)

    def succeeds(number: int) -> bool:
        try:
            put(client, f"many/{number}", b"%d" % number)
        except errors.ClientError:
            return False
        return get(client, f"many/{number}") == b"%d" % number

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(succeeds, range(40))) == 35
    assert sum(method == "PUT" for method, _ in proxy.requests) == 40


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fault.RESET, errors.HTTPClientError), (Fault.TIMEOUT, errors.ReadTimeoutError)],
)
def test_a_broken_request_never_reaches_the_server(
    fault: Fault, error: type[Exception], client: Any, direct: Any, proxy: FaultProxy
) -> None:
    proxy.fault = always(fault, is_put)
    with pytest.raises(error):
        put(client, "broken")
    assert not exists(direct, "broken")
    assert is_whole(client, "there")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [(Fault.ERROR_500, 500, "InternalError"), (Fault.SLOW_DOWN, 503, "SlowDown")],
)
def test_a_refusal_is_the_error_of_s3(
    fault: Fault, status: int, code: str, client: Any, direct: Any, proxy: FaultProxy
) -> None:
    proxy.fault = first(1, fault)
    with pytest.raises(errors.ClientError) as refused:
        put(client, code)
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert not exists(direct, code)
    put(client, code)
    assert is_whole(direct, code)


def test_a_refused_head_has_no_body(client: Any, proxy: FaultProxy) -> None:
    proxy.fault = first(1, Fault.SLOW_DOWN)
    with pytest.raises(errors.ClientError, match="503"):
        client.head_object(Bucket="faults", Key="there")
    assert client.head_object(Bucket="faults", Key="there")["ContentLength"] == len(CONTENT)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.LOST_REPLY])
def test_a_reset_is_more_than_the_end_of_a_connection(fault: Fault, proxy: FaultProxy) -> None:
    proxy.fault = always(fault)
    address = ("127.0.0.1", proxy.server_address[1])
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /faults/there HTTP/1.1\r\nHost: s3\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_lost_reply_hides_a_success(client: Any, direct: Any, proxy: FaultProxy) -> None:
    proxy.fault = first(1, Fault.LOST_REPLY)
    with pytest.raises(errors.HTTPClientError):
        put(client, "lost")
    assert is_whole(direct, "lost")


def test_a_truncated_reply_is_half_of_what_it_promises(client: Any, proxy: FaultProxy) -> None:
    proxy.fault = always(Fault.TRUNCATE)
    reply = client.get_object(Bucket="faults", Key="there")
    assert reply["ContentLength"] == len(CONTENT)
    with reply["Body"] as body:
        half = body.read(len(CONTENT) // 2)
        assert len(half) == len(CONTENT) // 2
        assert CONTENT.startswith(half)
        with pytest.raises((errors.IncompleteReadError, ProtocolError)):
            body.read()


def test_one_bit_flips(client: Any, proxy: FaultProxy) -> None:
    proxy.fault = first(1, Fault.FLIP)
    wrong = get(client, "there")
    assert len(wrong) == len(CONTENT)
    difference = int.from_bytes(wrong) ^ int.from_bytes(CONTENT)
    assert difference.bit_count() == 1
    assert is_whole(client, "there")


def test_chunks_and_several_requests_on_one_connection(proxy: FaultProxy) -> None:
    """Without a signature the server refuses, but only after it has understood the request."""
    with closing(HTTPConnection(proxy.endpoint.removeprefix("http://"))) as connection:
        for _ in range(3):
            chunks = iter([b"a" * 70_000, b"b"])
            connection.request(
                "PUT",
                "/faults/x?a=%20b",
                chunks,
                encode_chunked=True,
                headers={"Transfer-Encoding": "chunked"},
            )
            first_socket = connection.sock
            with connection.getresponse() as reply:
                assert reply.status == 403
                assert b"AccessDenied" in reply.read()
            assert connection.sock is first_socket
    assert proxy.requests == [("PUT", "/faults/x?a=%20b")] * 3


def test_closing_ends_a_request_that_nobody_answers(server: s3.Server) -> None:
    with (
        FaultProxy(server.endpoint, always(Fault.TIMEOUT)) as proxy,
        ThreadPoolExecutor(1) as pool,
        closing(server.client(proxy.endpoint)) as client,
    ):
        waiting = pool.submit(get, client, "there")
        while not proxy.requests:
            time.sleep(0.01)
        proxy.close()
        with pytest.raises(errors.HTTPClientError):
            waiting.result(10)


def test_the_environment_is_enough_for_a_client(
    server: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    session = botocore.session.Session()
    with closing(session.create_client("s3", endpoint_url=server.endpoint)) as client:
        assert exists(client, "there")
