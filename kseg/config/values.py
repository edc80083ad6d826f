"""Read, replace and compare the typed values of nested frozen dataclasses, addressed by dotted keys."""

import ast
import dataclasses
import difflib
import functools
import typing
from typing import Any, Literal

from kseg.config import renames
from kseg.errors import ConfigError, unknown


def leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) for every value of nested dataclasses."""
    pairs = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        key = prefix + field.name
        pairs += leaves(value, f"{key}.") if dataclasses.is_dataclass(value) else [(key, value)]
    return pairs


def config_differences(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, old value, new value) for every difference between two objects of one dataclass."""
    pairs = zip(leaves(old), leaves(new))
    return [(key, old_value, new_value) for (key, old_value), (_, new_value) in pairs if old_value != new_value]


def set_value(node: Any, override: str) -> Any:
    """Return a copy with one override `a.b=c`, whose text `c` is converted to the field's type.

    Raises ConfigError for an unknown key, or for text that is no value of that type.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set takes KEY=VALUE, got {override!r}")
    key = renames.current_key(key.strip())
    return replace_value(node, key, parse_value(text.strip(), type_of(node, key)))


def replace_value(node: Any, key: str, value: Any) -> Any:
    """Return a copy with another value at a dotted key; raises ConfigError for a wrong key or type."""
    key = renames.current_key(key)
    return _replace_at(node, key.split("."), to_type(type_of(node, key), value, key))


def _replace_at(node: Any, names: list[str], value: Any) -> Any:
    if not names:
        return value
    inner = _replace_at(getattr(node, names[0]), names[1:], value)
    return dataclasses.replace(node, **{names[0]: inner})


def type_of(node: Any, key: str) -> Any:
    """Return the type of the value at a dotted key; raises ConfigError for an unknown key and for a group."""
    names = key.split(".")
    kind = type(node)
    for depth, name in enumerate(names):
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"{key}: {'.'.join(names[:depth])} is a value, not a group")
        types = field_types(kind)
        if name not in types:
            raise ConfigError(
                unknown(
                    "config key",
                    name,
                    types,
                    "".join(f"{part}." for part in names[:depth]),
                    keys_named(type(node), name) if depth == len(names) - 1 else (),
                )
            )
        kind = types[name]
    if dataclasses.is_dataclass(kind):
        choices = (f"{key}.{choice}" for choice in field_types(kind))
        raise ConfigError(f"{key} is a group; set one of its values: {', '.join(choices)}")
    return kind


def keys_named(kind: type, name: str) -> list[str]:
    """Return the dotted keys of nested dataclasses that end with a name, or with the most similar one.

    Args:
        kind: the outermost dataclass.
        name: the last part of a key, such as "steps".

    Returns:
        The keys, sorted; [] if no name is similar.
    """
    keys: dict[str, list[str]] = {}
    for key in sorted(dotted_keys(kind)):
        keys.setdefault(key.rpartition(".")[2], []).append(key)
    nearest = difflib.get_close_matches(name, keys, n=1, cutoff=0.75)
    return keys[nearest[0]] if nearest else []


def dotted_keys(kind: type, prefix: str = "") -> list[str]:
    """Return the dotted keys of all values of nested dataclasses."""
    keys = []
    for name, inner in field_types(kind).items():
        keys += dotted_keys(inner, f"{prefix}{name}.") if dataclasses.is_dataclass(inner) else [prefix + name]
    return keys


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name, without their limits."""
    return typing.get_type_hints(kind)


def parse_value(text: str, wanted: Any) -> Any:
    """Return command-line text as a Python value; text for a field of type str is returned unchanged."""
    if wanted is str:
        return text
    if wanted is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if typing.get_origin(wanted) is tuple and not text.startswith(("(", "[")):
        item = typing.get_args(wanted)[0]
        return [parse_value(part.strip(), item) for part in text.split(",") if part.strip()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def to_type(wanted: Any, value: Any, key: str) -> Any:
    """Return `value` as the type `wanted`; raises ConfigError with the key, the value and the type or choices."""
    value = renames.current_value(key, value)
    origin = typing.get_origin(wanted)
    if origin is Literal:
        choices = typing.get_args(wanted)
        for choice in choices:
            if value == choice and type(value) is type(choice):
                return choice
        raise ConfigError(unknown(f"value of {key}:", str(value), map(str, choices)))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} takes a list such as a,b; got {value!r}")
        return tuple(to_type(typing.get_args(wanted)[0], item, key) for item in value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{key} takes {wanted.__name__}, got {value!r}")
    return value


def read_dict(kind: type, values: dict, prefix: str = "") -> Any:
    """Return the dataclass `kind` from nested plain dicts; raises ConfigError for unknown keys and wrong types."""
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'a config'} is a group of values, got {values!r}")
    types = field_types(kind)
    arguments = {}
    for name, value in values.items():
        key = renames.current_key(prefix + name)
        name = key.removeprefix(prefix)
        if name not in types:
            raise ConfigError(unknown("config key", name, types, prefix))
        if dataclasses.is_dataclass(types[name]):
            arguments[name] = read_dict(types[name], value, key + ".")
        else:
            arguments[name] = to_type(types[name], value, key)
    return kind(**arguments)
