"""Generate load: each client sends its next request when the previous one is answered.

Clients are threads in a few processes. A Python process sends about 2000 small requests a second, whatever its number
of threads, and a server may answer more; one process for each client would cost more context switches than the requests
themselves. Requests are bytes prepared in advance, and responses are not decoded. Neither TensorFlow nor the stubs are
imported.
"""

import http.client
import multiprocessing
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

import grpc

from kseg.errors import UserError
from serving.clients.connections import STATUSES, parse_address

PREDICT = "/tensorflow.serving.PredictionService/Predict"
# Seconds between a failure and the next request. Without it a client would send as fast as the server refuses.
FAILURE_PAUSE = 0.05
# Seconds between two progress reports of a process.
REPORT_INTERVAL = 0.5
# Above this fraction of busy time a process may have slowed its clients down.
BUSY_LIMIT = 0.8


class Target(NamedTuple):
    """Destination of the requests: HOST:PORT of gRPC, or of REST with a `path`.

    `certificates` (PEM) enable TLS. `deadline` is the number of seconds that a request may take.
    """

    server: str
    path: str
    deadline: float
    certificates: bytes | None = None


class Order(NamedTuple):
    """Work for one process: run a number of clients until `end`, and count responses after `begin`.

    Both times are values of time.monotonic().
    """

    clients: int
    begin: float
    end: float


class Load(NamedTuple):
    """Results of `clients` clients over `seconds` seconds.

    Attributes:
        latencies: Seconds from sending to the whole response, for each answered request.
        failures: Number of failed requests by status.
        messages: An example message for each status.
        busy: Fraction of the time that the busiest client process used a CPU. Above BUSY_LIMIT the server might have
            answered more.
    """

    clients: int
    seconds: float
    latencies: list[float]
    failures: Counter
    messages: dict[str, str]
    busy: float

    @property
    def requests(self) -> int:
        """Return the number of finished requests, answered or failed."""
        return len(self.latencies) + self.failures.total()

    @property
    def rate(self) -> float:
        """Return the answered requests per second."""
        return len(self.latencies) / self.seconds


class Clients:
    """Processes of clients that all cycle through the same requests, each client from a different start.

    Call `close` when done, or use `clients`.
    """

    def __init__(self, target: Target, requests: Sequence[bytes], processes: int):
        # gRPC runs threads, and a process with threads must not be forked.
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for index in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_load, args=(theirs, target, requests, index), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            _receive(pipe)

    def run(
        self,
        clients: int,
        seconds: float,
        warm_up: float = 0.0,
        progress: Callable[[float, int, int], None] = lambda *_: None,
    ) -> Load:
        """Run a number of clients for `warm_up` seconds, then for `seconds` seconds that count.

        `progress` receives the counted seconds so far, and the numbers of answers and failures in them.
        """
        begin = time.monotonic() + warm_up
        clients_by_pipe = {pipe: len(range(index, clients, len(self.pipes))) for index, pipe in enumerate(self.pipes)}
        waiting = {pipe for pipe, number in clients_by_pipe.items() if number}
        for pipe, number in clients_by_pipe.items():
            if number:
                pipe.send(Order(number, begin, begin + seconds))
        total = Load(clients, seconds, [], Counter(), {}, 0.0)
        counts = dict.fromkeys(waiting, (0, 0))
        while waiting:
            for pipe in wait(waiting):
                message = _receive(pipe)
                if isinstance(message, Load):
                    waiting.discard(pipe)
                    total.latencies.extend(message.latencies)
                    total.failures.update(message.failures)
                    total.messages.update(message.messages)
                    total = total._replace(busy=max(total.busy, message.busy))
                else:
                    counts[pipe] = message
            elapsed = min(time.monotonic() - begin, seconds)
            if elapsed > 0 and waiting:
                progress(elapsed, *map(sum, zip(*counts.values())))
        return total

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()


@contextmanager
def clients(target: Target, requests: Sequence[bytes], processes: int) -> Iterator[Clients]:
    """Start processes of clients, and stop them at the end."""
    started = Clients(target, requests, processes)
    try:
        yield started
    finally:
        started.close()


