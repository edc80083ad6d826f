"""A SavedModel in a TensorFlow session: loading it, running its signatures from many threads, giving its memory back.

A session, and not tf.saved_model.load, because it is what the real server runs: the same errors in the same words,
deadlines, and a third of the time for a call.
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
# Not public. Session.run and make_callable turn values of another dtype into the placeholder's without a word, refuse
# shapes that the graph may well take, and take ten times as long.
from tensorflow.python.client import pywrap_tf_session

from serving.errors import ServingError, from_tensorflow, invalid, not_found

# RunOptions holds milliseconds in an int64; nobody waits for longer than a year.
LONGEST = 366 * 24 * 3600
# What Python's Session.run puts around an operation's message.
AROUND = re.compile(r"\AGraph execution error:\s*(?:.*?^Node: [^\n]*\n)?|\n*Original stack trace for .*\Z",
                    re.DOTALL | re.MULTILINE)


class Threads(NamedTuple):
    """Threads of TensorFlow, 0: as many as there are processors. `session` stands for both others.

    They are the process's: the first session that is loaded sets them. `intra`, the threads of one operation, stays as
    it was where TensorFlow ran any operation before.
    """

    session: int = 0
    intra: int = 0
    inter: int = 0


class SessionModel:
    """A loaded SavedModel; `signatures` holds all its SignatureDefs, `directory` is where it came from."""

    def __init__(self, directory: Path, session: tf.compat.v1.Session,
                 signatures: dict[str, meta_graph_pb2.SignatureDef]):
        self.directory, self.signatures, self._session = directory, signatures, session
        self._inputs, self._outputs = {}, {}
        for name, signature in signatures.items():
            self._inputs[name] = _tensors(session.graph, signature.inputs)
            self._outputs[name] = _tensors(session.graph, signature.outputs)

    def run(self, signature: str, inputs: dict[str, np.ndarray], outputs: tuple[str, ...],
            deadline: float | None) -> dict[str, np.ndarray]:
        """Return the arrays that those of a signature's outputs have for its inputs, all by their keys in it.

        `deadline` is a value of time.monotonic(). Strings are object arrays of bytes. Dtypes must be the signature's,
        shapes are left to the graph. Raises ServingError with TensorFlow's code and text, DEADLINE_EXCEEDED after the
        deadline, UNIMPLEMENTED for what is no dense tensor.
        """
        session = self._session
        if session is None:
            raise ServingError(grpc.StatusCode.CANCELLED, "Session has been closed.")
        try:
            feeds = {self._inputs[signature][key]: value for key, value in inputs.items()}
            fetches = [self._outputs[signature][key] for key in outputs]
        except KeyError as error:
            raise ServingError(grpc.StatusCode.UNIMPLEMENTED,
                               f"{error.args[0]} is no dense tensor of the signature {signature}") from None
        options = None
        if deadline is not None:
            left = min(deadline - time.monotonic(), LONGEST)
            if left <= 0:
                raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
            # 0 would be no limit.
            options = pywrap_tf_session.TF_NewBufferFromString(
                tf.compat.v1.RunOptions(timeout_in_ms=math.ceil(left * 1000)).SerializeToString())
        try:
            values = pywrap_tf_session.TF_SessionRun_wrapper(session._session, options, feeds, fetches, [], None)
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)
        return dict(zip(outputs, values, strict=True))

    def close(self) -> None:
        """Give all memory back; no run may be under way, and none can follow."""
        session, self._session = self._session, None
        if session is None:
            return
        session.close()
        # Its tensors keep the graph.
        self._inputs, self._outputs = {}, {}
        del session
        # Graphs hold themselves in cycles.
        gc.collect()


def load(directory: Path, tags: tuple[str, ...], threads: Threads) -> SessionModel:
    """Return the model of a SavedModel directory's graph with all of `tags`.

    Raises ServingError: NOT_FOUND for a missing file, graph or operation, DATA_LOSS for a damaged file, otherwise
    TensorFlow's own code.
    """
    if not any((directory / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise not_found(f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {directory}. "
                        "Check that the directory exists and that you have the right permissions for accessing it.")
    session = tf.compat.v1.Session(graph=tf.Graph(), config=tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads.intra or threads.session,
        inter_op_parallelism_threads=threads.inter or threads.session))
    try:
        loaded = tf.compat.v1.saved_model.load(session, list(tags), str(directory))
        return SessionModel(directory, session, dict(loaded.signature_def))
    except Exception as error:
        session.close()
        raise _refusal(error, directory, tags) from error


def _refusal(error: Exception, directory: Path, tags: tuple[str, ...]) -> ServingError:
    """Return the ServingError, with the code that the real server gives, for what TensorFlow's Python loader raises."""
    if isinstance(error, tf.errors.OpError):
        plain = from_tensorflow(error)
        return ServingError(plain.code, f"{directory}: {AROUND.sub('', plain.message)}")
    message = str(error)
    # Its own exceptions tell kinds apart by their words alone.
    if isinstance(error, RuntimeError) and "could not be found in SavedModel" in message:
        return not_found(f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }} in {directory}."
                         " To inspect available tag-sets in the SavedModel, please use the SavedModel CLI: "
                         "`saved_model_cli`")
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
    """Return what the session knows a signature's tensors by.

    Without those of another encoding than one dense tensor, and what __saved_model_init_op names, an operation.
    """
    return {key: graph.get_tensor_by_name(info.name)._as_tf_output() for key, info in infos.items()
            if ":" in info.name}
