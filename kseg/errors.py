"""Errors that a user can fix: they name the file, the value and the choices, and are printed without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something outside the program has to change; the message tells what."""


class ConfigError(UserError):
    """A config, an override or a name in it is wrong."""


class DataError(UserError):
    """A dataset, an image or a label is missing, damaged or inconsistent."""


class MissingSplit(DataError):
    """A split of a dataset is not there at all; others may be."""


class WeightsError(UserError):
    """A file of weights is damaged, or does not fit the model."""


class WorkdirError(UserError):
    """A working directory cannot be written, or belongs to another run."""


class TrackingError(UserError):
    """A server that tracks experiments cannot be used."""


def unknown(kind: str, value: str, choices: Iterable[str], prefix: str = "", meant: Iterable[str] = ()) -> str:
    """Return the message for an unknown name, with the nearest choices and then all of them, each after `prefix`.

    `meant` are full names to suggest instead of the nearest choices.
    """
    choices = sorted(choices)
    nearest = list(meant) or [prefix + name for name in difflib.get_close_matches(value, choices, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    return f"unknown {kind} {prefix + value!r}.{hint} Choices: {', '.join(prefix + name for name in choices)}"
