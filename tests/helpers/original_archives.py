"""Make archives and trees of the benchmark datasets, with their file names and synthetic images."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

CITYSCAPES = {"train": ("aachen", "ulm", "aachen"), "val": ("munster",), "test": ("berlin", "bonn")}


def encoded(array, form="PNG", **options):
    """Return an array or PIL image as an image file."""
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, format=form, **options)
    return file.getvalue()


def noise(seed, height=8, width=12):
    """Return noise, uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def palette(label):
    """Return a label as a palette image whose luminances differ from its ids."""
    image = Image.fromarray(label).convert("P")
    image.putdata(label.ravel().tolist())
    image.putpalette([(250 - 7 * value) % 256 for value in range(256) for _ in range(3)])
    return image


def write_tree(root, members):
    """Write {path: bytes} as files."""
    for name, content in members.items():
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path(root)


def write_zip(path, members):
    """Write {path: bytes} as a .zip with entries for directories, like the published archives."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for directory in sorted({f"{parent}/" for name in members for parent in Path(name).parents} - {"./"}):
            archive.writestr(directory, b"")
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path, members, mode="w"):
    """Write {path: bytes} as a .tar, or as a .tgz with mode "w:gz"."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def ade20k(labels):
    """Return the files of ADEChallengeData2016 for {split: [uint8 label, ...]}."""
    members = {"ADEChallengeData2016/objectInfo150.txt": b"Idx\n"}
    for split, part, start in (("train", "training", "ADE_train_"), ("val", "validation", "ADE_val_")):
        for number, label in enumerate(labels.get(split, []), 1):
            name = f"{start}{number:08d}"
            members[f"ADEChallengeData2016/images/{part}/{name}.jpg"] = encoded(noise(number, *label.shape), "JPEG")
            members[f"ADEChallengeData2016/annotations/{part}/{name}.png"] = encoded(label)
    return members


def voc2012(lists, labels):
    """Return the files of VOC's archive for {split: [name, ...]} and {name: uint8 label}.

    The image 2009_000001 has no official label.
    """
    root = "VOCdevkit/VOC2012"
    members = {
        f"{root}/ImageSets/Segmentation/{split}.txt": "\n".join([*names, ""]).encode() for split, names in lists.items()
    }
    for number, name in enumerate(sorted({*labels, "2009_000001"})):
        height, width = labels[name].shape if name in labels else (8, 12)
        members[f"{root}/JPEGImages/{name}.jpg"] = encoded(noise(number, height, width), "JPEG")
        members[f"{root}/Annotations/{name}.xml"] = b"<annotation/>"
    for name, label in labels.items():
        members[f"{root}/SegmentationClass/{name}.png"] = encoded(palette(label))
        members[f"{root}/SegmentationObject/{name}.png"] = encoded(palette(label))
    return members


def matlab(mask):
    """Return a mask as one of SBD's MATLAB files."""
    file = io.BytesIO()
    scipy.io.savemat(
        file,
        {
            "GTcls": {
                "Boundaries": np.zeros((20, 1), object),
                "Segmentation": mask,
                "CategoriesPresent": np.unique(mask),
            }
        },
        do_compression=True,
    )
    return file.getvalue()


def sbd(masks):
    """Return the files of benchmark.tgz for {name: uint8 mask}."""
    root = "benchmark_RELEASE/dataset"
    members = {f"{root}/train.txt": "\n".join(masks).encode(), "benchmark_RELEASE/README": b"Semantic boundaries"}
    for name, mask in masks.items():
        members[f"{root}/img/{name}.jpg"] = encoded(noise(1, *mask.shape), "JPEG")
        members[f"{root}/cls/{name}.mat"] = matlab(mask)
        # Instance masks have the same file names.
        members[f"{root}/inst/{name}.mat"] = b"MATLAB 5.0 MAT-file"
    return members


def cityscapes(examples):
    """Return the files of Cityscapes' two archives for {split: [(uint8 image, uint8 labelIds), ...]}."""
    images, labels = {"README": b"", "license.txt": b""}, {"README": b"", "license.txt": b""}
    for split, pairs in examples.items():
        for number, (image, label) in enumerate(pairs):
            city = CITYSCAPES[split][number]
            frame = f"{city}_{number:06d}_000019"
            images[f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png"] = encoded(image)
            start = f"gtFine/{split}/{city}/{frame}_gtFine"
            labels |= {
                f"{start}_labelIds.png": encoded(label),
                f"{start}_instanceIds.png": encoded(label),
                f"{start}_color.png": encoded(image),
                f"{start}_polygons.json": b"{}",
            }
    return images, labels
