"""Errors with a gRPC status, and the conversion of every exception to one."""

from typing import TYPE_CHECKING

import grpc

from kseg.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

# TensorFlow Serving cuts longer messages.
MAX_MESSAGE_BYTES = 1024
TRUNCATED = "...TRUNCATED"
HTTP = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# gRPC and TensorFlow use the same numbers.
CODES = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """A failed request or load.

    Attributes:
        code: The gRPC status code.
        message: The text that the client reads, at most MAX_MESSAGE_BYTES bytes of UTF-8.
        bug: The exception behind the failure where nothing in the server expects it, otherwise None. Whoever reports
            the failure logs the traceback of `bug`.
    """

    def __init__(self, code: grpc.StatusCode, message: str, bug: Exception | None = None):
        encoded = message.encode()
        if len(encoded) > MAX_MESSAGE_BYTES:
            message = encoded[: MAX_MESSAGE_BYTES - len(TRUNCATED)].decode(errors="ignore") + TRUNCATED
        super().__init__(message)
        self.code, self.message, self.bug = code, message, bug

    @property
    def http(self) -> int:
        """The HTTP status of the REST response."""
        return HTTP[self.code.name]


def invalid(message: str) -> ServingError:
    """Return an INVALID_ARGUMENT error."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """Return a NOT_FOUND error."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def from_tensorflow(error: "tf.errors.OpError") -> ServingError:
    """Return a ServingError with TensorFlow's code and message."""
    return ServingError(CODES[error.error_code], error.message)


def from_exception(error: Exception) -> ServingError:
    """Return the status that a failed request or load reports to clients.

    gRPC, REST and the loading of versions all convert their exceptions here.
    """
    # Imported here, because this module is used before the server imports TensorFlow.
    import tensorflow as tf

    match error:
        case ServingError():
            return error
        case UserError():
            return invalid(str(error))
        case tf.errors.OpError():
            return from_tensorflow(error)
        case MemoryError():
            return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, "Not enough memory")
    return ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}", bug=error)
