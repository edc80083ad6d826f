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
