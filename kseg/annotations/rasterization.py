"""Draw the objects of an image into a map of class ids."""

import math

import numpy as np

from kseg.annotations.annotated_images import AnnotatedImage, AnnotatedObject, Findings, LabelMap, Mask, Polygons
from kseg.config.sections import IGNORED
from kseg.errors import DataError

# Coordinates that are computed from fractions of the image's sides exceed them by rounding errors.
TOLERANCE = 0.01
# The value of pixels without an object while an image is drawn.
UNLABELED = -1


def masks_library():
    """Return pycocotools.mask; raises DataError if pycocotools is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise DataError("polygons and COCO masks need pycocotools: pip install 'kseg[convert]'") from None
    return mask


def draw_objects(
    image: AnnotatedImage, size: tuple[int, int], ids: dict[str, int], background: int, findings: Findings
) -> np.ndarray:
    """Return the class ids of an image's pixels, uint8 (H, W).

    Crowd regions are drawn first, so that objects inside them keep their class. Then a later object covers an earlier
    one.

    Args:
        image: The image with its objects.
        size: (height, width) of the map.
        ids: The id of each class name.
        background: The id of pixels without an object.
        findings: Receives what is clipped, skipped and overlapped, and objects of unknown classes as faults.
    """
    canvas = np.full(size, UNLABELED, np.int16)
    overlapped = drawn = 0
    # The sort is stable, so that other objects keep their order.
    for item in sorted(image.objects, key=lambda item: not item.crowd):
        if isinstance(item.shape, LabelMap):
            if item.shape.ids.shape != size:
                findings.fault(f"{item.place}: {_sizes(item.shape.ids.shape, size)}")
                continue
            canvas[:], drawn = item.shape.ids, drawn + 1
            continue
        if item.name not in ids:
            known = ", ".join(sorted(ids))
            findings.fault(f"{item.place}: unknown class {item.name!r}; known: {known}")
            continue
        try:
            mask = object_mask(item, size, findings)
        except DataError as error:
            findings.fault(str(error))
            continue
        if mask is None:
            continue
        value = IGNORED if item.crowd else ids[item.name]
        if item.crowd or value == IGNORED:
            findings.add("crowd" if item.crowd else "ignored", item.place)
        height, width = mask.pixels.shape
        window = canvas[mask.top : mask.top + height, mask.left : mask.left + width]
        earlier = window[mask.pixels]
        if not item.crowd:
            overlapped += int(np.count_nonzero((earlier != UNLABELED) & (earlier != IGNORED) & (earlier != value)))
        window[mask.pixels] = value
        drawn += 1
    if overlapped:
        findings.add("overlap", f"{image.place}: {image.name}: {overlapped} pixels")
        findings.overlapped_pixels += overlapped
    if not drawn:
        findings.add("empty", f"{image.place}: {image.name}")
    canvas[canvas == UNLABELED] = background
    return canvas.astype(np.uint8)


def object_mask(item: AnnotatedObject, size: tuple[int, int], findings: Findings) -> Mask | None:
    """Return an object's pixels inside an image of a size, or None if there are none.

    Raises DataError for coordinates that are not finite, and for a mask that exceeds the image.
    """
    if isinstance(item.shape, Mask):
        mask, (height, width) = item.shape, item.shape.pixels.shape
        if mask.left < 0 or mask.top < 0 or mask.left + width > size[1] or mask.top + height > size[0]:
            raise DataError(
                f"{item.place}: its mask of {width}x{height} pixels at ({mask.left}, {mask.top}) exceeds the image of "
                f"{size[1]}x{size[0]}"
            )
    else:
        mask = _draw_rings(item, item.shape, size, findings)
        if mask is None:
            return None
    if not mask.pixels.any():
        findings.add("too small", item.place)
        return None
    return mask


def _draw_rings(item: AnnotatedObject, shape: Polygons, size: tuple[int, int], findings: Findings) -> Mask | None:
    rings = [ring for ring in shape.rings if len(ring) >= 3]
    if len(rings) < len(shape.rings) or not rings:
        findings.add("degenerate", item.place)
    if not rings:
        return None
    points = np.concatenate(rings)
    if not np.isfinite(points).all():
        raise DataError(f"{item.place}: a coordinate is not a finite number")
    height, width = size
    low, high = points.min(axis=0), points.max(axis=0)
    if high[0] <= 0 or high[1] <= 0 or low[0] >= width or low[1] >= height:
        findings.add("outside", item.place)
        return None
    if low.min() < -TOLERANCE or high[0] > width + TOLERANCE or high[1] > height + TOLERANCE:
        findings.add("clipped", item.place)
    # Only the object's box is drawn: a full map for each of many objects takes most of the time.
    left, top = (max(0, math.floor(value)) for value in low)
    box = min(height, math.ceil(high[1]) + 1) - top, min(width, math.ceil(high[0]) + 1) - left
    library = masks_library()
    encoded = library.frPyObjects([(ring - (left, top)).ravel().tolist() for ring in rings], *box)
    return Mask(library.decode(library.merge(encoded)).astype(bool), left, top)


def _sizes(mask: tuple[int, int], image: tuple[int, int]) -> str:
    return f"the label has {mask[1]}x{mask[0]} pixels and the image {image[1]}x{image[0]}"
