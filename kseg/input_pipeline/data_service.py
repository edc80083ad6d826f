"""Read training batches in other processes with a tf.data service.

    python -m kseg.data serve --port 5050
    python -m kseg.data serve --dispatcher grpc://localhost:5050

A worker takes the next free step, so batches arrive in any order, and the batches of a worker that dies never arrive.
Batches carry their step, are sorted here, and are requested again if one is missing.
"""

import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

from kseg.config.checks import host_and_port
from kseg.datasets.diagnosis import error_summary
from kseg.errors import UserError
from kseg.system.signals import Signals

Batches = Callable[[tf.Tensor], tf.data.Dataset]
# Seconds to wait for the next batch; a worker needs long for its first one if images are large.
BATCH_TIMEOUT = 300
# Seconds to wait for a server's answer.
ANSWER_TIMEOUT = 10
# Milliseconds between a worker's heartbeats, and until a silent worker counts as lost.
HEARTBEAT = 5_000
WORKER_TIMEOUT = 20_000
# Batches that a worker prepares in parallel, so that it is not idle while one of them waits for its last image.
PARALLEL_BATCHES = 2
# Batches that training requests in parallel, from as many workers.
REQUESTS = 4
# Batches in memory besides those that wait for a previous one: requested, handed over, and prefetched.
IN_FLIGHT = REQUESTS + 4
# Minimum number of waiting batches, whatever the memory limit; two workers need them.
MIN_WAITING = 4


class ServiceError(UserError):
    """A tf.data service cannot be started or does not answer."""


def batches_in_order(address: str, memory: float, batch_of: Batches, start_step: int, steps: int) -> tf.data.Dataset:
    """Return the batches of the steps [start_step, steps), read by a service.

    Reading fails if a worker cannot make a batch, or if a batch is missing twice.

    Args:
        address: Address of the service, grpc://host:port.
        memory: Limit in GiB of the batches that wait for a previous one.
        batch_of: Returns a dataset of the one batch of a step (int64 scalar). Its graph is sent to the workers.
        start_step: First step.
        steps: End of the steps.

    Raises:
        ServiceError: The service does not answer.
    """
    require_answer(address)
    element = batch_of(tf.constant(0, tf.int64)).element_spec
    size = sum(math.prod(spec.shape) * spec.dtype.size for spec in element.values())
    most_waiting = max(MIN_WAITING, int(memory * 2**30 / size) - IN_FLIGHT)

    def generate() -> Iterator[tuple[dict, str]]:
        def received(step: int) -> Iterator[tuple]:
            return _received(_job(address, memory, batch_of, element, step, steps))

        try:
            for batch in _ordered(received, start_step, steps, most_waiting):
                yield batch, ""
        # An exception raised in the generator would be reported with its whole traceback.
        except (ServiceError, tf.errors.OpError) as error:
            yield _blank(element), f"tf.data service at {address}: {error_summary(error)}"

    def checked(batch: dict, fault: tf.Tensor) -> dict:
        with tf.control_dependencies([tf.debugging.Assert(tf.equal(fault, ""), [fault])]):
            return tf.nest.map_structure(tf.identity, batch)

    options = tf.data.Options()
    # A parallel map would check several batches ahead and hold them in memory.
    options.experimental_optimization.map_parallelization = False
    signature = element, tf.TensorSpec((), tf.string)
    return tf.data.Dataset.from_generator(generate, output_signature=signature).map(checked).with_options(options)


def _ordered(
    received: Callable[[int], Iterable[tuple[int, bool, dict]]], start_step: int, steps: int, most_waiting: int
) -> Iterator[dict]:
    """Yield the batches of the steps [start_step, steps) in order.

    A batch counts as missing if `most_waiting` later ones wait for it, or at the end. Then it and the following batches
    are requested once more.

    Args:
        received: Returns the batches from a step on, as (step, whether the batch could be made, batch), in any order.
        start_step, steps: The range of steps.
        most_waiting: Maximum number of waiting batches.

    Raises:
        ServiceError: A batch is missing twice, or could not be made.
    """
    step, missed = start_step, -1
    # Stops after the last batch: the service itself takes some seconds to report its end.
    while step < steps:
        waiting: dict[int, tuple[bool, dict]] = {}
        for number, made, batch in received(step):
            waiting[number] = made, batch
            while step in waiting:
                made, batch = waiting.pop(step)
                if not made:
                    raise ServiceError(
                        f"a worker could not make the batch of step {step + 1}; see its output. "
                        "Do all workers have access to the data?"
                    )
                yield batch
                step += 1
            if step == steps:
                return
            if len(waiting) >= most_waiting:
                break
        lost = f"the batch of step {step + 1} is missing, {len(waiting)} later ones have arrived"
        if step == missed:
            raise ServiceError(
                f"{lost}, for the second time: a worker is too slow, or data.memory is too small for "
                "the number of workers"
            )
        missed = step
        logging.getLogger(__name__).warning("tf.data service: %s; requesting it again", lost)


def _blank(element: dict) -> dict:
    return {name: tf.zeros(spec.shape, spec.dtype) for name, spec in element.items()}


