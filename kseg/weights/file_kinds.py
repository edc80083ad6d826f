"""Tell what kind of file a weight file is from its content, whatever its name ends in."""

import zipfile
from pathlib import Path
from typing import Literal

from kseg.errors import WeightsError
from kseg.weights.safetensors_files import is_safetensors

Kind = Literal["torch", "npz", "hdf5", "safetensors"]

# First bytes of a file -> what it is instead of weights, and what to do.
OTHER_FILES = {
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself; run `git lfs pull` at its origin",
    b"\x89PNG": "is a PNG picture",
    b"\xff\xd8\xff": "is a JPEG picture",
    b"GIF8": "is a GIF picture",
    b"%PDF": "is a PDF document",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first",
    b"7z\xbc\xaf": "is a 7z archive; unpack it first",
    b"Rar!": "is a RAR archive; unpack it first",
    b"TFL3": "is a TensorFlow Lite model",
    b"\x93NUMPY": "is a single array; several named ones make an .npz file",
    b"GGUF": "is a GGUF file of a language model",
    b"\x08\x07\x12": "is an ONNX model",
    b"{": "is a JSON text",
    b"<?xml": "is an XML text, perhaps the error page of a download",
}
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# The signature may follow a block of the user's own, at one of these positions.
HDF5_POSITIONS = (0, 512, 1024, 2048)
HTML_STARTS = (b"<!doctype html", b"<html", b"<head")
READABLE = "readable: PyTorch (.pth, .pt, .ckpt, .bin), .safetensors, .npz, and Keras' .h5 and .weights.h5"


def find_kind(path: str | Path) -> Kind:
    """Return the kind of a weight file, judging by its content.

    Raises:
        WeightsError: The file is missing or is no weight file; the message says what it looks like.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(max(HDF5_POSITIONS) + len(HDF5_SIGNATURE))
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if any(head[position:].startswith(HDF5_SIGNATURE) for position in HDF5_POSITIONS):
        return "hdf5"
    if is_safetensors(head, size):
        return "safetensors"
    if head[257:262] == b"ustar" or head.startswith(b"\x80"):
        return "torch"
    raise WeightsError(f"{path} {describe(head) or _unknown(path, head)}")


def describe(head: bytes) -> str:
    """Return what a file without weights is, from its first bytes; "" if it is unknown."""
    if not head:
        return "is damaged: it is empty (0 bytes)"
    if head.lstrip()[:20].lower().startswith(HTML_STARTS):
        return (
            f"is a web page and not a weight file: it starts with {head[:16]!r}; a download may need a login or "
            "another address"
        )
    reason = next((reason for start, reason in OTHER_FILES.items() if head.startswith(start)), "")
    return reason and f"{reason}, and no file of weights (it starts with {head[:16]!r})"


def _zip_kind(path: str | Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # The readers say what is damaged; an .npz file is most often written with its suffix.
        return "npz" if Path(path).suffix == ".npz" else "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if any(name == "config.json" for name in names) and any(name.endswith(".h5") for name in names):
        raise WeightsError(f"{path} is a whole Keras model; save its weights with model.save_weights(NAME.weights.h5)")
    return "torch"


def _unknown(path: str | Path, head: bytes) -> str:
    return f"is damaged or not a file of weights: it starts with {head[:16]!r}; {READABLE}"
