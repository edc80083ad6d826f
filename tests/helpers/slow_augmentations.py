"""Augment one image at a time in NumPy and OpenCV, as a reference for the augmentation in TensorFlow.

The steps are those of MMSegmentation (RandomResize, RandomCrop, RandomFlip, PhotoMetricDistortion, padding), and of
SSSegmentation where it differs. Images are BGR uint8 of shape (H, W, 3), as in both systems. Labels are uint8 of shape
(H, W), with 255 for ignored pixels.
"""

import cv2
import numpy as np

IGNORED = 255


def new_size(shape, factor, scale):
    """Return the (height, width) of an image of shape (H, W), fitted into `scale` (width, height) times `factor`."""
    box = (int(scale[0] * factor), int(scale[1] * factor))
    height, width = shape
    ratio = min(max(box) / max(height, width), min(box) / min(height, width))
    return int(height * ratio + 0.5), int(width * ratio + 0.5)


def resize(image, label, size):
    return (
        cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST),
    )


def is_acceptable(label, limit):
    """Return whether a crop's label has several classes, none of which reaches the fraction `limit`."""
    values, counts = np.unique(label, return_counts=True)
    counts = counts[values != IGNORED]
    return len(counts) > 1 and counts.max() / counts.sum() < limit


def crop_corner(label, crop, limit, redraws, random):
    """Return the (top, left) of a crop and the number of rejected crops; the last crop is accepted unchecked.

    MMSegmentation redraws up to 10 times. SSSegmentation draws up to 10 crops, which are 9 redraws.
    """

    def draw():
        return tuple(
            int(random.integers(0, max(side - crop_side, 0) + 1)) for side, crop_side in zip(label.shape, crop)
        )

    corner = draw()
    if limit >= 1:
        return corner, 0
    for rejected in range(redraws):
        top, left = corner
        if is_acceptable(label[top : top + crop[0], left : left + crop[1]], limit):
            return corner, rejected
        corner = draw()
    return corner, redraws


def as_bytes(values):
    return np.clip(values, 0, 255).astype(np.uint8)


def brightness(image, random):
    return as_bytes(image.astype(np.float32) + random.uniform(-32, 32))


def contrast(image, random):
    return as_bytes(image.astype(np.float32) * random.uniform(0.5, 1.5))


def saturation(image, random):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., 1] = as_bytes(hsv[..., 1].astype(np.float32) * random.uniform(0.5, 1.5))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def hue(image, random):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + random.integers(-18, 18)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def photometric(image, random):
    """Apply each step with probability 1/2; contrast comes second or last with equal probability."""
    order = [brightness, contrast, saturation, hue] if random.integers(2) else [brightness, saturation, hue, contrast]
    for step in order:
        if random.integers(2):
            image = step(image, random)
    return image


def pad(image, label, crop, centered, color):
    """Pad an image with a color and its label with 255 to the size of the crop; SSSegmentation centers them."""
    margins = [crop_side - side for crop_side, side in zip(crop, label.shape)]
    top, left = (margin // 2 if centered else 0 for margin in margins)
    inside = (slice(top, top + label.shape[0]), slice(left, left + label.shape[1]))
    padded_image, padded_label = np.empty((*crop, 3), image.dtype), np.full(crop, IGNORED, np.uint8)
    padded_image[:] = color
    padded_image[inside], padded_label[inside] = image, label
    return padded_image, padded_label


def augment(image, label, random, scale, crop, limit=0.75, redraws=10):
    """Apply all steps before the padding to one example; `scale` is (width, height)."""
    image, label = resize(image, label, new_size(label.shape, random.uniform(0.5, 2), scale))
    (top, left), _ = crop_corner(label, crop, limit, redraws, random)
    image, label = (part[top : top + crop[0], left : left + crop[1]] for part in (image, label))
    if random.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return photometric(np.ascontiguousarray(image), random), label
