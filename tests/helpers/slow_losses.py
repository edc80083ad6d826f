"""Weighted and mined cross-entropy written as loops in float64, with examples for the comparison.

As a script it prints kseg's losses and gradients of each example on the backend that KERAS_BACKEND names:
KERAS_BACKEND=jax python -m tests.helpers.slow_losses
"""

import json
import math

import numpy as np

WEIGHTS = (0.3, 2.0, 0.0, 1.5)
# Mining keeps at least ten pixels of the two images.
MINED = {"ohem_kept": 5}
CASES = {
    "weighted": {"class_weights": WEIGHTS},
    "kept": MINED,
    "weighted and kept": MINED | {"class_weights": WEIGHTS},
    "ties": MINED,
    "all equal": MINED,
    "more than all": {"ohem_kept": 1000},
    "threshold": MINED | {"ohem_threshold": 0.7},
    "weighted, threshold": MINED | {"ohem_threshold": 0.7, "class_weights": WEIGHTS},
    "low threshold": MINED | {"ohem_threshold": 1e-6},
    "highest threshold": MINED | {"ohem_threshold": 1.0},
    "more than all, threshold": {"ohem_kept": 1000, "ohem_threshold": 0.7},
    "all equal, threshold": MINED | {"ohem_threshold": 0.2},
    "few labeled": MINED,
    "few labeled, threshold": MINED | {"ohem_threshold": 0.5},
    "all ignored": MINED | {"ohem_threshold": 0.7},
}


def example(name):
    """Return float32 logits (2, 6, 7, 4), uint8 labels (2, 6, 7) with a quarter ignored, and the fields of Loss."""
    generator = np.random.default_rng(5)
    logits = generator.normal(0, 2, (2, 6, 7, 4)).astype(np.float32)
    labels = generator.choice([0, 1, 2, 3, 255], size=(2, 6, 7), p=[0.2, 0.3, 0.15, 0.1, 0.25]).astype(np.uint8)
    if name == "ties":
        logits = generator.integers(0, 2, logits.shape).astype(np.float32)
    if name.startswith("all equal"):
        logits[:] = 0
    if name.startswith("few labeled"):
        labels[0], labels[1, 1:] = 255, 255
    if name == "all ignored":
        labels[:] = 255
    return logits, labels, CASES[name]


def reference(logits, labels, loss):
    """Return {"total", "count", "kept": mask, "gradient": d(total / count) / d logits}."""
    images, classes = len(labels), logits.shape[-1]
    weights = loss.class_weights or (1.0,) * classes
    pixels = [(index, int(labels[index])) for index in np.ndindex(labels.shape) if labels[index] != 255]
    probabilities, losses = {}, {}
    for index, label in pixels:
        # A sum in sorted order is the same for permuted logits, so that equal losses are equal here too.
        powers = [math.exp(value) for value in sorted(logits[index].astype(float))]
        probabilities[index] = math.exp(float(logits[index][label])) / sum(powers)
        losses[index] = -math.log(probabilities[index])
    kept = mined(probabilities, {index: weights[label] * losses[index] for index, label in pixels}, images, loss)
    total = sum(weights[label] * losses[index] for index, label in pixels if index in kept)
    counts = {
        "valid": sum(weights[label] for _, label in pixels),
        "kept": sum(weights[label] for index, label in pixels if index in kept),
    }
    counts["all"] = counts["valid"] + labels.size - len(pixels)
    count = counts[loss.average]
    gradient = np.zeros(logits.shape)
    for index, label in pixels:
        if index in kept:
            powers = np.exp(logits[index].astype(float))
            gradient[index] = weights[label] * (powers / powers.sum() - np.eye(classes)[label]) / count
    mask = np.zeros(labels.shape, bool)
    for index in kept:
        mask[index] = True
    return {"total": total, "count": count, "kept": mask, "gradient": gradient}


def mined(probabilities, weighted, images, loss):
    """Return the indices of the pixels that mining keeps, in terms of probabilities as in MMSegmentation."""
    if not loss.ohem_kept or not probabilities:
        return set(probabilities)
    minimum = loss.ohem_kept * images
    if not loss.ohem_threshold:
        return set(sorted(weighted, key=lambda index: -weighted[index])[:minimum])
    ascending = sorted(probabilities.values())
    limit = max(ascending[min(minimum, len(ascending) - 1)], loss.ohem_threshold)
    return {index for index, probability in probabilities.items() if probability < limit}


def main():
    import jax
    import keras

    from kseg.config.sections import Loss
    from kseg.training import losses

    output = {"backend": keras.backend.backend()}
    for name in CASES:
        logits, labels, settings = example(name)

        def value(outputs):
            return losses.mean_loss(*losses.cross_entropy(outputs, labels, Loss(average="kept", **settings)))

        loss, gradient = jax.jit(jax.value_and_grad(value))(logits)
        output[name] = {"loss": float(loss), "gradient": np.asarray(gradient, float).tolist()}
    print(json.dumps(output))


if __name__ == "__main__":
    main()
