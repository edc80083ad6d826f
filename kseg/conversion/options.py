"""Read configurations of the original systems strictly.

Every option is read or checked. An unknown option or an unsupported value is an error.
"""

from collections.abc import Mapping
from typing import Any

from kseg.errors import ConfigError, unknown

# Options without a counterpart in kseg's config, and their supported values.
MMSEG_FIXED = {
    "model": {"type": ("EncoderDecoder",), "neck": (None,)},
    "backbone": {
        "in_channels": (3,),
        "num_stages": (4,),
        "out_indices": ([0, 1, 2, 3],),
        "frozen_stages": (-1,),
        "norm_eval": (False,),
        "conv_cfg": (None,),
        "dcn": (None,),
        "stage_with_dcn": ([False] * 4,),
        "plugins": (None,),
        "zero_init_residual": (True,),
    },
    "head": {
        "conv_cfg": (None,),
        "act_cfg": ({"type": "ReLU"},),
        "input_transform": (None,),
        "threshold": (None,),
        "ignore_index": (255,),
        "sampler": (None,),
    },
    "fcn": {"kernel_size": (3,), "dilation": (1,)},
    "norm": {"type": ("BN", "SyncBN"), "requires_grad": (True,), "eps": (1e-5,), "momentum": (0.1,)},
    "loss": {"type": ("CrossEntropyLoss",), "use_mask": (False,), "reduction": ("mean",), "use_sigmoid": (False,)},
    "se loss": {
        "type": ("CrossEntropyLoss",),
        "use_mask": (False,),
        "reduction": ("mean",),
        "use_sigmoid": (True,),
        "class_weight": (None,),
        "avg_non_ignore": (False, True),
    },
    "sampler": {"type": ("OHEMPixelSampler",)},
}
RELU = ({"type": "ReLU", "inplace": True}, {"type": "ReLU"})
SSS_FIXED = {
    "model": {"is_freeze_norm": (False,), "act_cfg": RELU},
    "backbone": {"type": ("ResNet",), "in_channels": (3,), "out_indices": ([0, 1, 2, 3],), "act_cfg": RELU},
    "fcn": {"num_convs": (2,)},
    "auxiliary": {"num_convs": (1,)},
    "norm": {"type": ("BatchNorm2d", "SyncBatchNorm"), "eps": (1e-5,), "momentum": (0.1,)},
    "loss": {
        "type": ("CrossEntropyLoss",),
        "reduction": ("mean",),
        "ignore_index": (-100,),
        "use_sigmoid": (False,),
        "norm_loss_with_class_weight": (True,),
        "label_smoothing": (None,),
        "lowest_loss_value": (None,),
    },
    "se loss": {
        "type": ("CrossEntropyLoss",),
        "reduction": ("mean",),
        "ignore_index": (-100,),
        "use_sigmoid": (True,),
        "class_weight": (None,),
        "label_smoothing": (None,),
        "lowest_loss_value": (None,),
    },
}
# Options that affect neither the network nor its losses: the data, initial files, memory, the test protocol.
WITHOUT_EFFECT = {
    "mmseg model": ("data_preprocessor", "pretrained", "init_cfg", "train_cfg", "test_cfg"),
    "mmseg backbone": ("with_cp", "pretrained", "init_cfg"),
    "mmseg head": ("init_cfg",),
    "sss model": ("inference",),
    "sss backbone": ("structure_type", "pretrained", "pretrained_model_path", "use_checkpoint"),
}

REQUIRED = object()


class Options:
    """A group of options of an original configuration, which records the options read. Tuples count as lists."""

    def __init__(self, values: Any, where: str = ""):
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where or 'a model configuration'} must be a group of options, got {values!r}")
        self.values = {key: _as_list(value) for key, value in values.items()}
        self.where, self.read = where, set()

    def name(self, key: str) -> str:
        """Return an option's full name."""
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str, default: Any = REQUIRED, kind: type | tuple = object) -> Any:
        """Return an option's value, or the original system's default.

        Raises ConfigError if the value is missing without a default or has another type than `kind`.
        """
        self.read.add(key)
        value = self.values.get(key, default)
        if value is REQUIRED:
            raise ConfigError(f"{self.name(key)} is missing")
        # A bool is an int in Python, but a bool where a number belongs is a mistake.
        if not isinstance(value, kind) or isinstance(value, bool) and kind not in (object, bool):
            raise self.unsupported(key, value)
        return value

    def group(self, key: str, default: Any = REQUIRED) -> "Options":
        """Return an option that is a group; a list of one group counts as that group."""
        value = self.take(key, default)
        return Options(value[0] if isinstance(value, list) and len(value) == 1 else value, self.name(key))

    def choice(self, key: str, choices: Mapping[str, Any]) -> Any:
        """Return the entry of `choices` for an option's value; raises ConfigError for other values."""
        value = self.take(key)
        if not isinstance(value, (str, int)) or value not in choices:
            raise ConfigError(unknown(self.name(key), str(value), map(str, choices)))
        return choices[value]

    def numbers(self, key: str, default: Any = REQUIRED, kind: type | tuple = int) -> tuple:
        """Return a list of numbers as a tuple; None counts as an empty list."""
        value = self.take(key, default)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.unsupported(key, value, "a list of numbers")
        return tuple(value)

    def expect(self, key: str, *choices: Any, default: Any = REQUIRED) -> None:
        """Raise ConfigError unless an option has a supported value."""
        value = self.take(key, default)
        if not any(_same(value, choice) for choice in choices):
            raise self.unsupported(key, value, ", ".join(map(repr, choices)))

    def unsupported(self, key: str, value: Any, choices: str = "") -> ConfigError:
        """Return the error for an unsupported value."""
        choices = f"; choices: {choices}" if choices else ""
        return ConfigError(f"{self.name(key)} = {value!r} is not supported{choices}")

    def finish(self, fixed: Mapping[str, tuple], without_effect: tuple = ()) -> None:
        """Check the options that have not been read; raises ConfigError for unknown options and unsupported values.

        `fixed` has the supported values by option. Options in `without_effect` may have any value.
        """
        for key, choices in fixed.items():
            if key in self.values and key not in self.read:
                self.expect(key, *choices)
        for key in self.values.keys() - self.read - set(without_effect):
            known = ", ".join(sorted({*self.read, *fixed, *without_effect}))
            raise ConfigError(f"{self.name(key)} = {self.values[key]!r} is not supported; known options: {known}")


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, (list, tuple)) else value


def _same(value: Any, choice: Any) -> bool:
    """Return whether two values are equal; 0 is not False, and 1 is not True."""
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)
