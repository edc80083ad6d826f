"""Load one version: its SavedModel, its warm-up requests, and batching if it is enabled."""

import logging
import time
from pathlib import Path

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import prediction_log_pb2

from serving.config import protos
from serving.config.flags import Options
from serving.core import classification, prediction, session_model
from serving.core.batching import Scheduler
from serving.core.servable import Servable
from serving.core.versions import Loader
from serving.errors import ServingError, invalid
from serving.telemetry import logs
from serving.telemetry.monitoring import Monitor

MAX_WARM_UP_RECORDS = 1000
WARM_UP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
BATCHING_FILE = "batching_params.pbtxt"
# PredictionLog's field for a request, and the function (model, request, deadline) that runs it.
RUNS = {
    "predict_log": prediction.predict_response,
    "classify_log": classification.classify_response,
    "regress_log": classification.regress_response,
    "multi_inference_log": classification.multi_inference_response,
}


def make_loader(options: Options, scheduler: Scheduler | None, monitor: Monitor) -> Loader:
    """Return the function that loads a version for serving.core.manager.

    With a scheduler the loaded model batches its requests. The function raises ServingError, UserError, or TensorFlow's
    error for an unreadable warm-up file.
    """
    threads = session_model.Threads(
        options.tensorflow_session_parallelism,
        options.tensorflow_intra_op_parallelism,
        options.tensorflow_inter_op_parallelism,
    )
    tags = tuple(options.saved_model_tags.split(","))

    def load(name: str, version: int, directory: Path) -> Servable:
        model = session_model.load_session_model(directory, tags, threads)
        try:
            if options.enable_model_warmup:
                _warm_up_version(name, version, model, max(1, options.num_request_iterations_for_warmup), monitor)
            if scheduler is None:
                return model
            parameters = _read_batching(directory) if options.enable_per_model_batching_parameters else None
            return scheduler.wrap(name, model, parameters)
        except BaseException:
            model.close()
            raise

    return load


def warm_up(model: Servable, path: Path, iterations: int) -> int:
    """Run the requests of a warm-up file and return their number.

    A request that fails keeps the model from being served. Raises ServingError, or tf.errors.OpError if TensorFlow
    cannot read the file.
    """
    count = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            count += 1
            if count > MAX_WARM_UP_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_WARM_UP_RECORDS}) at {path}")
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
        raise ServingError(
            grpc.StatusCode.DATA_LOSS, f"{error.message}. Please verify your warmup data is in TFRecord format."
        ) from None
    return count


def _warm_up_version(name: str, version: int, model: Servable, iterations: int, monitor: Monitor) -> None:
    path = model.directory / WARM_UP_FILE
    if not path.exists():
        return
    started = time.monotonic()
    records = warm_up(model, path, iterations)
    seconds = time.monotonic() - started
    monitor.warmed_up(name, seconds, records)
    logs.log_event(
        logging.INFO,
        "warmed up",
        {"model": name, "version": version, "records": records, "milliseconds": round(1000 * seconds, 2)},
    )


def _read_batching(directory: Path) -> Message | None:
    """Return a version's own BatchingParameters, or None if it has none."""
    path = directory / BATCHING_FILE
    if not path.exists():
        return None
    return protos.parse_text_proto(path, protos.BatchingParameters, "tensorflow.serving.BatchingParameters")
