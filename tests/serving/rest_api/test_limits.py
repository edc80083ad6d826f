"""Test the REST API's limits of queues and time, and clients that disconnect, with a blocking model."""

import socket
import time

import pytest

from serving.rest_api import app
from tests.helpers.rest_clients import Client, blocking_server


def start_request(client, path="/v1/models/slow:predict"):
    """Send a request without waiting for the response."""
    client.connection.request("POST", path, b'{"instances":[1.0]}')
    return client


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def has_counted(server, status):
    return f'request_count{{model_name="slow",status="{status}"}} 1.0'.encode() in server.monitor.text()


@pytest.mark.parametrize(("threads", "running"), [(1, 8), (4, 1)], ids=["all threads are busy", "the model is busy"])
def test_excess_requests_are_refused_while_probes_are_answered(threads, running):
    with blocking_server(running, rest_api_num_threads=threads, max_waiting_requests=1) as server:
        first = start_request(Client(server.port))
        assert server.model.begun.acquire(timeout=30)
        second = start_request(Client(server.port))
        third = Client(server.port)

        def refused():
            status, response = third.post("/v1/models/slow:predict", {"instances": [1.0]})
            return status == 429 and "The server is busy" in response["error"]

        # A third request sent before the second one waits would take its position.
        wait_until(lambda: server.intake.requests == 2)
        if threads > 1:
            wait_until(lambda: b"kseg_waiting_requests 1.0" in server.monitor.text())
        assert refused() and has_counted(server, "RESOURCE_EXHAUSTED")
        assert third.request("GET", "/v1/models/slow/metadata")[0] == 200
        server.model.go.set()
        for client in (first, second):
            assert client.connection.getresponse().read() == b'{"predictions":[2.0]}'
        assert third.post("/v1/models/slow:predict", {"instances": [3]}) == (200, {"predictions": [6.0]})


def test_bytes_of_waiting_requests_are_limited():
    with blocking_server(1, rest_api_num_threads=1, max_request_bytes=1000, max_waiting_bytes=500) as server:
        first = start_request(Client(server.port))
        assert server.model.begun.acquire(timeout=30)
        waiting = Client(server.port)
        waiting.connection.request("POST", "/v1/models/slow:predict", b'{"instances":[1.0]}'.ljust(1000))
        wait_until(lambda: server.intake.bytes == 1019)
        status, response = Client(server.port).post("/v1/models/slow:predict", b" " * 800)
        assert status == 429 and "hold 1819 bytes, above 1500" in response["error"]
        server.model.go.set()
        assert first.connection.getresponse().status == waiting.connection.getresponse().status == 200


def test_timeout_is_the_models_deadline_and_limits_the_wait():
    with blocking_server(1, rest_api_num_threads=2, rest_api_timeout_in_ms=1000) as server:
        before = time.monotonic()
        first = start_request(Client(server.port))
        assert server.model.begun.acquire(timeout=30)
        assert before + 1 <= server.model.deadlines[0] <= time.monotonic() + 1
        status, response = Client(server.port).post("/v1/models/slow:predict", {"instances": [1.0]})
        assert status == 504 and "Timed out" in response["error"] and has_counted(server, "DEADLINE_EXCEEDED")
        server.model.go.set()
        assert first.connection.getresponse().status == 200


def test_incomplete_body_times_out():
    with (
        blocking_server(1, rest_api_timeout_in_ms=200) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection,
    ):
        connection.sendall(b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_disconnected_clients_free_their_resources():
    with blocking_server(1, rest_api_num_threads=1) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        wait_until(lambda: has_counted(server, "CANCELLED"))
        running = start_request(Client(server.port))
        assert server.model.begun.acquire(timeout=30)
        waiting = start_request(Client(server.port), "/v1/models/other:predict")
        wait_until(lambda: server.intake.requests == 2)
        # The first request runs in the model, the second one waits for the only thread.
        for client in (running, waiting):
            client.connection.close()
        wait_until(lambda: b'{model_name="other",status="CANCELLED"} 1.0' in server.monitor.text())
        server.model.go.set()
        status, _ = Client(server.port).post("/v1/models/slow:predict", {"instances": [2.0]})
        assert status == 200 and server.intake.requests == server.intake.bytes == 0
        # The waiting request was never run.
        assert server.model.runs == 2


def test_cors_headers_are_sent_only_if_enabled():
    with blocking_server(1) as server:
        client = Client(server.port)
        client.request("GET", "/v1/models/slow")
        assert "Access-Control-Allow-Origin" not in client.headers
        assert client.request("OPTIONS", "/v1/models/slow:predict")[0] == 400
    with blocking_server(1, rest_api_enable_cors_support=True) as server:
        client = Client(server.port)
        for method, path, expected in (
            ("OPTIONS", "/v1/models/slow:predict", 200),
            ("GET", "/v1/models/slow", 200),
            ("POST", "/v1/models/slow:nothing", 400),
        ):
            status, _ = client.request(method, path)
            assert status == expected and {name: client.headers[name] for name in app.CORS} == {
                "Access-Control-Allow-Origin": "*",
                "Access-Control-Allow-Methods": "POST, GET",
                "Access-Control-Allow-Headers": "Content-Type",
            }


def test_unexpected_exception_fails_only_its_request(caplog):
    with blocking_server(1) as server:
        server.model.go.set()
        server.model.signatures["broken"] = None
        client = Client(server.port)
        status, response = client.post("/v1/models/slow:predict", {"signature_name": "broken", "instances": [1.0]})
        assert status == 500 and response["error"].startswith("AttributeError: ") and has_counted(server, "INTERNAL")
        assert "Traceback" in caplog.text
        assert client.post("/v1/models/slow:predict", {"instances": [1.0]})[0] == 200
