"""A SavedModel in a TensorFlow session: load it, run its signatures from many threads, free its memory.

TensorFlow Serving also runs sessions. Compared with tf.saved_model.load they give the same error texts as there, honor
deadlines, and take a third of the time for a call.
"""

import gc
import math
import re
import time
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

# This module is private to TensorFlow. The public Session.run and make_callable silently cast values of another dtype,
# refuse shapes that the graph accepts, and take ten times as long.
from tensorflow.python.client import pywrap_tf_session

from serving.errors import ServingError, from_tensorflow, invalid, not_found

# RunOptions holds milliseconds in an int64, which a client's deadline of centuries exceeds.
MAX_SECONDS = 366 * 24 * 3600
# The text that Python's Session.run adds around an operation's message.
PYTHON_CONTEXT = re.compile(
    r"\AGraph execution error:\s*(?:.*?^Node: [^\n]*\n)?|\n*Original stack trace for .*\Z", re.DOTALL | re.MULTILINE
)


class Threads(NamedTuple):
    """Numbers of TensorFlow threads; 0 means one per processor.

    The first session sets them for the whole process. `intra` has no effect if TensorFlow ran an operation before.

    Attributes:
        session: The value of both others where they are 0.
        intra: The threads within one operation.
        inter: The operations that run at once.
    """

    session: int = 0
    intra: int = 0
    inter: int = 0


class SessionModel:
    """A loaded SavedModel; see serving.core.servable.Servable."""

    def __init__(
        self, directory: Path, session: tf.compat.v1.Session, signatures: dict[str, meta_graph_pb2.SignatureDef]
    ):
        self.directory, self.signatures, self._session = directory, signatures, session
        self._inputs, self._outputs = {}, {}
        for name, signature in signatures.items():
            self._inputs[name] = _tensors(session.graph, signature.inputs)
            self._outputs[name] = _tensors(session.graph, signature.outputs)

    def run(
        self, signature: str, inputs: dict[str, np.ndarray], outputs: tuple[str, ...], deadline: float | None
    ) -> dict[str, np.ndarray]:
        """Run a signature once and return the requested outputs; see Servable.run.

        Dtypes must be those of the signature; shapes are checked by the graph alone. Raises ServingError with
        TensorFlow's code and text, DEADLINE_EXCEEDED after the deadline, UNIMPLEMENTED for an input or output that is
        not a dense tensor.
        """
        session = self._session
        if session is None:
            raise ServingError(grpc.StatusCode.CANCELLED, "Session has been closed.")
        try:
            feeds = {self._inputs[signature][key]: value for key, value in inputs.items()}
            fetches = [self._outputs[signature][key] for key in outputs]
        except KeyError as error:
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED, f"{error.args[0]} is not a dense tensor of the signature {signature}"
            ) from None
        options = None
        if deadline is not None:
            seconds = min(deadline - time.monotonic(), MAX_SECONDS)
            if seconds <= 0:
                raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
            # Rounding down to 0 would mean no limit.
            options = pywrap_tf_session.TF_NewBufferFromString(
                tf.compat.v1.RunOptions(timeout_in_ms=math.ceil(seconds * 1000)).SerializeToString()
            )
        try:
            values = pywrap_tf_session.TF_SessionRun_wrapper(session._session, options, feeds, fetches, [], None)
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)
        return dict(zip(outputs, values, strict=True))

    def close(self) -> None:
        """Free all memory; no run may be in progress, and later runs fail with CANCELLED."""
        session, self._session = self._session, None
        if session is None:
            return
        session.close()
        # The tensors would keep the graph in memory.
        self._inputs, self._outputs = {}, {}
        del session
        # Graphs contain reference cycles, which only the garbage collector frees.
        gc.collect()


def load_session_model(directory: Path, tags: tuple[str, ...], threads: Threads) -> SessionModel:
    """Load the graph of a SavedModel directory that has all of `tags`.

    Raises ServingError: NOT_FOUND for a missing file, graph or operation, DATA_LOSS for a damaged file, otherwise
    TensorFlow's code.
    """
    if not any((directory / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise not_found(
            f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {directory}. "
            "Check that the directory exists and that you have the right permissions for accessing it."
        )
    session = tf.compat.v1.Session(
        graph=tf.Graph(),
        config=tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads.intra or threads.session,
            inter_op_parallelism_threads=threads.inter or threads.session,
        ),
    )
    try:
        loaded = tf.compat.v1.saved_model.load(session, list(tags), str(directory))
        return SessionModel(directory, session, dict(loaded.signature_def))
    except Exception as error:
        session.close()
        raise _load_error(error, directory, tags) from error


def _load_error(error: Exception, directory: Path, tags: tuple[str, ...]) -> ServingError:
    """Return the ServingError of TensorFlow Serving for an exception of TensorFlow's Python loader."""
    if isinstance(error, tf.errors.OpError):
        failure = from_tensorflow(error)
        return ServingError(failure.code, f"{directory}: {PYTHON_CONTEXT.sub('', failure.message)}")
    message = str(error)
    # The loader's own exceptions differ in their texts alone.
    if isinstance(error, RuntimeError) and "could not be found in SavedModel" in message:
        return not_found(
            f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }} in {directory}."
            " To inspect available tag-sets in the SavedModel, please use the SavedModel CLI: "
            "`saved_model_cli`"
        )
    if "not a valid checkpoint" in message:
        return not_found(f"{directory / 'variables'}: {message}")
    if "Op type not registered" in message:
        return not_found(f"{directory}: {message}")
    if isinstance(error, OSError):
        return ServingError(grpc.StatusCode.DATA_LOSS, f"{directory}: {message}")
    if isinstance(error, (ValueError, KeyError, TypeError)):
        return invalid(f"{directory}: {message}")
    return ServingError(grpc.StatusCode.INTERNAL, f"{directory}: {type(error).__name__}: {message}")


def _tensors(graph: tf.Graph, infos: dict[str, meta_graph_pb2.TensorInfo]) -> dict:
    """Return the session's handles of a signature's tensors by alias.

    Entries that are not one dense tensor are skipped, and so is the operation that __saved_model_init_op names.
    """
    return {key: graph.get_tensor_by_name(info.name)._as_tf_output() for key, info in infos.items() if ":" in info.name}
