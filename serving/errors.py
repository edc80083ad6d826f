"""Errors with a gRPC status: how they read on the wire, in gRPC and in REST."""

import grpc
import tensorflow as tf

# TensorFlow Serving cuts longer messages.
LONGEST = 1024
CUT = "...TRUNCATED"
HTTP = {"OK": 200, "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "UNAUTHENTICATED": 401,
        "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
        "CANCELLED": 499, "UNKNOWN": 500, "INTERNAL": 500, "DATA_LOSS": 500, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503,
        "DEADLINE_EXCEEDED": 504}
# gRPC and TensorFlow number them alike.
BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """A request or a model that fails; `code` is a grpc.StatusCode, `message` at most LONGEST bytes of UTF-8."""

    def __init__(self, code: grpc.StatusCode, message: str):
        encoded = message.encode()
        if len(encoded) > LONGEST:
            message = encoded[:LONGEST - len(CUT)].decode(errors="ignore") + CUT
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def http(self) -> int:
        """The HTTP status of the REST answer."""
        return HTTP[self.code.name]


def invalid(message: str) -> ServingError:
    """Return an INVALID_ARGUMENT, the most frequent of them."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """Return a NOT_FOUND."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def from_tensorflow(error: tf.errors.OpError) -> ServingError:
    """Return TensorFlow's error with its own code and message."""
    return ServingError(BY_NUMBER[error.error_code], error.message)
