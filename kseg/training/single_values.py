"""Refuse a training in which a batch norm sees a single value per channel."""

import keras

from kseg.errors import ConfigError
from kseg.models.norms import BatchNormalization

# Number of layers that an error lists.
LISTED_LAYERS = 3
# Enlarges a crop, in pixels, by so much that every stage of a backbone has several positions.
LARGER_CROP = 64


def require_several_values(model: keras.Model, global_batch: int, accumulate: int, crop: tuple[int, int]) -> None:
    """Refuse a training whose trainable norms see one value per channel.

    The variance of a single value is 0, so such a norm trains its layer on zeros and stores a variance that fits no
    image. PyTorch refuses it as well. The norms of all replicas share their statistics, so the values of all replicas
    count together; those of the parts of `train.accumulate` do not. A frozen norm uses its stored statistics and may
    see a single value.

    Args:
        model: the model, after `freeze_layers`.
        global_batch: number of images in a step, over all replicas.
        accumulate: number of parts in which a step is computed.
        crop: (height, width) of the images in pixels.

    Raises:
        ConfigError: A norm sees one value; the message names the layers and the values that would help.

    Example:
        >>> from kseg import models
        >>> from kseg.config.sections import Model
        >>> tiny = Model(backbone="resnet18", width=4, head="deeplabv3", channels=8, auxiliary_channels=0)
        >>> require_several_values(models.build(tiny, classes=2), global_batch=2, accumulate=1, crop=(64, 64))
    """
    images = global_batch // accumulate
    if images > 1:
        return
    norms = [layer for layer in model.layers if isinstance(layer, BatchNormalization) and layer.trainable]
    single = single_value_layers(model, norms, (images, *crop, 3))
    if not single:
        return
    names = [layer.name for layer in single]
    few = len(names) <= LISTED_LAYERS
    more = "" if few else f" and {len(names) - LISTED_LAYERS} more"
    parts = f" in each of {accumulate} parts (train.accumulate={accumulate})" if accumulate > 1 else ""
    ways = [
        f"set train.global_batch={2 * accumulate} or a larger multiple of {accumulate}"
        if accumulate > 1
        else "set train.global_batch=2 or more"
    ]
    if accumulate > 1 and global_batch > 1:
        ways.append(f"lower train.accumulate to at most {global_batch // 2}")
    if not single_value_layers(model, single, (images, crop[0] + LARGER_CROP, crop[1] + LARGER_CROP, 3)):
        ways.append(f"enlarge augment.crop={crop[0]},{crop[1]}")
    if few:
        ways.append(f"freeze the layer{'s' * (len(names) > 1)}: train.freeze={','.join(names)}")
    raise ConfigError(
        f"the batch norm{'s' * (len(names) > 1)} {', '.join(names[:LISTED_LAYERS])}{more} would see a single value per "
        f"channel: train.global_batch={global_batch} leaves one image{parts}, and its features have one position. "
        f"The variance of one value is 0, so the layer would train on zeros; {', or '.join(ways)}"
    )


def single_value_layers(
    model: keras.Model, layers: list[keras.layers.Layer], shape: tuple[int, ...]
) -> list[keras.layers.Layer]:
    """Return the layers whose input has one value per channel for images of this shape (N, H, W, 3)."""
    if not layers:
        return []
    inputs = keras.Model(model.input, [layer.input for layer in layers], name=f"{model.name}_norm_inputs")
    shapes = inputs.compute_output_shape(shape)
    return [layer for layer, (*counted, _) in zip(layers, shapes, strict=True) if all(side == 1 for side in counted)]
