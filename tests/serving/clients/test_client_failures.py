"""Test the client without a server, with a busy server, and with a server of another protocol."""

import contextlib
import http.server
import json
import socket
import threading

import pytest

from kseg.errors import UserError
from serving.clients import client, connections
from serving.clients.connections import RequestError

TRANSPORTS = pytest.mark.parametrize("rest", (False, True), ids=("grpc", "rest"))


@pytest.fixture(autouse=True)
def no_retry_delays(monkeypatch):
    monkeypatch.setattr(client, "RETRY_DELAYS", (0.0, 0.0))


@TRANSPORTS
def test_absent_server_is_unavailable(rest):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(RequestError, match=r"127\.0\.0\.1:\d+ over (gRPC|REST)") as caught:
            client.Client(f"127.0.0.1:{unused.getsockname()[1]}", rest)
    assert caught.value.code == "UNAVAILABLE" and caught.value.retryable


@TRANSPORTS
def test_silent_server_exceeds_the_timeout(rest):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RequestError, match=f"{address} .* 0.2 s") as caught:
            client.Client(address, rest, timeout=0.2)
    assert (caught.value.code, caught.value.retryable) == ("DEADLINE_EXCEEDED", False)


def test_port_of_another_protocol_is_reported():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer():
            connection, _ = listening.accept()
            with connection:
                # Closing the socket with unread data would reset the connection.
                connection.recv(65536)
                # This is the first frame of an HTTP/2 server.
                connection.sendall(b"\0\0\0\4\0\0\0\0\0")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RequestError, match="HTTP.*REST port") as caught:
            client.Client(f"127.0.0.1:{listening.getsockname()[1]}", rest=True)
        thread.join()
    assert (caught.value.code, caught.value.retryable) == ("UNKNOWN", False)


@pytest.mark.parametrize("text", ("localhost", "8500", ":8500", "localhost:", "::1:8500", "http://localhost:8501"))
def test_address_must_be_host_and_port(text):
    with pytest.raises(UserError, match="HOST:PORT"):
        connections.parse_address(text)
    assert connections.parse_address("[::1]:85") == ("::1", 85)


@contextlib.contextmanager
def http_server(*answers):
    """Serve HTTP answers (status, text) in turn, repeating the last one; yield the address and the requested paths."""
    remaining, paths = list(answers), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            status, text = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", paths
        server.shutdown()


METADATA = json.dumps(
    {
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {"inputs": {"image_bytes": {"dtype": "DT_STRING"}}, "outputs": {"png_bytes": {}}}
                }
            }
        }
    }
)


@pytest.mark.parametrize("status", (429, 503))
def test_busy_server_is_retried_after_delays(status, monkeypatch):
    delays = []
    monkeypatch.setattr(client, "RETRY_DELAYS", (1.0, 2.0))
    monkeypatch.setattr(client.time, "sleep", delays.append)
    busy = (status, '{"error": "busy"}')
    with http_server(busy, busy, (200, METADATA)) as (address, paths):
        client.Client(address, rest=True, model="a b", version=3).close()
    assert paths == ["/v1/models/a%20b/versions/3/metadata"] * 3
    assert len(delays) == 2 and 1 <= delays[0] <= 1.5 and 2 <= delays[1] <= 3
    with http_server(busy) as (address, paths), pytest.raises(RequestError, match=f"HTTP {status}: busy"):
        client.Client(address, rest=True)
    assert len(paths) == 3


@pytest.mark.parametrize(
    "status, code",
    (
        (413, "RESOURCE_EXHAUSTED"),
        (400, "INVALID_ARGUMENT"),
        (500, "INTERNAL"),
        (504, "DEADLINE_EXCEEDED"),
        (418, "UNKNOWN"),
    ),
)
def test_other_failures_are_not_retried(status, code):
    with http_server((status, "no JSON")) as (address, paths), pytest.raises(RequestError, match="no JSON") as caught:
        client.Client(address, rest=True)
    assert len(paths) == 1 and caught.value.code == code


def test_answer_that_is_not_json_is_reported():
    with http_server((200, "<html>")) as (address, _), pytest.raises(RequestError, match="JSON: b'<html>'"):
        client.Client(address, rest=True)
