"""The client where nobody answers, or only later, or with something else."""

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
def no_pauses(monkeypatch):
    monkeypatch.setattr(client, "PAUSES", (0.0, 0.0))


@TRANSPORTS
def test_no_server_there(rest):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(RequestError, match=r"cannot reach 127\.0\.0\.1:\d+ by (gRPC|REST)") as caught:
            client.Client(f"127.0.0.1:{held.getsockname()[1]}", rest)
    assert caught.value.code == "UNAVAILABLE" and caught.value.passing


@TRANSPORTS
def test_a_server_that_does_not_answer_in_time(rest):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RequestError, match=f"{address} did not answer within 0.2 s") as caught:
            client.Client(address, rest, timeout=0.2)
    assert (caught.value.code, caught.value.passing) == ("DEADLINE_EXCEEDED", False)


def test_a_server_that_speaks_no_http():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer():
            connection, _ = listening.accept()
            with connection:
                # Or its end would be a reset.
                connection.recv(65536)
                # What a server of HTTP/2 says first.
                connection.sendall(b"\0\0\0\4\0\0\0\0\0")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RequestError, match="answered no HTTP; is it the port of REST") as caught:
            client.Client(f"127.0.0.1:{listening.getsockname()[1]}", rest=True)
        thread.join()
    assert (caught.value.code, caught.value.passing) == ("UNKNOWN", False)


@pytest.mark.parametrize("text", ("localhost", "8500", ":8500", "localhost:", "::1:8500", "http://localhost:8501"))
def test_an_address_is_host_and_port(text):
    with pytest.raises(UserError, match="is not HOST:PORT"):
        connections.address(text)
    assert connections.address("[::1]:85") == ("::1", 85)


@contextlib.contextmanager
def stand_in(*answers):
    """Serve HTTP answers (status, text) in turn, the last one for good, and give the address and the paths asked."""
    left, asked = list(answers), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as held:
        threading.Thread(target=held.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{held.server_port}", asked
        held.shutdown()


METADATA = json.dumps({"metadata": {"signature_def": {"signature_def": {"serving_default": {
    "inputs": {"image_bytes": {"dtype": "DT_STRING"}}, "outputs": {"png_bytes": {}}}}}}})


@pytest.mark.parametrize("status", (429, 503))
def test_a_busy_server_is_asked_again_after_pauses(status, monkeypatch):
    slept = []
    monkeypatch.setattr(client, "PAUSES", (1.0, 2.0))
    monkeypatch.setattr(client.time, "sleep", slept.append)
    busy = (status, '{"error": "busy"}')
    with stand_in(busy, busy, (200, METADATA)) as (address, asked):
        client.Client(address, rest=True, model="a b", version=3).close()
    assert asked == ["/v1/models/a%20b/versions/3/metadata"] * 3
    assert len(slept) == 2 and 1 <= slept[0] <= 1.5 and 2 <= slept[1] <= 3
    with stand_in(busy) as (address, asked), pytest.raises(RequestError, match=f"HTTP {status}: busy"):
        client.Client(address, rest=True)
    assert len(asked) == 3


@pytest.mark.parametrize("status, code", ((413, "RESOURCE_EXHAUSTED"), (400, "INVALID_ARGUMENT"), (500, "INTERNAL"),
                                          (504, "DEADLINE_EXCEEDED"), (418, "UNKNOWN")))
def test_other_failures_are_not_asked_again(status, code):
    with stand_in((status, "no JSON")) as (address, asked), pytest.raises(RequestError, match="no JSON") as caught:
        client.Client(address, rest=True)
    assert len(asked) == 1 and caught.value.code == code


def test_a_server_of_something_else():
    with stand_in((200, "<html>")) as (address, _), pytest.raises(RequestError, match="answered no JSON: b'<html>'"):
        client.Client(address, rest=True)
