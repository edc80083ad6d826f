"""The forms in which a model is called, each in a process of its own, for `python -m kseg.benchmark model`."""

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kseg import models
from kseg.config import Config
from kseg.distributed import devices
from kseg.exporting.precisions import export_network
from kseg.exporting.signatures import Served
from kseg.inference import prediction
from kseg.models.macs import count_macs

# From uint8 pictures (N, H, W, 3) in the host's memory to class ids (N, H, W).
Call = Callable[[np.ndarray], tf.Tensor]


@dataclass(frozen=True)
class Job:
    """What is measured: the model of a config for so many classes, on batches of pictures of one (height, width).

    `threads` are those of one operation and those that work on several; None leaves them to TensorFlow.
    """

    config: Config
    classes: int
    size: tuple[int, int]
    batch: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Facts:
    """What does not depend on the form: numbers of weights, of which the exported model keeps `exported` in a file
    of so many bytes; multiply-adds of one picture, each counted once; what it runs on and with."""

    parameters: int
    trainable: int
    exported: int
    exported_bytes: int
    multiply_adds: int
    device: str
    versions: dict[str, str]


def build_job_model(job: Job) -> keras.Model:
    """Return the job's model with random weights."""
    return models.build(job.config.model, job.classes, precision=job.config.train.precision)


def _main(model: keras.Model) -> keras.Model:
    """Return a model of the main head alone; called eagerly, the whole one would compute what serves the loss, too."""
    return keras.Model(model.input, {"main": model.output["main"]})


def _ids(job: Job, network: Callable) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function from pictures to ids through a network as `_main` returns it."""

    def predict(images: tf.Tensor) -> tf.Tensor:
        size = tf.shape(images)
        return prediction.predict_ids(network, images, (size[1], size[2]), prediction.protocol_of(job.config))

    return predict


def _eager(job: Job, directory: str) -> Call:
    predict = _ids(job, _main(build_job_model(job)))
    return lambda images: predict(tf.constant(images))


def _compiled(job: Job, directory: str) -> Call:
    return _traced(job, _main(build_job_model(job)))


def _xla(job: Job, directory: str) -> Call:
    model = _main(build_job_model(job))
    # The network alone: XLA compiles no stripes of rows whose number is found while it runs.
    return _traced(job, tf.function(lambda inputs, training: model(inputs, training=training), jit_compile=True))


def _traced(job: Job, network: Callable) -> Call:
    spec = tf.TensorSpec((job.batch, *job.size, 3), tf.uint8)
    return tf.function(_ids(job, network), input_signature=[spec])


def _exported(job: Job, directory: str) -> Call:
    answer = tf.saved_model.load(directory).signatures["predict_tensor"]
    return lambda images: answer(image=tf.constant(images))["class_map"]


FORMS = {"eager": _eager, "compiled": _compiled, "XLA": _xla, "exported": _exported}


def export_form(job: Job, model: keras.Model, directory: str) -> int:
    """Save the model as kseg.export does, and return how many weights are left of it."""
    options = job.config.export
    network = export_network(model, job.config.model, options.precision, options.device)
    served = Served(network, prediction.protocol_of(job.config), job.size, options.max_pixels, options.all_scores)
    tf.saved_model.save(served, directory, signatures=served.answers)
    return sum(math.prod(variable.shape) for variable in served.network.held)


def model_facts(job: Job, directory: str) -> Facts:
    """Return what does not depend on the form, and leave the exported model in the directory."""
    model = build_job_model(job)
    exported = export_form(job, model, directory)
    return Facts(
        model.count_params(), sum(math.prod(weight.shape) for weight in model.trainable_weights), exported,
        sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()),
        count_macs(models.main_only(model), (1, *job.size, 3)),
        device_name(job.threads), {"TensorFlow": tf.__version__, "Keras": keras.__version__})


def device_name(threads: int | None = None) -> str:
    """Return what the model runs on: the GPU's name, or the processor's with the number of threads."""
    if tf.config.list_physical_devices("GPU"):
        return devices.device_line()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    # Not every architecture names its processors.
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")] or ["processor"]
    return f"{names[0]}, {threads or len(os.sched_getaffinity(0))} threads"


def _prepare_process(job: Job) -> None:
    devices.set_tensor_float_32(job.config.train.tensor_float_32)
    if job.threads:
        tf.config.threading.set_inter_op_parallelism_threads(job.threads)
        tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    # Several processes share the first of them.
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def serve_facts(connection: Connection, job: Job, directory: str) -> None:
    """Be the process that answers with the model's facts once, or with the text of an error."""
    try:
        _prepare_process(job)
        connection.send(model_facts(job, directory))
    # Whatever it was, the process that waits for the answer tells it.
    except Exception as error:
        connection.send(error_line(error))


def serve_form(connection: Connection, job: Job, directory: str, name: str) -> None:
    """Be the process of one form, which answers what it is sent: None with the seconds of the first call, and then a
    number of seconds with a round of so many: the seconds of each call, and the peaks of memory. Or with the text of an
    error."""
    try:
        # Until the first message it has done no more than import what it needs, which nobody measures.
        connection.recv()
        _prepare_process(job)
        call = FORMS[name](job, directory)
        images = np.random.default_rng(0).integers(0, 256, (job.batch, *job.size, 3), np.uint8)
        connection.send(_timed(call, images))
        # The first call of all has optimised nothing yet.
        _timed(call, images)
        while True:
            end, calls = connection.recv() + time.perf_counter(), []
            while not calls or time.perf_counter() < end:
                calls.append(_timed(call, images))
            connection.send((calls, *_peak_memory()))
    except EOFError:
        return
    # Whatever it was, the process that waits for the answer tells it.
    except Exception as error:
        connection.send(error_line(error))


def error_line(error: Exception) -> str:
    """Return an error's type and the line of its message that says most: TensorFlow puts where it happened before it,
    and what else may help after it."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Hint:", "[["))]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _timed(call: Call, images: np.ndarray) -> float:
    """Return the seconds of one call, until the ids are in the host's memory."""
    begin = time.perf_counter()
    call(images).numpy()
    return time.perf_counter() - begin


def _peak_memory() -> tuple[int, int | None]:
    """Return the most bytes this process has had resident, and on the first GPU."""
    # Not getrusage's, which begins with what the process had that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024
    if not tf.config.list_physical_devices("GPU"):
        return peak, None
    return peak, tf.config.experimental.get_memory_info("GPU:0")["peak"]
