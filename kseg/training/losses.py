"""Compute the loss terms as (sum, count) pairs.

A caller with several replicas adds up the sums and the counts before dividing, which gives the mean over the global
batch. Averaging the mean of each replica is wrong as soon as replicas hold different numbers of ignored pixels.
"""

import dataclasses
import math
from collections.abc import Iterable

from keras import KerasTensor, ops

from kseg.config.sections import IGNORED, Loss
from kseg.errors import ConfigError
from kseg.models.layers import index_dtype, replica_context, resize


def loss_terms(
    outputs: dict[str, KerasTensor], labels: KerasTensor, loss: Loss, align_corners: bool = False
) -> dict[str, tuple]:
    """Compute a weighted loss term for each output of a model.

    Logits are resized bilinearly to the size of the labels, and everything is computed in float32. Hard example mining
    applies to the output "main" alone, as in MMSegmentation.

    Args:
        outputs: logits by output name. "main" and "aux" are floats (N, h, w, C); "se", EncNet's class presence, is
            floats (N, C).
        labels: integers (N, H, W), class ids, or 255 for pixels that are ignored.
        loss: the section `loss` of a config, with the weight of each term.
        align_corners: whether resizing aligns the centers of the corner pixels.

    Returns:
        {name: (weight, sum, count)} with `sum` and `count` float32 scalars of this batch alone. The term's contribution
        to the loss is weight * mean_loss(sum, count).

    Raises:
        ConfigError: loss.class_weights does not have one weight for each class.

    Example:
        Scores that are all equal give each of two classes the probability 1/2. One of the four pixels is ignored.

        >>> import numpy as np
        >>> logits = np.zeros((1, 2, 2, 2), "float32")
        >>> labels = np.array([[[0, 1], [1, 255]]])
        >>> terms = loss_terms({"main": logits, "aux": logits}, labels, Loss(average="valid"))
        >>> for name, (weight, total, count) in terms.items():
        ...     print(f"{name}: {weight} * {float(total):.3f} / {float(count):.0f}")
        main: 1.0 * 2.079 / 3
        aux: 0.4 * 2.079 / 3
    """
    # Without mining, the average "kept" divides an auxiliary term by the number of labeled pixels.
    without_mining = dataclasses.replace(loss, ohem_kept=0, ohem_threshold=0.0)
    terms = {}
    for name, logits in outputs.items():
        if name == "se":
            terms[name] = (loss.se, *class_presence(ops.cast(logits, "float32"), labels))
        else:
            resized = resize(ops.cast(logits, "float32"), ops.shape(labels)[1:3], align_corners)
            weight, settings = (loss.main, loss) if name == "main" else (loss.auxiliary, without_mining)
            terms[name] = (weight, *cross_entropy(resized, labels, settings))
    return terms


def denominators(labels: KerasTensor, names: Iterable[str], classes: int, loss: Loss) -> list[KerasTensor]:
    """Compute the counts of `loss_terms` from the labels alone.

    Hard example mining is not supported: its count depends on the logits.

    Args:
        labels: integers (N, H, W), 255 where ignored.
        names: the names of the model's outputs.
        classes: the number of classes.
        loss: the section `loss` of a config.

    Returns:
        One float32 scalar for each name, in the same order.
    """
    labels = ops.cast(labels, index_dtype())
    valid = ops.not_equal(labels, IGNORED)
    weights = ops.ones(ops.shape(labels), "float32")
    if loss.class_weights:
        weights = ops.take(ops.convert_to_tensor(loss.class_weights, "float32"), ops.where(valid, labels, 0))
    pixels = ops.sum(ops.where(valid, weights, 1.0 if loss.average == "all" else 0.0))
    presences = ops.cast(ops.shape(labels)[0] * classes, "float32")
    return [presences if name == "se" else pixels for name in names]


