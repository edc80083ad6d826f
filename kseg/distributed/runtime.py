"""Devices, replicas and determinism: what has to be settled before the first tensor."""

import keras
import tensorflow as tf

from kseg.config import Train
from kseg.distributed import devices, hosts
from kseg.errors import ConfigError


def prepare(train: Train, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Seed everything, claim hosts and devices and return the strategy to train under, as `kseg.distributed.hosts.claim` does.

    Raises ConfigError where the global batch cannot be shared out evenly, and what `kseg.distributed.hosts.claim` raises.
    """
    devices.require_tensorflow()
    keras.utils.set_random_seed(train.seed)
    set_tensor_float_32(train.tensor_float_32)
    if train.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = hosts.claim(cpu_replicas)
    require_even_shares(train, strategy)
    return strategy


def require_even_shares(train: Train, strategy: tf.distribute.Strategy) -> None:
    """Raise ConfigError where replicas, or the parts that each takes its share in, cannot share the batch evenly."""
    replicas, parts = strategy.num_replicas_in_sync, train.accumulate
    if train.global_batch % (replicas * parts):
        by = f"{replicas} replica{'s' * (replicas > 1)}"
        by += f" in {parts} parts each (train.accumulate)" if parts > 1 else ""
        raise ConfigError(f"train.global_batch={train.global_batch} cannot be shared evenly by {by}; set a multiple of "
                          f"{replicas * parts}")


def devices_line(strategy: tf.distribute.Strategy) -> str:
    """Return the devices of a strategy in short, such as "2 x GPU" or "1 x CPU"."""
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return f"{strategy.num_replicas_in_sync} x {kind}"


def set_tensor_float_32(enabled: bool) -> None:
    """Say whether a GPU may round the inputs of float32 convolutions and products to 10 bits; TensorFlow's default."""
    tf.config.experimental.enable_tensor_float_32_execution(enabled)


def device_line() -> str:
    """Return what training runs on, in one line."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
        return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}: {', '.join(names)}"
    return f"no GPU: running on the CPU ({len(tf.config.list_logical_devices('CPU'))} device(s))"


def batch_line(train: Train, replicas: int) -> str:
    """Return how the global batch is shared."""
    share = train.global_batch // replicas
    return f"global batch {train.global_batch} = {replicas} replica{'s' * (replicas > 1)} x {share}"
