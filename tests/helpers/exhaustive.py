"""Mark tests that repeat a check for another head, format or setting; `make test-all` runs them too."""

import os

import pytest

ALL = bool(os.environ.get("KSEG_ALL_TESTS"))
exhaustive = pytest.mark.skipif(not ALL, reason="repeats a check for another case: `make test-all` runs it")


def all_of(first, *others):
    """Return the parameters of a test that `make test` runs for some cases and `make test-all` for the others too.

    first: A list of the cases that always run.
    others: The other cases; a tuple holds the values of several parameters.
    """
    return [
        *first,
        *(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=exhaustive) for case in others),
    ]
