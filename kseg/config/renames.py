"""Accept keys and values of configs under the names that they had in the previous release.

The old names work in --set, in VARIANTS, in stored configs, and as keywords of the sections in users' config files.
"""

import functools
import sys
from typing import Any, TypeVar

# Old dotted key -> new dotted key.
KEYS = {"augment.pad_colour": "augment.pad_color"}
# New dotted key -> {old value: new value}.
VALUES = {"augment.pad": {"centre": "center"}}

Section = TypeVar("Section", bound=type)


def current_key(key: str) -> str:
    """Return the current name of a dotted key, with a note if it is an old name."""
    if key not in KEYS:
        return key
    note(key, KEYS[key])
    return KEYS[key]


def current_value(key: str, value: Any) -> Any:
    """Return the current name of a value at a current key, with a note if it is an old name."""
    renamed = VALUES.get(key, {})
    if not isinstance(value, str) or value not in renamed:
        return value
    note(f"{key}={value}", f"{key}={renamed[value]}")
    return renamed[value]


@functools.cache
def note(old: str, new: str) -> None:
    """Print once that a name has changed."""
    print(f"note: {old} is now {new}; the old name works for one more release", file=sys.stderr)


def accept_old_names(section: str):
    """Return a class decorator: the dataclass also takes old names as keywords and offers them as attributes.

    An old keyword takes precedence, because dataclasses.replace passes the current one as well.
    """
    old_names = {old.rpartition(".")[2]: old for old in KEYS if old.rpartition(".")[0] == section}

    def decorate(cls: Section) -> Section:
        initialize = cls.__init__

        @functools.wraps(initialize)
        def initialize_renamed(self, *arguments, **keywords) -> None:
            for name in old_names.keys() & keywords.keys():
                value = keywords.pop(name)
                keywords[current_key(old_names[name]).rpartition(".")[2]] = value
            initialize(
                self,
                *arguments,
                **{name: current_value(f"{section}.{name}", value) for name, value in keywords.items()},
            )

        cls.__init__ = initialize_renamed
        for name, key in old_names.items():
            setattr(cls, name, property(lambda self, new=KEYS[key].rpartition(".")[2]: getattr(self, new)))
        return cls

    return decorate
