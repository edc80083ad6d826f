"""Call a model in several forms, each in a separate process, for `python -m kseg.benchmark model`."""

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

# A call takes uint8 images (N, H, W, 3) in host memory and returns class ids (N, H, W).
Call = Callable[[np.ndarray], tf.Tensor]


@dataclass(frozen=True)
class Job:
    """Describe what is measured.

    config: the config of the model.
    classes: number of classes.
    size: (height, width) of the images.
    batch: images per call.
    threads: number of threads within an operation and between operations; None leaves the choice to TensorFlow.
    """

    config: Config
    classes: int
    size: tuple[int, int]
    batch: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Facts:
    """Hold the figures that do not depend on the form.

    parameters: number of weights.
    trainable: number of trainable weights.
    exported: number of weights of the exported model.
    exported_bytes: size of the exported model.
    multiply_adds: multiply-adds of one image.
    device: name of the processor or GPU.
    versions: versions of the libraries by name.
    """

    parameters: int
    trainable: int
    exported: int
    exported_bytes: int
    multiply_adds: int
    device: str
    versions: dict[str, str]


def build_job_model(job: Job) -> keras.Model:
    """Build the model of a job with random weights."""
    return models.build(job.config.model, job.classes, precision=job.config.train.precision)


def _main_head(model: keras.Model) -> keras.Model:
    """Return a model of the main head alone; eager calls of the full model would compute the auxiliary head too."""
    return keras.Model(model.input, {"main": model.output["main"]})


def _predictor(job: Job, network: Callable) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function from images to class ids."""

    def predict(images: tf.Tensor) -> tf.Tensor:
        size = tf.shape(images)
        return prediction.predict_ids(network, images, (size[1], size[2]), prediction.protocol_of(job.config))

    return predict


def _eager(job: Job, directory: str) -> Call:
    predict = _predictor(job, _main_head(build_job_model(job)))
    return lambda images: predict(tf.constant(images))


def _compiled(job: Job, directory: str) -> Call:
    return _traced(job, _main_head(build_job_model(job)))


def _xla(job: Job, directory: str) -> Call:
    model = _main_head(build_job_model(job))
    # XLA compiles the network alone: the number of row tiles of the prediction is known only at run time.
    return _traced(job, tf.function(lambda inputs, training: model(inputs, training=training), jit_compile=True))


def _traced(job: Job, network: Callable) -> Call:
    spec = tf.TensorSpec((job.batch, *job.size, 3), tf.uint8)
    return tf.function(_predictor(job, network), input_signature=[spec])


def _exported(job: Job, directory: str) -> Call:
    signature = tf.saved_model.load(directory).signatures["predict_tensor"]
    return lambda images: signature(image=tf.constant(images))["class_map"]


FORMS = {"eager": _eager, "compiled": _compiled, "XLA": _xla, "exported": _exported}


def export_form(job: Job, model: keras.Model, directory: str) -> int:
    """Export the model into a directory and return the number of its weights."""
    options = job.config.export
    network = export_network(model, job.config.model, options.precision, options.device)
    served = Served(network, prediction.protocol_of(job.config), job.size, options.max_pixels, options.all_scores)
    tf.saved_model.save(served, directory, signatures=served.functions)
    return sum(math.prod(variable.shape) for variable in served.network.saved_variables)


def model_facts(job: Job, directory: str) -> Facts:
    """Compute the facts of a model and export it into a directory."""
    model = build_job_model(job)
    exported = export_form(job, model, directory)
    return Facts(
        model.count_params(),
        sum(math.prod(weight.shape) for weight in model.trainable_weights),
        exported,
        sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()),
        count_macs(models.main_only(model), (1, *job.size, 3)),
        device_name(job.threads),
        {"TensorFlow": tf.__version__, "Keras": keras.__version__},
    )


def device_name(threads: int | None = None) -> str:
    """Return the name of the GPU, or that of the processor and the number of threads."""
    if tf.config.list_physical_devices("GPU"):
        return devices.device_line()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    # Some architectures have no model name in cpuinfo.
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")] or ["processor"]
    return f"{names[0]}, {threads or len(os.sched_getaffinity(0))} threads"


def _prepare_process(job: Job) -> None:
    devices.set_tensor_float_32(job.config.train.tensor_float_32)
    if job.threads:
        tf.config.threading.set_inter_op_parallelism_threads(job.threads)
        tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    # The processes of all forms share the first GPU.
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def serve_facts(connection: Connection, job: Job, directory: str) -> None:
    """Send the facts of the model, or the text of an error; the main function of a worker process."""
    try:
        _prepare_process(job)
        connection.send(model_facts(job, directory))
    # The parent process reports errors of any type.
    except Exception as error:
        connection.send(error_line(error))


def serve_form(connection: Connection, job: Job, directory: str, name: str) -> None:
    """Run the rounds of one form; the main function of a worker process.

    It answers the message None with the seconds of the first call, and every further message, a number of seconds, with
    the results of a round of that duration: (seconds of each call, peak memory, peak device memory). Instead of an
    answer it sends the text of an error.
    """
    try:
        # Nothing but imports happens before the first message.
        connection.recv()
        _prepare_process(job)
        call = FORMS[name](job, directory)
        images = np.random.default_rng(0).integers(0, 256, (job.batch, *job.size, 3), np.uint8)
        connection.send(_timed(call, images))
        # The second call is not measured either: TensorFlow still optimizes the graph in it.
        _timed(call, images)
        while True:
            end, calls = connection.recv() + time.perf_counter(), []
            while not calls or time.perf_counter() < end:
                calls.append(_timed(call, images))
            connection.send((calls, *_peak_memory()))
    except EOFError:
        return
    # The parent process reports errors of any type.
    except Exception as error:
        connection.send(error_line(error))


def error_line(error: Exception) -> str:
    """Return the type of an error and the most informative line of its message.

    TensorFlow's messages have a traceback before that line and hints after it.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Hint:", "[["))]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _timed(call: Call, images: np.ndarray) -> float:
    """Return the seconds of one call until the class ids are in host memory."""
    begin = time.perf_counter()
    call(images).numpy()
    return time.perf_counter() - begin


def _peak_memory() -> tuple[int, int | None]:
    """Return the peak resident memory of this process and, with a GPU, the peak memory on the first one; bytes."""
    # The peak of getrusage would include the memory of the parent process at the fork.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024
    if not tf.config.list_physical_devices("GPU"):
        return peak, None
    return peak, tf.config.experimental.get_memory_info("GPU:0")["peak"]
