"""Devices, replicas and determinism: what has to be settled before the first tensor."""

import json
import os

import keras
import tensorflow as tf

from kseg.config import Train
from kseg.errors import ConfigError


def prepare(train: Train, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Seed everything, claim the devices and return the strategy to train under, as `claim_devices` does.

    Raises ConfigError where the global batch cannot be shared out evenly.
    """
    require_tensorflow()
    keras.utils.set_random_seed(train.seed)
    set_tensor_float_32(train.tensor_float_32)
    if train.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = claim_devices(cpu_replicas)
    if train.global_batch % strategy.num_replicas_in_sync:
        raise ConfigError(f"train.global_batch={train.global_batch} cannot be shared evenly by "
                          f"{strategy.num_replicas_in_sync} replicas; set a multiple of "
                          f"{strategy.num_replicas_in_sync}")
    return strategy


def require_tensorflow() -> None:
    """Raise ConfigError where Keras runs on another backend, which tf.distribute knows nothing of."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"this command needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}")


def claim_devices(cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Return a strategy over all GPUs where there are any, else over the CPU, split into that many virtual devices."""
    if cpu_replicas < 1:
        raise ConfigError(f"--cpu-replicas must be at least 1, got {cpu_replicas}")
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
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


def claim_hosts(cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Return a strategy over the hosts that the environment's TF_CONFIG names, or over this one's devices without it.

    Before anything else of TensorFlow has run. Raises ConfigError where TF_CONFIG cannot be read.
    """
    require_tensorflow()
    text = os.environ.get("TF_CONFIG", "")
    try:
        cluster = json.loads(text or "{}").get("cluster", {})
        tasks = sum(len(addresses) for addresses in cluster.values())
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"TF_CONFIG cannot be read ({type(error).__name__}: {error}): {text}") from None
    if tasks < 2:
        return claim_devices(cpu_replicas)
    if cpu_replicas != 1:
        raise ConfigError("--cpu-replicas is for one host; TF_CONFIG names several")
    return tf.distribute.MultiWorkerMirroredStrategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the one of all hosts that reports and writes."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().jobs:
        return True
    # Without a task called chief, the first worker is.
    return resolver.task_type == "chief" or (
        resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs)


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