def require_class_weights(loss: Loss, classes: int) -> None:
    """Raise ConfigError unless loss.class_weights is empty or has one weight for each class."""
    if len(loss.class_weights) not in (0, classes):
        raise ConfigError(
            f"loss.class_weights takes one weight for each of the {classes} classes, got {len(loss.class_weights)}"
        )


def cross_entropy(logits: KerasTensor, labels: KerasTensor, loss: Loss) -> tuple[KerasTensor, KerasTensor]:
    """Compute the sum and the count of the softmax cross-entropy.

    Args:
        logits: float32 (N, H, W, C).
        labels: integers (N, H, W), class ids, or 255 for pixels that are ignored.
        loss: the section `loss` of a config; its fields average, class_weights, ohem_kept and ohem_threshold are used.

    Returns:
        (sum, count), float32 scalars. The sum is over the labeled pixels, or over the `hardest_pixels` of them where
        loss.ohem_kept is set. The count depends on loss.average: "all" counts all pixels, ignored ones included, which
        is what MMSegmentation's recipes divide by; "valid" counts the labeled pixels; "kept" counts the pixels in the
        sum. With class weights a pixel counts as the weight of its class. The count may be 0.

    Raises:
        ConfigError: loss.class_weights does not have one weight for each class.

    Example:
        The true classes have the probabilities 1/2 and 3/4, and the third pixel is ignored.

        >>> import numpy as np
        >>> logits = np.log(np.array([[[[1, 1], [1, 3], [9, 1]]]], "float32"))
        >>> labels = np.array([[[0, 1, 255]]])
        >>> total, count = cross_entropy(logits, labels, Loss(average="valid"))
        >>> print(f"{float(total):.4f} / {float(count):.0f} = {float(mean_loss(total, count)):.4f}")
        0.9808 / 2 = 0.4904
    """
    require_class_weights(loss, logits.shape[-1])
    labels = ops.cast(labels, index_dtype())
    valid = ops.not_equal(labels, IGNORED)
    classes = ops.where(valid, labels, 0)
    unweighted = ops.sparse_categorical_crossentropy(classes, logits, from_logits=True)
    weights = ops.ones_like(unweighted)
    if loss.class_weights:
        weights = ops.take(ops.convert_to_tensor(loss.class_weights, "float32"), classes)
    weighted = unweighted * weights
    kept = hardest_pixels(unweighted, weighted, valid, loss) if loss.ohem_kept else valid
    total = ops.sum(ops.where(kept, weighted, 0.0))
    # An ignored pixel has no class, so "all" counts it as 1 with and without class weights.
    counted = {
        "all": ops.where(valid, weights, 1.0),
        "valid": ops.where(valid, weights, 0.0),
        "kept": ops.where(kept, weights, 0.0),
    }[loss.average]
    return total, ops.sum(counted)