def _job(address: str, memory: float, batch_of: Batches, element: dict, start_step: int, steps: int) -> tf.data.Dataset:
    """Return the workers' batches from `start_step` on, in any order.

    An element is (step, whether the batch could be made, batch).
    """

    def numbered(step: tf.Tensor) -> tf.data.Dataset:
        # An error would end the whole job without naming the step.
        made = batch_of(step).map(lambda batch: (step, True, batch)).ignore_errors(log_warning=True)
        blank = tf.data.Dataset.from_tensors(step).map(lambda step: (step, False, _blank(element)))
        return made.concatenate(blank).take(1)

    numbers = tf.data.Dataset.range(start_step, steps)
    batches = numbers.interleave(
        numbered, cycle_length=PARALLEL_BATCHES, num_parallel_calls=PARALLEL_BATCHES, deterministic=False
    )
    options = tf.data.Options()
    options.autotune.ram_budget = int(memory * 2**30)
    # Batches that a worker prefetches are delayed, and all later batches of other workers wait for them.
    options.experimental_optimization.inject_prefetch = False
    service = tf.data.experimental.service
    return batches.with_options(options).apply(
        service.distribute(
            service.ShardingPolicy.DYNAMIC,
            address,
            max_outstanding_requests=REQUESTS,
            compression=None,
            target_workers="ANY",
        )
    )


def _received(job: tf.data.Dataset) -> Iterator[tuple[int, bool, dict]]:
    """Yield a job's elements; raises ServiceError if none arrives for BATCH_TIMEOUT seconds."""
    elements: queue.Queue = queue.Queue(1)
    closed = threading.Event()

    def hand_over(element: tuple | Exception | None) -> None:
        while not closed.is_set():
            try:
                elements.put(element, timeout=1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for element in job:
                hand_over(element)
                if closed.is_set():
                    return
            hand_over(None)
        except tf.errors.OpError as error:
            hand_over(error)

    # Waiting for a service cannot be interrupted, so a daemon thread waits.
    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            try:
                element = elements.get(timeout=BATCH_TIMEOUT)
            except queue.Empty:
                raise ServiceError(f"no batch for {BATCH_TIMEOUT} s: does the service have workers?") from None
            if element is None:
                return
            if isinstance(element, Exception):
                raise element
            number, made, batch = element
            yield int(number), bool(made), batch
    finally:
        closed.set()


def require_answer(address: str) -> None:
    """Raise ServiceError unless a server listens at an address grpc://host:port."""
    try:
        socket.create_connection(host_and_port(address), timeout=ANSWER_TIMEOUT).close()
    except OSError as error:
        raise ServiceError(
            f"no tf.data service answers at {address}: {error.strerror or error}; start its dispatcher "
            "with python -m kseg.data serve"
        ) from None


def require_free(port: int) -> None:
    """Raise ServiceError if another process listens at a port.

    A second server would silently share the port.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except (OSError, OverflowError) as error:
        raise ServiceError(
            f"port {port} is not available: {getattr(error, 'strerror', None) or error}; --port 0 chooses a free one"
        ) from None


def serve_data(port: int, host: str, dispatcher: str, report: Callable[[str], None] = print) -> None:
    """Run a dispatcher or a worker until SIGTERM or SIGINT.

    Args:
        port: Port to listen at; 0 chooses a free one.
        host: Name under which other machines reach this one.
        dispatcher: Address of the worker's dispatcher; empty to run a dispatcher.
        report: Receives the address and the end of the server.

    Raises:
        ConfigError: The address is malformed.
        ServiceError: The port is not available, or the dispatcher does not answer.
    """
    if dispatcher:
        require_answer(dispatcher)
    require_free(port)
    with Signals() as signals:
        try:
            server, address = _start_worker(port, host, dispatcher) if dispatcher else _start_dispatcher(port, host)
        except tf.errors.OpError as error:
            raise ServiceError(f"the server could not start: {error_summary(error)}") from None
        report(
            f"worker at {address} of the tf.data service {dispatcher}"
            if dispatcher
            else f"tf.data service at {address}; start workers: python -m kseg.data serve --dispatcher {address}; "
            f"training: --set data.service={address}"
        )
        while signals.received is None:
            time.sleep(0.1)
        server.stop()
        report("stopped")


def _start_dispatcher(port: int, host: str) -> tuple:
    service = tf.data.experimental.service
    server = service.DispatchServer(service.DispatcherConfig(port=port, worker_timeout_ms=WORKER_TIMEOUT))
    return server, f"grpc://{host}:{server.target.rsplit(':', 1)[1]}"


def _start_worker(port: int, host: str, dispatcher: str) -> tuple:
    service = tf.data.experimental.service
    if not port:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
    server = service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=dispatcher.removeprefix("grpc://"),
            worker_address=f"{host}:{port}",
            port=port,
            heartbeat_interval_ms=HEARTBEAT,
            dispatcher_timeout_ms=1000 * ANSWER_TIMEOUT,
        )
    )
    return server, f"{host}:{port}"
