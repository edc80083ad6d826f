"""Loss terms as (sum, count) pairs, so that a mean over several replicas is the mean over the global batch.

Averaging each replica's mean is wrong as soon as replicas hold different numbers of ignored pixels.
"""

import dataclasses
import math

from keras import ops

from kseg.config import IGNORED, Loss
from kseg.errors import ConfigError
from kseg.models.layers import replica_context, resize


def terms(outputs: dict, labels, loss: Loss, align_corners: bool = False) -> dict:
    """Return {name: (weight, sum, count)} for each output of a model; each loss is weight * mean(sum, count).

    `labels` are integer train ids (N, H, W), 255 ignored. Logits are resized to the labels' size first; everything is
    computed in float32. Sums and counts are those of the given batch alone: a caller with several replicas adds the
    counts up before dividing. Hard example mining concerns "main" alone, as in MMSegmentation. Raises ConfigError where
    loss.class_weights does not fit the number of classes.
    """
    # "kept" then means the labelled pixels, all of which an auxiliary head keeps.
    auxiliary = dataclasses.replace(loss, ohem_kept=0, ohem_threshold=0.0)
    pairs = {}
    for name, logits in outputs.items():
        if name == "se":
            pairs[name] = (loss.se, *presence(ops.cast(logits, "float32"), labels))
        else:
            full = resize(ops.cast(logits, "float32"), ops.shape(labels)[1:3], align_corners)
            weight, how = (loss.main, loss) if name == "main" else (loss.auxiliary, auxiliary)
            pairs[name] = (weight, *cross_entropy(full, labels, how))
    return pairs


def counts(labels, names, classes: int, loss: Loss) -> list:
    """Return the counts that `terms` gives for outputs of those names, from the labels alone.

    Without hard example mining, which has to see the logits first.
    """
    labels = ops.cast(labels, "int32")
    valid = ops.not_equal(labels, IGNORED)
    weights = ops.ones(ops.shape(labels), "float32")
    if loss.class_weights:
        weights = ops.take(ops.convert_to_tensor(loss.class_weights, "float32"), ops.where(valid, labels, 0))
    pixels = ops.sum(ops.where(valid, weights, 1.0 if loss.average == "all" else 0.0))
    samples = ops.cast(ops.shape(labels)[0] * classes, "float32")
    return [samples if name == "se" else pixels for name in names]


def require_class_weights(loss: Loss, classes: int) -> None:
    """Raise ConfigError where loss.class_weights is neither empty nor one weight for each class."""
    if len(loss.class_weights) not in (0, classes):
        raise ConfigError(f"loss.class_weights takes one weight for each of the {classes} classes, "
                          f"got {len(loss.class_weights)}")


def cross_entropy(logits, labels, loss: Loss):
    """Return (sum, count) of the softmax cross-entropy over the pixels that count.

    `logits` float32 (N, H, W, C), `labels` (N, H, W). The sum is over pixels whose label is not 255, or over the
    `hardest` of them where loss.ohem_kept is set. The count is all pixels for loss.average "all" (MMSegmentation's
    recipes divide by ignored pixels too), the labelled ones for "valid", and those in the sum for "kept"; it may be 0.
    With class weights, a pixel counts as its class's weight. Raises ConfigError as `terms` does.
    """
    require_class_weights(loss, logits.shape[-1])
    labels = ops.cast(labels, "int32")
    valid = ops.not_equal(labels, IGNORED)
    classes = ops.where(valid, labels, 0)
    each = ops.sparse_categorical_crossentropy(classes, logits, from_logits=True)
    weights = ops.ones_like(each)
    if loss.class_weights:
        weights = ops.take(ops.convert_to_tensor(loss.class_weights, "float32"), classes)
    weighted = each * weights
    kept = hardest(each, weighted, valid, loss) if loss.ohem_kept else valid
    total = ops.sum(ops.where(kept, weighted, 0.0))
    # An ignored pixel has no class: it counts as much as it does without weights.
    counted = {"all": ops.where(valid, weights, 1.0), "valid": ops.where(valid, weights, 0.0),
               "kept": ops.where(kept, weights, 0.0)}[loss.average]
    return total, ops.sum(counted)


def hardest(each, weighted, valid, loss: Loss):
    """Return the mask of the pixels that online hard example mining keeps, without a gradient.

    `each` and `weighted` are cross-entropies without and with class weights, float32 (N, H, W), and `valid` tells the
    labelled pixels. Without a threshold these are the loss.ohem_kept * N with the largest weighted loss, or as many as
    there are; of equal ones the first. With a threshold t these are all whose true class has a probability below both
    t, or below that of the pixel number loss.ohem_kept * N from the hardest (counted from 0) where that is higher.
    Source: Shrivastava et al. 2016, arXiv:1604.03540, with MMSegmentation's definition of the threshold.

    N is the global batch: the pixels of all replicas compete, where MMSegmentation selects on each GPU. Otherwise the
    number of devices and the way in which void pixels fall on them would decide what is learned.
    """
    losses = ops.stop_gradient(each if loss.ohem_threshold else weighted)
    # A loss that is not a number is the hardest of all, or mining would hide that a run has diverged.
    losses = ops.where(ops.isfinite(losses), losses, math.inf)
    own = ops.reshape(ops.where(valid, losses, -math.inf), (-1,))
    everywhere, start, replicas = own, 0, 1
    context = replica_context()
    if context is not None:
        everywhere, replicas = context.all_gather(own, axis=0), context.num_replicas_in_sync
        # Replicas hold equal shares of the global batch, in their own order.
        start = ops.cast(context.replica_id_in_sync_group, "int32") * ops.shape(own)[0]
    # Of equal losses the first comes first, on every backend.
    order = ops.argsort(-everywhere)
    kept = loss.ohem_kept * ops.shape(each)[0] * replicas
    if loss.ohem_threshold:
        labelled = ops.sum(ops.cast(everywhere > -math.inf, "int32"))
        place = ops.maximum(ops.minimum(kept, labelled - 1), 0)
        # p < t is loss > -log t, and the higher of two probabilities is the lower of two losses.
        limit = ops.minimum(ops.take(everywhere, ops.take(order, place)), -math.log(loss.ohem_threshold))
        selected = own > limit
    else:
        last = ops.take(order, ops.minimum(kept, ops.shape(everywhere)[0]) - 1)
        limit = ops.take(everywhere, last)
        positions = start + ops.arange(ops.shape(own)[0], dtype="int32")
        selected = ops.logical_or(own > limit, ops.logical_and(ops.equal(own, limit), positions <= last))
    return ops.logical_and(ops.reshape(selected, ops.shape(each)), valid)


def mean(total, count):
    """Return sum / count of a whole batch, 0 where nothing was counted: an all-ignored batch has no loss, not nan."""
    # Class weights may sum to less than 1, so that the divisor cannot just be kept above that.
    nothing = ops.equal(count, 0)
    return ops.where(nothing, 0.0, total / ops.where(nothing, 1.0, count))


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