def hardest_pixels(unweighted: KerasTensor, weighted: KerasTensor, valid: KerasTensor, loss: Loss) -> KerasTensor:
    """Select the pixels that online hard example mining keeps.

    Without a threshold these are the K = loss.ohem_kept * N pixels with the largest weighted loss, or all labeled
    pixels if there are fewer; of equal losses the first are kept. With a threshold t these are all pixels whose true
    class has a probability below max(t, p), where p is the probability at index K of the ascending order.

    N is the size of the global batch: the pixels of all replicas compete, whereas MMSegmentation selects on each GPU
    separately. Otherwise the number of devices, and the way in which ignored pixels fall on them, would decide which
    pixels are learned from.

    Args:
        unweighted: cross-entropy without class weights, float32 (N, H, W).
        weighted: cross-entropy with class weights, float32 (N, H, W).
        valid: whether a pixel is labeled, bool (N, H, W).
        loss: the section `loss` of a config.

    Returns:
        The mask of the kept pixels, bool (N, H, W). It has no gradient.

    Source: Shrivastava et al. 2016, arXiv:1604.03540, with MMSegmentation's definition of the threshold.
    """
    losses = ops.stop_gradient(unweighted if loss.ohem_threshold else weighted)
    # A non-finite loss counts as the hardest; otherwise mining would hide that a run has diverged.
    losses = ops.where(ops.isfinite(losses), losses, math.inf)
    local = ops.reshape(ops.where(valid, losses, -math.inf), (-1,))
    gathered, offset, replicas = local, 0, 1
    context = replica_context()
    if context is not None:
        gathered, replicas = context.all_gather(local, axis=0), context.num_replicas_in_sync
        # Replicas hold equal parts of the global batch, in the order of their ids.
        offset = ops.cast(context.replica_id_in_sync_group, "int32") * ops.shape(local)[0]
    # The sort is stable, so that of equal losses the first comes first on every backend.
    order = ops.argsort(-gathered)
    budget = loss.ohem_kept * ops.shape(unweighted)[0] * replicas
    if loss.ohem_threshold:
        labeled = ops.sum(ops.cast(gathered > -math.inf, "int32"))
        rank = ops.maximum(ops.minimum(budget, labeled - 1), 0)
        # p < t is equivalent to loss > -log t, and the higher of two probabilities has the lower loss.
        limit = ops.minimum(ops.take(gathered, ops.take(order, rank)), -math.log(loss.ohem_threshold))
        selected = local > limit
    else:
        last = ops.take(order, ops.minimum(budget, ops.shape(gathered)[0]) - 1)
        limit = ops.take(gathered, last)
        positions = offset + ops.arange(ops.shape(local)[0], dtype="int32")
        selected = ops.logical_or(local > limit, ops.logical_and(ops.equal(local, limit), positions <= last))
    return ops.logical_and(ops.reshape(selected, ops.shape(unweighted)), valid)


def mean_loss(total: KerasTensor, count: KerasTensor) -> KerasTensor:
    """Divide the sum of a batch by its count; the mean over no pixels is 0 instead of nan.

    Args:
        total: The sum of the terms, a float32 scalar.
        count: The number of terms, a scalar.

    Returns:
        A float32 scalar.

    Example:
        >>> float(mean_loss(6.0, 4.0)), float(mean_loss(0.0, 0.0))
        (1.5, 0.0)
    """
    # A lower bound of 1 on the count would be wrong: class weights may sum to less than 1.
    empty = ops.equal(count, 0)
    return ops.where(empty, 0.0, total / ops.where(empty, 1.0, count))


def class_presence(logits: KerasTensor, labels: KerasTensor) -> tuple[KerasTensor, KerasTensor]:
    """Compute EncNet's semantic encoding loss, the binary cross-entropy of class presence.

    Args:
        logits: float32 (N, C).
        labels: integers (N, H, W). A class is present in an image if at least one pixel has its id.

    Returns:
        (sum, count), float32 scalars; the count is N * C.

    Source: Zhang et al. 2018, arXiv:1803.08904, section 3.2.

    Example:
        >>> import numpy as np
        >>> labels = np.array([[[0, 0, 255]]])
        >>> total, count = class_presence(np.zeros((1, 2), "float32"), labels)
        >>> round(float(total / count), 4), float(count)
        (0.6931, 2.0)
    """
    images, classes = ops.shape(logits)[0], logits.shape[-1]
    labels = ops.reshape(ops.cast(labels, index_dtype()), (images, -1))
    # Each image has one segment for each class and a last one for ignored pixels.
    segments = ops.minimum(labels, classes) + (classes + 1) * ops.cast(ops.arange(images), index_dtype())[:, None]
    occurrences = ops.segment_max(
        ops.ones_like(ops.reshape(segments, (-1,)), "float32"),
        ops.reshape(segments, (-1,)),
        num_segments=images * (classes + 1),
    )
    present = ops.reshape(ops.cast(occurrences > 0, "float32"), (images, classes + 1))[:, :classes]
    entropies = ops.binary_crossentropy(present, logits, from_logits=True)
    return ops.sum(entropies), ops.cast(images * classes, "float32")