def _receive(pipe: Connection):
    try:
        return pipe.recv()
    except EOFError:
        raise UserError("a client process stopped unexpectedly; its output above shows the reason") from None


def serve_load(pipe: Connection, target: Target, requests: Sequence[bytes], index: int) -> None:
    """Run a client process: answer each Order with counts (answers, failures), and a Load at its end."""
    # Ctrl-C reaches this process too, but its parent stops it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    senders: list[Callable[[bytes], None]] = []
    pipe.send("ready")
    try:
        while True:
            order = pipe.recv()
            while len(senders) < order.clients:
                senders.append((rest_sender if target.path else grpc_sender)(target))
            pipe.send(_run_order(pipe, order, senders, requests, index))
    # The parent closed the pipe or exited.
    except (EOFError, BrokenPipeError):
        return


def _run_order(pipe: Connection, order: Order, senders: list, requests: Sequence[bytes], index: int) -> Load:
    loads = [Load(1, order.end - order.begin, [], Counter(), {}, 0.0) for _ in range(order.clients)]
    # Clients that start at the same image would all send the largest one at the same time.
    threads = [
        threading.Thread(
            target=_run_client, args=(senders[number], requests, 7 * number + index, order, load), daemon=True
        )
        for number, load in enumerate(loads)
    ]
    cpu, started = time.process_time(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(REPORT_INTERVAL)
            pipe.send((sum(len(load.latencies) for load in loads), sum(load.failures.total() for load in loads)))
    busy = (time.process_time() - cpu) / max(time.monotonic() - started, 1e-9)
    total = Load(order.clients, order.end - order.begin, [], Counter(), {}, busy)
    for load in loads:
        total.latencies.extend(load.latencies)
        total.failures.update(load.failures)
        total.messages.update(load.messages)
    return total


def _run_client(
    send: Callable[[bytes], None], requests: Sequence[bytes], position: int, order: Order, load: Load
) -> None:
    while (sent := time.monotonic()) < order.end:
        try:
            send(requests[position % len(requests)])
            failure = None
        except LoadFailure as error:
            failure = error
        now = time.monotonic()
        # A request counts if it finishes within the period, whenever it began. Counting by its start would lose the
        # requests still running at the end, and so underestimate the rate.
        if order.begin < now <= order.end:
            if failure:
                load.failures[failure.code] += 1
                load.messages[failure.code] = str(failure)
            else:
                load.latencies.append(now - sent)
        if failure:
            time.sleep(FAILURE_PAUSE)
        position += 1


class LoadFailure(Exception):
    """A failed request; `code` is the name of its gRPC status."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def grpc_sender(target: Target) -> Callable[[bytes], None]:
    """Return a function that sends a PredictRequest on its own connection.

    The function waits for the response, and raises LoadFailure.
    """
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # Otherwise all channels of a process share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    channel = (
        grpc.secure_channel(target.server, grpc.ssl_channel_credentials(target.certificates), options)
        if target.certificates
        else grpc.insecure_channel(target.server, options)
    )
    call = channel.unary_unary(PREDICT)

    def send(request: bytes) -> None:
        try:
            call(request, timeout=target.deadline)
        except grpc.RpcError as error:
            raise LoadFailure(error.code().name, error.details()) from None

    return send


def rest_sender(target: Target) -> Callable[[bytes], None]:
    """Return a function that posts JSON on its own connection.

    The function waits for the response, and raises LoadFailure.
    """
    connection = http.client.HTTPConnection(*parse_address(target.server), timeout=target.deadline)

    def send(request: bytes) -> None:
        try:
            connection.request("POST", target.path, request, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        except TimeoutError:
            connection.close()
            raise LoadFailure("DEADLINE_EXCEEDED", f"no answer within {target.deadline:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise LoadFailure("UNAVAILABLE", str(error) or type(error).__name__) from None
        if response.status != 200:
            raise LoadFailure(STATUSES.get(response.status, "UNKNOWN"), text[:300].decode(errors="replace"))

    return send
