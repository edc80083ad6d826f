"""Claim the devices of this machine before TensorFlow creates its first tensor."""

import keras
import tensorflow as tf

from kseg.errors import ConfigError


def require_tensorflow() -> None:
    """Raise ConfigError if Keras uses another backend, which tf.distribute does not support."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"this command needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}")


def claim_devices(cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Return a strategy over all GPUs, or over the CPU if there is no GPU.

    `cpu_replicas` is the number of virtual devices into which the CPU is split; with a GPU it has no effect. Raises
    ConfigError if it is below 1.
    """
    if cpu_replicas < 1:
        raise ConfigError(f"--cpu-replicas must be at least 1, got {cpu_replicas}")
    grow_memory()
    gpus = tf.config.list_physical_devices("GPU")
    if cpu_replicas > 1 and not gpus:
        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * cpu_replicas)
    devices = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    # One device needs no mirroring. OneDeviceStrategy copies the next batch to a GPU before the step needs it.
    return tf.distribute.OneDeviceStrategy(devices[0]) if gpus else tf.distribute.get_strategy()


def grow_memory() -> None:
    """Make TensorFlow allocate the memory of each GPU as needed instead of all at once."""
    for gpu in tf.config.list_physical_devices("GPU"):
        # A second run in the same process must not set it again.
        if not tf.config.experimental.get_memory_growth(gpu):
            tf.config.experimental.set_memory_growth(gpu, True)


def devices_line(strategy: tf.distribute.Strategy) -> str:
    """Return a strategy's devices in short, such as "2 x GPU" or "1 x CPU"."""
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return f"{strategy.num_replicas_in_sync} x {kind}"


def set_tensor_float_32(enabled: bool) -> None:
    """Set whether a GPU may round the inputs of float32 convolutions and products to 10 bits (TensorFlow's default)."""
    tf.config.experimental.enable_tensor_float_32_execution(enabled)


def device_line() -> str:
    """Return the devices of this machine in one line."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
        return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}: {', '.join(names)}"
    return f"no GPU: running on the CPU ({len(tf.config.list_logical_devices('CPU'))} device(s))"
