"""The interface of a loaded model version."""

from pathlib import Path
from typing import Protocol

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2


class Servable(Protocol):
    """A loaded model version that answers requests from many threads.

    Attributes:
        directory: The version's SavedModel directory.
        signatures: The SavedModel's SignatureDefs by name.
    """

    directory: Path
    signatures: dict[str, meta_graph_pb2.SignatureDef]

    def run(
        self, signature: str, inputs: dict[str, np.ndarray], outputs: tuple[str, ...], deadline: float | None
    ) -> dict[str, np.ndarray]:
        """Run a signature once and return the requested outputs.

        Args:
            signature: A name in `signatures`.
            inputs: The arrays by their aliases in the signature; strings are object arrays of bytes.
            outputs: The aliases of the outputs to compute.
            deadline: A value of time.monotonic(), or None.

        Raises:
            ServingError: with the code and text of the failure, DEADLINE_EXCEEDED after the deadline.
        """

    def close(self) -> None:
        """Free the model's memory; no run is in progress and none may follow."""
