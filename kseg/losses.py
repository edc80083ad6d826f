"""Loss terms as (sum, count) pairs, so that a mean over several replicas is the mean over the global batch.

Averaging each replica's mean is wrong as soon as replicas hold different numbers of ignored pixels.
"""

from keras import ops

from kseg.config import IGNORED, Loss
from kseg.models.layers import resize


def terms(outputs: dict, labels, loss: Loss, align_corners: bool = False) -> dict:
    """Return {name: (weight, sum, count)} for each output of a model; each loss is weight * mean(sum, count).

    `labels` are integer train ids (N, H, W), 255 ignored. Logits are resized to the labels' size first. Sums and
    counts are those of the given batch alone: a caller with several replicas adds the counts up before dividing.
    """
    weights = {"main": loss.main, "aux": loss.auxiliary, "se": loss.se}
    pairs = {}
    for name, logits in outputs.items():
        if name == "se":
            pairs[name] = (weights[name], *presence(logits, labels))
        else:
            full = resize(ops.cast(logits, "float32"), ops.shape(labels)[1:3], align_corners)
            pairs[name] = (weights[name], *cross_entropy(full, labels, loss.average))
    return pairs


def cross_entropy(logits, labels, average: str):
    """Return (sum, count) of the softmax cross-entropy over pixels whose label is not 255.

    `logits` float32 (N, H, W, C), `labels` (N, H, W). The count is all pixels for average "all" (MMSegmentation's
    recipes divide by ignored pixels too) and the labelled ones for "valid", which may be none.
    """
    labels = ops.cast(labels, "int32")
    valid = ops.not_equal(labels, IGNORED)
    each = ops.sparse_categorical_crossentropy(ops.where(valid, labels, 0), logits, from_logits=True)
    total = ops.sum(ops.where(valid, each, 0.0))
    counted = valid if average == "valid" else ops.ones_like(valid)
    return total, ops.sum(ops.cast(counted, "float32"))


def mean(total, count):
    """Return sum / count of a whole batch, 0 where nothing was counted: an all-ignored batch has no loss, not nan."""
    return total / ops.maximum(count, 1.0)


def presence(logits, labels):
    """Return (sum, count) of the binary cross-entropy of class presence: EncNet's semantic encoding loss (section 3.2).

    `logits` (N, C); a class is present where one pixel of the sample's label (N, H, W) has it.
    """
    samples, classes = ops.shape(logits)[0], logits.shape[-1]
    labels = ops.reshape(ops.cast(labels, "int32"), (samples, -1))
    # One segment for each class of each sample, and one more for what is ignored.
    segments = ops.minimum(labels, classes) + (classes + 1) * ops.arange(samples)[:, None]
    found = ops.segment_max(ops.ones_like(ops.reshape(segments, (-1,))), ops.reshape(segments, (-1,)),
                            num_segments=samples * (classes + 1))
    present = ops.reshape(ops.cast(found > 0, "float32"), (samples, classes + 1))[:, :classes]
    each = ops.binary_crossentropy(present, logits, from_logits=True)
    return ops.sum(each), ops.cast(samples * classes, "float32")
