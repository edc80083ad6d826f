"""The conversion of exceptions to gRPC and HTTP statuses."""

import pytest
import tensorflow as tf

from kseg.errors import ConfigError
from serving.errors import from_exception, not_found


@pytest.mark.parametrize(
    "error, code, http, message",
    [
        (not_found("no model"), "NOT_FOUND", 404, "no model"),
        (ConfigError("wrong file"), "INVALID_ARGUMENT", 400, "wrong file"),
        (tf.errors.DataLossError(None, None, "damaged"), "DATA_LOSS", 500, "damaged"),
        (MemoryError(), "RESOURCE_EXHAUSTED", 429, "Not enough memory"),
    ],
)
def test_expected_exceptions_have_a_status(error, code, http, message):
    failure = from_exception(error)
    assert (failure.code.name, failure.http, failure.message, failure.bug) == (code, http, message, None)


def test_other_exceptions_are_bugs():
    error = ZeroDivisionError("division by zero")
    failure = from_exception(error)
    assert (failure.code.name, failure.message) == ("INTERNAL", "ZeroDivisionError: division by zero")
    assert failure.bug is error
