"""Reading for training in other processes, by a tf.data service: its dispatcher, its workers, and its batches in order.

    python -m kseg.data serve --port 5050
    python -m kseg.data serve --dispatcher grpc://localhost:5050

A worker takes the next step that none has taken, so batches come in any order, and those that a worker had in hand when
it died never come. They carry their steps' numbers, are put in order here, and are asked for again where one is missed.
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
from kseg.datasets.diagnosis import fault_text
from kseg.errors import UserError
from kseg.system.signals import Signals

Batches = Callable[[tf.Tensor], tf.data.Dataset]
# Seconds in which something has to come from the service; a worker starts slowly where pictures are large.
PATIENCE = 300
# Seconds in which a server has to answer at all.
ANSWER = 10
# Milliseconds between a worker's signs of life, and those after which one that gave none counts as gone.
HEARTBEAT = 5_000
WORKER_TIMEOUT = 20_000
# How many batches a worker works at, so that it is never idle while one waits for its last picture.
AT_ONCE = 2
# How many batches training asks for at once, of as many workers.
REQUESTS = 4
# Batches that training holds besides those that wait for an earlier one: asked for, handed over, and prefetched.
IN_HAND = REQUESTS + 4
# That many may wait even if memory is short, or two workers would not do.
FEWEST_WAITING = 4


class ServiceError(UserError):
    """A tf.data service does not answer, cannot be started, or does not give what it was asked for."""


def batches_in_order(address: str, memory: float, batch_of: Batches, start_step: int,
                     steps: int) -> tf.data.Dataset:
    """Return the batches that the service at an address makes, from `start_step` to before `steps` in order.

    `batch_of` gives for a step, int64, a data set of its one batch; its graph is sent to the workers. Batches that wait
    for an earlier one take no more than `memory` GiB. Reading fails where a worker could not make a batch, and where one
    does not come though it was asked for twice. Raises ServiceError where the service does not answer.
    """
    require_answer(address)
    element = batch_of(tf.constant(0, tf.int64)).element_spec
    size = sum(math.prod(spec.shape) * spec.dtype.size for spec in element.values())
    most_waiting = max(FEWEST_WAITING, int(memory * 2**30 / size) - IN_HAND)

    def generate() -> Iterator[tuple[dict, str]]:
        def received(step: int) -> Iterator[tuple]:
            return _received(_job(address, memory, batch_of, element, step, steps))

        try:
            for batch in _ordered(received, start_step, steps, most_waiting):
                yield batch, ""
        # Raised here, it would be told with all of its traceback.
        except (ServiceError, tf.errors.OpError) as error:
            yield _blank(element), f"tf.data service at {address}: {fault_text(error)}"

    def checked(batch: dict, fault: tf.Tensor) -> dict:
        with tf.control_dependencies([tf.debugging.Assert(tf.equal(fault, ""), [fault])]):
            return tf.nest.map_structure(tf.identity, batch)

    options = tf.data.Options()
    # Checking is nothing to do several batches ahead, each of which takes memory.
    options.experimental_optimization.map_parallelization = False
    signature = element, tf.TensorSpec((), tf.string)
    return tf.data.Dataset.from_generator(generate, output_signature=signature).map(checked).with_options(options)


def _ordered(received: Callable[[int], Iterable[tuple[int, bool, dict]]], start_step: int, steps: int,
             most_waiting: int) -> Iterator[dict]:
    """Yield the batches of the steps `start_step` to `steps`, of which `received(step)` gives those from a step on.

    That gives (step, whether it could be made, batch) in any order. Where a batch is still missing when `most_waiting`
    later ones wait for it, or at the end, it is asked for again with what follows it, once. Raises ServiceError where
    it is missing then too, or could not be made.
    """
    step, missed = start_step, -1
    # Ends where the last batch has come, and not where the service says so, which takes it some seconds.
    while step < steps:
        waiting: dict[int, tuple[bool, dict]] = {}
        for number, made, batch in received(step):
            waiting[number] = made, batch
            while step in waiting:
                made, batch = waiting.pop(step)
                if not made:
                    raise ServiceError(f"a worker could not make the batch of step {step + 1}; its output says why. "
                                       "Do all workers see the data?")
                yield batch
                step += 1
            if step == steps:
                return
            if len(waiting) >= most_waiting:
                break
        lost = f"the batch of step {step + 1} did not come, but {len(waiting)} later ones"
        if step == missed:
            raise ServiceError(f"{lost}, twice: a worker is too slow, or data.memory too small for so many workers")
        missed = step
        logging.getLogger(__name__).warning("tf.data service: %s; asking for it again", lost)


def _blank(element: dict) -> dict:
    return {name: tf.zeros(spec.shape, spec.dtype) for name, spec in element.items()}


def _job(address: str, memory: float, batch_of: Batches, element: dict, start_step: int,
         steps: int) -> tf.data.Dataset:
    """Return (step, whether it could be made, batch) from `start_step` on in any order, by all of the workers."""
    def numbered(step: tf.Tensor) -> tf.data.Dataset:
        # What fails would end the whole job, at no step in particular.
        made = batch_of(step).map(lambda batch: (step, True, batch)).ignore_errors(log_warning=True)
        blank = tf.data.Dataset.from_tensors(step).map(lambda step: (step, False, _blank(element)))
        return made.concatenate(blank).take(1)

    numbers = tf.data.Dataset.range(start_step, steps)
    batches = numbers.interleave(numbered, cycle_length=AT_ONCE, num_parallel_calls=AT_ONCE, deterministic=False)
    options = tf.data.Options()
    options.autotune.ram_budget = int(memory * 2**30)
    # What a worker has made in advance keeps the others' batches waiting here.
    options.experimental_optimization.inject_prefetch = False
    service = tf.data.experimental.service
    return batches.with_options(options).apply(service.distribute(
        service.ShardingPolicy.DYNAMIC, address, max_outstanding_requests=REQUESTS, compression=None,
        target_workers="ANY"))


def _received(job: tf.data.Dataset) -> Iterator[tuple[int, bool, dict]]:
    """Yield a job's elements; raises ServiceError where none comes for PATIENCE seconds."""
    came: queue.Queue = queue.Queue(1)
    ended = threading.Event()

    def hand_over(element: tuple | Exception | None) -> None:
        while not ended.is_set():
            try:
                came.put(element, timeout=1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for element in job:
                hand_over(element)
                if ended.is_set():
                    return
            hand_over(None)
        except tf.errors.OpError as error:
            hand_over(error)

    # Waiting for a service is nothing that can be interrupted, so it is left to a thread that need not end.
    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            try:
                element = came.get(timeout=PATIENCE)
            except queue.Empty:
                raise ServiceError(f"nothing came for {PATIENCE} s: has it workers?") from None
            if element is None:
                return
            if isinstance(element, Exception):
                raise element
            number, made, batch = element
            yield int(number), bool(made), batch
    finally:
        ended.set()


def require_answer(address: str) -> None:
    """Raise ServiceError where nothing listens at an address like grpc://host:port."""
    try:
        socket.create_connection(host_and_port(address), timeout=ANSWER).close()
    except OSError as error:
        raise ServiceError(f"no tf.data service answers at {address}: {error.strerror or error}; start its dispatcher "
                           "with python -m kseg.data serve") from None


def require_free(port: int) -> None:
    """Raise ServiceError where another process listens at a port; a second server would share it in silence."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except (OSError, OverflowError) as error:
        raise ServiceError(f"port {port} cannot be taken: {getattr(error, 'strerror', None) or error}; "
                           "--port 0 takes a free one") from None


def serve_data(port: int, host: str, dispatcher: str, report: Callable[[str], None] = print) -> None:
    """Run a dispatcher, or a worker of the one at the address `dispatcher`, until SIGTERM or SIGINT.

    Others reach it as `host`; port 0 is a free one. Raises ConfigError for a malformed address, ServiceError where the
    port is taken or the dispatcher does not answer.
    """
    if dispatcher:
        require_answer(dispatcher)
    require_free(port)
    with Signals() as signals:
        try:
            server, place = _start_worker(port, host, dispatcher) if dispatcher else _start_dispatcher(port, host)
        except tf.errors.OpError as error:
            raise ServiceError(f"the server could not start: {fault_text(error)}") from None
        report(f"worker at {place} of the tf.data service {dispatcher}" if dispatcher else
               f"tf.data service at {place}; its workers: python -m kseg.data serve --dispatcher {place}; "
               f"training: --set data.service={place}")
        while signals.received is None:
            time.sleep(0.1)
        server.stop()
        report("ended")


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
    server = service.WorkerServer(service.WorkerConfig(
        dispatcher_address=dispatcher.removeprefix("grpc://"), worker_address=f"{host}:{port}", port=port,
        heartbeat_interval_ms=HEARTBEAT, dispatcher_timeout_ms=1000 * ANSWER))
    return server, f"{host}:{port}"
