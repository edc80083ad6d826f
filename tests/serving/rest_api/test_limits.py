"""The REST API's limits, with models that answer when the test lets them: queues, time, and clients that vanish."""

import socket
import time

import pytest

from serving.rest_api import app
from tests.helpers.rest_clients import Client, slow_server


def started(client, path="/v1/models/slow:predict"):
    """Send a request whose answer is not awaited."""
    client.connection.request("POST", path, b'{"instances":[1.0]}')
    return client


def eventually(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def counted(server, status):
    return f'request_count{{model_name="slow",status="{status}"}} 1.0'.encode() in server.monitor.text()


@pytest.mark.parametrize(("threads", "running"), [(1, 8), (4, 1)], ids=["all threads busy", "all places taken"])
def test_too_many_requests_are_refused_while_probes_are_answered(threads, running):
    with slow_server(running, rest_api_num_threads=threads, max_waiting_requests=1) as server:
        first = started(Client(server.port))
        assert server.model.begun.acquire(timeout=30)
        second = started(Client(server.port))
        third = Client(server.port)

        def refused():
            status, answer = third.post("/v1/models/slow:predict", {"instances": [1.0]})
            return status == 429 and "The server is busy" in answer["error"]

        # What comes before the second waits would wait itself.
        eventually(lambda: server.held.requests == 2)
        if threads > 1:
            eventually(lambda: b"kseg_waiting_requests 1.0" in server.monitor.text())
        assert refused() and counted(server, "RESOURCE_EXHAUSTED")
        assert third.ask("GET", "/v1/models/slow/metadata")[0] == 200
        server.model.go.set()
        for each in (first, second):
            assert each.connection.getresponse().read() == b'{"predictions":[2.0]}'
        assert third.post("/v1/models/slow:predict", {"instances": [3]}) == (200, {"predictions": [6.0]})


def test_bytes_that_wait_are_limited():
    with slow_server(1, rest_api_num_threads=1, max_request_bytes=1000, max_waiting_bytes=500) as server:
        first = started(Client(server.port))
        assert server.model.begun.acquire(timeout=30)
        waiting = Client(server.port)
        waiting.connection.request("POST", "/v1/models/slow:predict", b'{"instances":[1.0]}'.ljust(1000))
        eventually(lambda: server.held.bytes == 1019)
        status, answer = Client(server.port).post("/v1/models/slow:predict", b" " * 800)
        assert status == 429 and "hold 1819 bytes, above 1500" in answer["error"]
        server.model.go.set()
        assert first.connection.getresponse().status == waiting.connection.getresponse().status == 200


def test_the_time_limit_becomes_the_models_deadline_and_ends_waiting():
    with slow_server(1, rest_api_num_threads=2, rest_api_timeout_in_ms=1000) as server:
        before = time.monotonic()
        first = started(Client(server.port))
        assert server.model.begun.acquire(timeout=30)
        assert before + 1 <= server.model.deadlines[0] <= time.monotonic() + 1
        status, answer = Client(server.port).post("/v1/models/slow:predict", {"instances": [1.0]})
        assert status == 504 and "Timed out" in answer["error"] and counted(server, "DEADLINE_EXCEEDED")
        server.model.go.set()
        assert first.connection.getresponse().status == 200


def test_a_body_that_does_not_come_is_given_up():
    with slow_server(1, rest_api_timeout_in_ms=200) as server, socket.create_connection(
            ("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_clients_that_hang_up_do_no_harm():
    with slow_server(1, rest_api_num_threads=1) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        eventually(lambda: counted(server, "CANCELLED"))
        running = started(Client(server.port))
        assert server.model.begun.acquire(timeout=30)
        waiting = started(Client(server.port), "/v1/models/other:predict")
        eventually(lambda: server.held.requests == 2)
        # One in the model, one that waits for the only thread.
        for each in (running, waiting):
            each.connection.close()
        eventually(lambda: b'{model_name="other",status="CANCELLED"} 1.0' in server.monitor.text())
        server.model.go.set()
        status, _ = Client(server.port).post("/v1/models/slow:predict", {"instances": [2.0]})
        assert status == 200 and server.held.requests == server.held.bytes == 0
        # What nobody waited for was not run.
        assert server.model.runs == 2


def test_pages_of_other_origins_only_where_asked_for():
    with slow_server(1) as server:
        client = Client(server.port)
        client.ask("GET", "/v1/models/slow")
        assert "Access-Control-Allow-Origin" not in client.headers
        assert client.ask("OPTIONS", "/v1/models/slow:predict")[0] == 400
    with slow_server(1, rest_api_enable_cors_support=True) as server:
        client = Client(server.port)
        for method, path, expected in (("OPTIONS", "/v1/models/slow:predict", 200), ("GET", "/v1/models/slow", 200),
                                       ("POST", "/v1/models/slow:nothing", 400)):
            status, _ = client.ask(method, path)
            assert status == expected and {name: client.headers[name] for name in app.CORS} == {
                "Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "POST, GET",
                "Access-Control-Allow-Headers": "Content-Type"}


def test_what_nobody_foresaw_is_one_requests_failure(caplog):
    with slow_server(1) as server:
        server.model.go.set()
        server.model.signatures["broken"] = None
        client = Client(server.port)
        status, answer = client.post("/v1/models/slow:predict", {"signature_name": "broken", "instances": [1.0]})
        assert status == 500 and answer["error"].startswith("AttributeError: ") and counted(server, "INTERNAL")
        assert "Traceback" in caplog.text
        assert client.post("/v1/models/slow:predict", {"instances": [1.0]})[0] == 200
