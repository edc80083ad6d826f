"""Decide which split an image belongs to."""

import hashlib

# Names that formats give to the split for validation.
VALIDATION_NAMES = ("val", "valid", "validation")


def split_of(name: str, own: str, fraction: float, seed: int) -> str:
    """Return the split of an image: the format's own, or by a hash of its name.

    An image keeps its split when other images are added or removed.

    Args:
        name: The image's path in the annotations.
        own: The split that the format names, "" for none.
        fraction: Fraction of the images for the split val.
        seed: Another seed gives another choice.

    Returns:
        The name of the split.
    """
    if own:
        return "val" if own.lower() in VALIDATION_NAMES else own
    return "val" if name_hash(name, seed) < fraction else "train"


def name_hash(name: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on a name and a seed alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48
