"""Loading one version: the SavedModel, its warm-up requests, and batching where that is on."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from kseg.errors import UserError
from serving.config import protos
from serving.config.flags import Options
from serving.core import classification, prediction, session_model
from serving.core.batching import Scheduler
from serving.errors import ServingError, from_tensorflow, invalid
from serving.telemetry import logs
from serving.telemetry.monitoring import Monitor

MOST_RECORDS = 1000
WARM_UP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
PARAMETERS_FILE = "batching_params.pbtxt"
# PredictionLog's field, and what runs its request. In the order of predictions' arguments: model, request, deadline.
RUNS = {"predict_log": prediction.predict, "classify_log": classification.classify,
        "regress_log": classification.regress, "multi_inference_log": classification.multi_inference}


def loader(options: Options, scheduler: Scheduler | None, monitor: Monitor) -> Callable:
    """Return load(name, version, directory) -> model, for serving.core.manager; it raises ServingError.

    With a scheduler the model's runs are put together to batches.
    """
    threads = session_model.Threads(options.tensorflow_session_parallelism, options.tensorflow_intra_op_parallelism,
                               options.tensorflow_inter_op_parallelism)
    tags = tuple(options.saved_model_tags.split(","))

    def load(name: str, version: int, directory: Path):
        model = session_model.load(directory, tags, threads)
        try:
            if options.enable_model_warmup:
                _warm_up(name, version, model, max(1, options.num_request_iterations_for_warmup), monitor)
            if scheduler is None:
                return model
            parameters = _own_parameters(directory) if options.enable_per_model_batching_parameters else None
            return scheduler.wrap(name, model, parameters)
        except BaseException:
            model.close()
            raise

    return load


def warm_up(model, path: Path, iterations: int) -> int:
    """Run the requests of a warm-up file and return how many they are; raises ServingError.

    Whatever one of them answers but success, the model is not to be served.
    """
    count = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            count += 1
            if count > MOST_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MOST_RECORDS}) at {path}")
            try:
                log = prediction_log_pb2.PredictionLog.FromString(record)
            except DecodeError:
                raise invalid(f"Failed to parse warmup record {count} from {path}") from None
            kind = log.WhichOneof("log_type")
            if kind not in RUNS:
                number = log.DESCRIPTOR.fields_by_name[kind].number if kind else 0
                raise ServingError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
            for _ in range(iterations):
                RUNS[kind](model, getattr(log, kind).request, None)
    except tf.errors.DataLossError as error:
        raise ServingError(grpc.StatusCode.DATA_LOSS,
                           f"{error.message}. Please verify your warmup data is in TFRecord format.") from None
    except tf.errors.OpError as error:
        raise from_tensorflow(error) from None
    return count


def _warm_up(name: str, version: int, model, iterations: int, monitor: Monitor) -> None:
    path = model.directory / WARM_UP_FILE
    if not path.exists():
        return
    started = time.monotonic()
    records = warm_up(model, path, iterations)
    seconds = time.monotonic() - started
    monitor.warmed_up(name, seconds, records)
    logs.write(logging.INFO, "warmed up", {"model": name, "version": version, "records": records,
                                           "milliseconds": round(1000 * seconds, 2)})


def _own_parameters(directory: Path):
    """Return the BatchingParameters beside a model, None where there are none."""
    path = directory / PARAMETERS_FILE
    if not path.exists():
        return None
    try:
        return protos.read(path, protos.BatchingParameters, "tensorflow.serving.BatchingParameters")
    except UserError as error:
        raise invalid(str(error)) from None
