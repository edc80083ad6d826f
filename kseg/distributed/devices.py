"""The devices of one machine, claimed before the first tensor."""

import keras
import tensorflow as tf

from kseg.errors import ConfigError


def require_tensorflow() -> None:
    """Raise ConfigError where Keras runs on another backend, which tf.distribute knows nothing of."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"this command needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}")


def claim_devices(cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Return a strategy over all GPUs where there are any, else over the CPU, split into that many virtual devices."""
    if cpu_replicas < 1:
        raise ConfigError(f"--cpu-replicas must be at least 1, got {cpu_replicas}")
    grow_memory()
    gpus = tf.config.list_physical_devices("GPU")
    if cpu_replicas > 1 and not gpus:
        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            processor, [tf.config.LogicalDeviceConfiguration()] * cpu_replicas)
    devices = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    # One device needs no mirroring. With its own strategy a GPU has the next batch before the step asks for it.
    return tf.distribute.OneDeviceStrategy(devices[0]) if gpus else tf.distribute.get_strategy()


def grow_memory() -> None:
    """Let each GPU's memory be taken as it is needed, and not all of it at once."""
    for gpu in tf.config.list_physical_devices("GPU"):
        # Once: a second run in one process may not set it again.
        if not tf.config.experimental.get_memory_growth(gpu):
            tf.config.experimental.set_memory_growth(gpu, True)
