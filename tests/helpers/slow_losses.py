"""Weighted and mined cross-entropy written as loops in float64, and the examples it is compared on.

Run as a script, it prints kseg's numbers for each example on the backend that KERAS_BACKEND names:
KERAS_BACKEND=jax python -m tests.helpers.slow_losses
"""

import json
import math

import numpy as np

WEIGHTS = (0.3, 2.0, 0.0, 1.5)
# Ten pixels of the two images at least.
MINED = {"ohem_kept": 5}
CASES = {
    "weighted": {"class_weights": WEIGHTS},
    "kept": MINED,
    "weighted and kept": MINED | {"class_weights": WEIGHTS},
    "ties": MINED,
    "all alike": MINED,
    "more than there are": {"ohem_kept": 1000},
    "threshold": MINED | {"ohem_threshold": 0.7},
    "weighted, threshold": MINED | {"ohem_threshold": 0.7, "class_weights": WEIGHTS},
    "low threshold": MINED | {"ohem_threshold": 1e-6},
    "highest threshold": MINED | {"ohem_threshold": 1.0},
    "more than there are, threshold": {"ohem_kept": 1000, "ohem_threshold": 0.7},
    "all alike, threshold": MINED | {"ohem_threshold": 0.2},
    "few labelled": MINED,
    "few labelled, threshold": MINED | {"ohem_threshold": 0.5},
    "all ignored": MINED | {"ohem_threshold": 0.7},
}


def example(name):
    """Return float32 logits (2, 6, 7, 4), uint8 labels (2, 6, 7) with a quarter ignored, and the fields of Loss."""
    generator = np.random.default_rng(5)
    logits = generator.normal(0, 2, (2, 6, 7, 4)).astype(np.float32)
    labels = generator.choice([0, 1, 2, 3, 255], size=(2, 6, 7), p=[0.2, 0.3, 0.15, 0.1, 0.25]).astype(np.uint8)
    if name == "ties":
        logits = generator.integers(0, 2, logits.shape).astype(np.float32)
    if name.startswith("all alike"):
        logits[:] = 0
    if name.startswith("few labelled"):
        labels[0], labels[1, 1:] = 255, 255
    if name == "all ignored":
        labels[:] = 255
    return logits, labels, CASES[name]


def reference(logits, labels, loss):
    """Return {"total", "count", "kept" (mask), "gradient" of their quotient by the logits}."""
    samples, classes = len(labels), logits.shape[-1]
    weights = loss.class_weights or (1.0,) * classes
    # Kept exactly as in the logits, so that equal losses are equal here too.
    pixels = [(place, int(labels[place])) for place in np.ndindex(labels.shape) if labels[place] != 255]
    chances, losses = {}, {}
    for place, label in pixels:
        powers = [math.exp(value) for value in sorted(logits[place].astype(float))]
        chances[place] = math.exp(float(logits[place][label])) / sum(powers)
        losses[place] = -math.log(chances[place])
    kept = mined(chances, {place: weights[label] * losses[place] for place, label in pixels}, samples, loss)
    total = sum(weights[label] * losses[place] for place, label in pixels if place in kept)
    counts = {"valid": sum(weights[label] for _, label in pixels),
              "kept": sum(weights[label] for place, label in pixels if place in kept)}
    counts["all"] = counts["valid"] + labels.size - len(pixels)
    count = counts[loss.average]
    gradient = np.zeros(logits.shape)
    for place, label in pixels:
        if place in kept:
            powers = np.exp(logits[place].astype(float))
            gradient[place] = weights[label] * (powers / powers.sum() - np.eye(classes)[label]) / count
    mask = np.zeros(labels.shape, bool)
    for place in kept:
        mask[place] = True
    return {"total": total, "count": count, "kept": mask, "gradient": gradient}


def mined(chances, weighted, samples, loss):
    """Return the places that online hard example mining keeps, in probabilities as MMSegmentation writes it."""
    if not loss.ohem_kept or not chances:
        return set(chances)
    kept = loss.ohem_kept * samples
    if not loss.ohem_threshold:
        return set(sorted(weighted, key=lambda place: -weighted[place])[:kept])
    ascending = sorted(chances.values())
    limit = max(ascending[min(kept, len(ascending) - 1)], loss.ohem_threshold)
    return {place for place, chance in chances.items() if chance < limit}


def main():
    import jax
    import keras

    from kseg.config import Loss
    from kseg.training import losses

    found = {"backend": keras.backend.backend()}
    for name in CASES:
        logits, labels, how = example(name)

        def value(outputs):
            return losses.mean(*losses.cross_entropy(outputs, labels, Loss(average="kept", **how)))

        loss, gradient = jax.jit(jax.value_and_grad(value))(logits)
        found[name] = {"loss": float(loss), "gradient": np.asarray(gradient, float).tolist()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
