"""Training augmentation as the published pipelines describe it, one picture at a time in NumPy and OpenCV.

MMSegmentation's steps (RandomResize, RandomCrop, RandomFlip, PhotoMetricDistortion, padding) and SSSegmentation's
where they differ. Pictures are BGR uint8 here, as in both; labels uint8, 255 ignored.
"""

import cv2
import numpy as np

IGNORED = 255


def new_size(shape, factor, scale):
    """The (height, width) of a picture (H, W) fitted into the scale (width, height) times a factor."""
    box = (int(scale[0] * factor), int(scale[1] * factor))
    height, width = shape
    ratio = min(max(box) / max(height, width), min(box) / min(height, width))
    return int(height * ratio + 0.5), int(width * ratio + 0.5)


def resize(image, label, size):
    return (cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR),
            cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST))


def acceptable(window, limit):
    """Whether a crop's label has several classes of which none fills the limit."""
    values, counts = np.unique(window, return_counts=True)
    counts = counts[values != IGNORED]
    return len(counts) > 1 and counts.max() / counts.sum() < limit


def crop_corner(label, crop, limit, redraws, random):
    """The (top, left) of a crop and how many were rejected before it; the last one drawn is taken unchecked.

    MMSegmentation redraws up to 10 times; SSSegmentation looks at 10 crops in all, which are 9 redraws.
    """
    def draw():
        return tuple(int(random.integers(0, max(have - want, 0) + 1)) for have, want in zip(label.shape, crop))

    corner = draw()
    if limit >= 1:
        return corner, 0
    for rejected in range(redraws):
        top, left = corner
        if acceptable(label[top:top + crop[0], left:left + crop[1]], limit):
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
    """Each step in every second picture; contrast comes second or, as often, last."""
    order = [brightness, contrast, saturation, hue] if random.integers(2) else [brightness, saturation, hue, contrast]
    for step in order:
        if random.integers(2):
            image = step(image, random)
    return image


def pad(image, label, crop, centred, colour):
    """A normalised or raw picture and its label put into the crop on a colour; centred as in SSSegmentation."""
    rest = [want - have for want, have in zip(crop, label.shape)]
    top, left = (side // 2 if centred else 0 for side in rest)
    inside = (slice(top, top + label.shape[0]), slice(left, left + label.shape[1]))
    wide, ids = np.empty((*crop, 3), image.dtype), np.full(crop, IGNORED, np.uint8)
    wide[:] = colour
    wide[inside], ids[inside] = image, label
    return wide, ids


def augment(image, label, random, scale, crop, limit=0.75, redraws=10):
    """One example through the whole pipeline up to padding; `scale` is (width, height)."""
    image, label = resize(image, label, new_size(label.shape, random.uniform(0.5, 2), scale))
    (top, left), _ = crop_corner(label, crop, limit, redraws, random)
    image, label = (part[top:top + crop[0], left:left + crop[1]] for part in (image, label))
    if random.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return photometric(np.ascontiguousarray(image), random), label
