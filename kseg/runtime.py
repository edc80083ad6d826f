"""Devices, replicas and determinism: what has to be settled before the first tensor."""

import keras
import tensorflow as tf

from kseg.config import Train
from kseg.errors import ConfigError


def prepare(train: Train, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Seed everything, claim the devices and return the strategy to train under.

    All GPUs where there are any, else the CPU, which `cpu_replicas` splits into that many virtual devices. Raises
    ConfigError where the global batch cannot be shared out evenly.
    """
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"training needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}")
    keras.utils.set_random_seed(train.seed)
    set_tensor_float_32(train.tensor_float_32)
    if train.deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Once: a second run in one process may not set it again.
        if not tf.config.experimental.get_memory_growth(gpu):
            tf.config.experimental.set_memory_growth(gpu, True)
    if cpu_replicas > 1 and not gpus:
        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            processor, [tf.config.LogicalDeviceConfiguration()] * cpu_replicas)
    devices = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")]
    # One device needs no mirroring, and the default strategy runs the same step without its overhead.
    strategy = tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
    if train.global_batch % strategy.num_replicas_in_sync:
        raise ConfigError(f"train.global_batch={train.global_batch} cannot be shared evenly by "
                          f"{strategy.num_replicas_in_sync} replicas; set a multiple of "
                          f"{strategy.num_replicas_in_sync}")
    return strategy


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
