"""The clients of a load test: each sends its next request when the answer to the last has come.

They are threads, spread over a few processes. A process of Python sends some 2000 small requests a second, whatever
number of threads it has, and a server may answer more; a process for each client would cost more to switch between than
the requests themselves. Requests are bytes that were made beforehand, and answers are not looked into. Neither
TensorFlow nor the stubs are imported.
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
from serving.clients.connections import STATUSES, address

PREDICT = "/tensorflow.serving.PredictionService/Predict"
# Between a failure and the next request: a server that refuses is not asked as fast as it can refuse.
PAUSE = 0.05
# Between two reports of a process.
REPORT = 0.5
# Clients that keep a process busier than this might have sent more, had it been less busy.
LIMIT = 0.8


class Target(NamedTuple):
    """Where requests go: HOST:PORT of gRPC, or with `path` of REST; `certificates` (PEM) mean TLS.

    A request may take `deadline` seconds.
    """

    server: str
    path: str
    deadline: float
    certificates: bytes | None = None


class Order(NamedTuple):
    """Work for a process: so many clients, from now until `end`; answers after `begin` count (time.monotonic())."""

    clients: int
    begin: float
    end: float


class Load(NamedTuple):
    """What clients saw within `seconds`: the seconds each answer took, failures by status, an example of each.

    `busy` is the share of the time that the busiest process of clients worked; above LIMIT the server might have
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
        """All that ended, in whatever way."""
        return len(self.latencies) + self.failures.total()

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


class Clients:
    """Processes of clients that send the same requests, each client from another one on; close them at the end."""

    def __init__(self, target: Target, requests: Sequence[bytes], processes: int):
        # Not forked: a process with threads, which gRPC has, cannot be.
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for number in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, target, requests, number), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            _receive(pipe)

    def run(self, clients: int, seconds: float, warm_up: float = 0.0,
            progress: Callable[[float, int, int], None] = lambda *_: None) -> Load:
        """Have so many clients ask for `warm_up` seconds, and then for `seconds` that count.

        `progress` is told the seconds passed of those that count, answers and failures in them.
        """
        begin = time.monotonic() + warm_up
        shares = [len(range(number, clients, len(self.pipes))) for number in range(len(self.pipes))]
        waiting = {pipe for pipe, share in zip(self.pipes, shares) if share}
        for pipe, share in zip(self.pipes, shares):
            if share:
                pipe.send(Order(share, begin, begin + seconds))
        found = Load(clients, seconds, [], Counter(), {}, 0.0)
        counts = {pipe: (0, 0) for pipe in waiting}
        while waiting:
            for pipe in wait(waiting):
                answer = _receive(pipe)
                if isinstance(answer, Load):
                    waiting.discard(pipe)
                    found.latencies.extend(answer.latencies)
                    found.failures.update(answer.failures)
                    found.messages.update(answer.messages)
                    found = found._replace(busy=max(found.busy, answer.busy))
                else:
                    counts[pipe] = answer
            passed = min(time.monotonic() - begin, seconds)
            if passed > 0 and waiting:
                progress(passed, *map(sum, zip(*counts.values())))
        return found

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()


@contextmanager
def clients(target: Target, requests: Sequence[bytes], processes: int) -> Iterator[Clients]:
    """Start processes of clients, and end them."""
    started = Clients(target, requests, processes)
    try:
        yield started
    finally:
        started.close()


def _receive(pipe: Connection):
    try:
        return pipe.recv()
    except EOFError:
        raise UserError("a process of clients ended; what it printed says why") from None


def serve(pipe: Connection, target: Target, requests: Sequence[bytes], number: int) -> None:
    """Be a process of clients: answer each Order by counts (answers, failures) now and then, and a Load at the end."""
    # Ctrl-C reaches it too, but the one who started it ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    senders: list[Callable[[bytes], None]] = []
    pipe.send("ready")
    try:
        while True:
            order = pipe.recv()
            while len(senders) < order.clients:
                senders.append((rest_sender if target.path else grpc_sender)(target))
            pipe.send(_work(pipe, order, senders, requests, number))
    # The one who started it closed the pipe, or ended.
    except (EOFError, BrokenPipeError):
        return


def _work(pipe: Connection, order: Order, senders: list, requests: Sequence[bytes], number: int) -> Load:
    loads = [Load(1, order.end - order.begin, [], Counter(), {}, 0.0) for _ in range(order.clients)]
    # Clients that start at the same picture would all ask for the largest at the same time.
    threads = [threading.Thread(target=_ask, args=(senders[index], requests, 7 * index + number, order, load),
                                daemon=True) for index, load in enumerate(loads)]
    cpu, started = time.process_time(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(REPORT)
            pipe.send((sum(len(load.latencies) for load in loads), sum(load.failures.total() for load in loads)))
    busy = (time.process_time() - cpu) / max(time.monotonic() - started, 1e-9)
    found = Load(order.clients, order.end - order.begin, [], Counter(), {}, busy)
    for load in loads:
        found.latencies.extend(load.latencies)
        found.failures.update(load.failures)
        found.messages.update(load.messages)
    return found


def _ask(send: Callable[[bytes], None], requests: Sequence[bytes], position: int, order: Order, load: Load) -> None:
    while (sent := time.monotonic()) < order.end:
        try:
            send(requests[position % len(requests)])
            failed = None
        except Failure as error:
            failed = error
        now = time.monotonic()
        # What ends within the time counts, wherever it began: so the rate is not that of a start or an end.
        if order.begin < now <= order.end:
            if failed:
                load.failures[failed.code] += 1
                load.messages[failed.code] = str(failed)
            else:
                load.latencies.append(now - sent)
        if failed:
            time.sleep(PAUSE)
        position += 1


class Failure(Exception):
    """A request failed with the gRPC status of that name."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def grpc_sender(target: Target) -> Callable[[bytes], None]:
    """Return what sends a PredictRequest and waits for the answer, on a connection of its own; it raises Failure."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
               # Otherwise all channels of a process share one connection.
               ("grpc.use_local_subchannel_pool", 1)]
    channel = (grpc.secure_channel(target.server, grpc.ssl_channel_credentials(target.certificates), options)
               if target.certificates else grpc.insecure_channel(target.server, options))
    call = channel.unary_unary(PREDICT)

    def send(request: bytes) -> None:
        try:
            call(request, timeout=target.deadline)
        except grpc.RpcError as error:
            raise Failure(error.code().name, error.details()) from None

    return send


def rest_sender(target: Target) -> Callable[[bytes], None]:
    """Return what posts JSON and waits for the answer, on a connection of its own; it raises Failure."""
    connection = http.client.HTTPConnection(*address(target.server), timeout=target.deadline)

    def send(request: bytes) -> None:
        try:
            connection.request("POST", target.path, request, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        except TimeoutError:
            connection.close()
            raise Failure("DEADLINE_EXCEEDED", f"no answer within {target.deadline:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Failure("UNAVAILABLE", str(error) or type(error).__name__) from None
        if response.status != 200:
            raise Failure(STATUSES.get(response.status, "UNKNOWN"), text[:300].decode(errors="replace"))

    return send
