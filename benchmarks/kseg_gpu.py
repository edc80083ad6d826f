"""Run kseg's model code on JAX for benchmarks.gpu, without TensorFlow.

    KERAS_BACKEND=jax PYTHON -m benchmarks.kseg_gpu HEAD BATCH HEIGHT WIDTH PRECISION DEVICE ROUNDS STEPS

TensorFlow cannot be imported in this process even where it is installed. Weights and the batch are random and lie in
the memory of the device.
"""

import math
import sys
from collections.abc import Callable

from benchmarks import gpu_process
from benchmarks.gpu_process import INFERENCE, PRECISIONS, TRAINING, Work
from benchmarks.kseg_training import CLASSES, example

# Dtype of the layers -> Keras' dtype policy.
POLICIES = {"bfloat16": "mixed_bfloat16", "float32": "float32"}


def build(work: Work) -> tuple[dict, dict[str, Callable[[], dict]]]:
    """Return the description of the model and its tasks."""
    import jax
    import keras

    from kseg import __version__, models
    from kseg.config.sections import Model

    device = jax.devices()[0]
    if device.platform != work.device:
        raise RuntimeError(f"JAX computes on {device.platform}, not on a {work.device}")
    layers, tensor_float_32 = PRECISIONS[work.precision]
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tensor_float_32 else "highest")
    keras.utils.set_random_seed(0)
    settings = Model(head=work.head)
    model = models.build(settings, CLASSES, (work.height, work.width), POLICIES[layers])
    images, labels = jax.device_put(example(work.height, work.width, work.batch))
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    description = {
        "device": device.device_kind,
        "parameters": trained,
        "versions": {"kseg": __version__, "Keras": keras.__version__, "JAX": jax.__version__},
    }
    # The update overwrites the weights, so inference comes first.
    return description, {
        INFERENCE: lambda: measure_inference(model, images, work),
        TRAINING: lambda: measure_training(model, images, labels, work),
    }


def measure_inference(model, images, work: Work) -> dict:
    """Measure the way from normalized images to class ids of their size, as one compiled function."""
    import jax
    from keras import ops

    from kseg import models
    from kseg.models.layers import resize

    main = models.main_only(model)

    @jax.jit
    def predict(trainable, fixed, images):
        logits, _ = main.stateless_call(trainable, fixed, images, training=False)
        return ops.argmax(resize(logits, images.shape[1:3]), axis=-1)

    values = [
        [variable.value for variable in group] for group in (main.trainable_variables, main.non_trainable_variables)
    ]
    results = gpu_process.timed(lambda: predict(*values, images), jax.block_until_ready, work)
    return results | {"multiply_adds": multiply_adds(main), "peak": peak()}


def measure_training(model, images, labels, work: Work) -> dict:
    """Measure forward pass, losses, gradients and update, as one compiled function."""
    import jax

    from kseg.config.sections import Loss, Train
    from kseg.training import losses
    from kseg.training.optimizers import build_optimizer

    optimizer = build_optimizer(Train(global_batch=work.batch), model)

    def update(state, images, labels):
        trainable, fixed, slots = state

        def total(trainable):
            outputs, updated = model.stateless_call(trainable, fixed, images, training=True)
            terms = losses.loss_terms(outputs, labels, Loss()).values()
            return sum(weight * losses.mean_loss(summed, count) for weight, summed, count in terms), updated

        (loss, fixed), gradients = jax.value_and_grad(total, has_aux=True)(trainable)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return loss, (trainable, fixed, slots)

    compiled = jax.jit(update, donate_argnums=0)
    state = [
        [variable.value for variable in group]
        for group in (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    ]
    computed = []

    def step():
        nonlocal state
        loss, state = compiled(state, images, labels)
        computed.append(loss)
        return loss, state

    results = gpu_process.timed(step, jax.block_until_ready, work)
    return results | {"multiply_adds": multiply_adds(model), "peak": peak(), "loss": float(computed[0])}


def multiply_adds(model) -> int:
    """Count the multiply-adds of an image in the convolutions and dense layers of a functional model of known size."""
    total = 0
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            positions = layer.output.shape[1:-1]
            total += math.prod(kernel.shape) * math.prod(positions)
    return total


def peak() -> int | None:
    """Return the most bytes that JAX has had allocated on the device, or None if it does not count them."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


if __name__ == "__main__":
    # An import of TensorFlow raises ImportError from now on.
    sys.modules["tensorflow"] = None
    gpu_process.report(lambda: build(gpu_process.read_work(sys.argv[1:])))
