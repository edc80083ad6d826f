"""Download published weight files.

A file is stored in $KSEG_WEIGHTS (default: weights/) under the last part of its address, and downloaded only if it is
missing. Without a network connection, place it there by hand.
"""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from kseg.config import Config
from kseg.errors import WeightsError, unknown
from kseg.system.progress import Progress

# ImageNet backbones by the names that configs use. Those with a deep stem (v1c) are the ones of MMSegmentation and
# SSSegmentation (mmcv's open_mmlab.json), where none is published for v1d. The others are torchvision's V1 weights.
BACKBONES = {
    "resnet18_v1c": "https://download.openmmlab.com/pretrain/third_party/resnet18_v1c-b5776b93.pth",
    "resnet50_v1c": "https://download.openmmlab.com/pretrain/third_party/resnet50_v1c-2cccc1ad.pth",
    "resnet101_v1c": "https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth",
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
}

# A published file name ends in the first digits of the file's SHA-256.
DIGEST = re.compile(r"-([0-9a-f]{8})\.\w+$")
BLOCK = 2**20
MEBIBYTE = 2**20
# Seconds to wait for data.
TIMEOUT = 30


def weights_directory() -> Path:
    """Return the directory of downloaded weights: $KSEG_WEIGHTS, or weights/ by default."""
    return Path(os.environ.get("KSEG_WEIGHTS") or "weights")


def fetch_backbone(name: str) -> Path:
    """Return the file of a published backbone, downloading it if it is missing.

    Raises WeightsError if the name is unknown or the file is unavailable (see `fetch`).
    """
    if name not in BACKBONES:
        raise WeightsError(unknown("backbone file", name, BACKBONES))
    return fetch(BACKBONES[name])


def without_download(config: Config, report: Callable[[str], None]) -> Config:
    """Return a config whose initial weights need no download, for a dry run.

    A published backbone that has not been downloaded yet is removed from the config and reported.
    """
    name = config.init.backbone
    if config.init.weights or name not in BACKBONES or Path(name).exists() or download_path(BACKBONES[name]).is_file():
        return config
    report(f"training will download the backbone's weights from {BACKBONES[name]} to {download_path(BACKBONES[name])}")
    return replace(config, init=replace(config.init, backbone="", skip=()))


def download_path(address: str) -> Path:
    """Return the path of the downloaded file of an address, whether or not it exists.

    Raises WeightsError if the address does not end in a file name.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name
    if not name:
        raise WeightsError(f"{address!r} is not the address of a file")
    return weights_directory() / name


def fetch(address: str, report: Callable[[str], None] = print) -> Path:
    """Return the local file of an http, https or file address, downloading it if it is missing.

    A download is written to a temporary file and renamed once its length (the server's Content-Length) and the SHA-256
    digits in its name are verified. The digits of an existing file are verified, too.

    Args:
        address: The address.
        report: Receives messages about the download.

    Raises:
        WeightsError: The file is unavailable or damaged. The message has the address and the path.
    """
    path = download_path(address)
    if path.is_file():
        # A file placed by hand may be truncated.
        with path.open("rb") as file:
            _check_digest(path, hashlib.file_digest(file, "sha256").hexdigest())
        return path
    # The name has the process id because two runs may start at the same time.
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    by_hand = f"download {address} by other means to {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            digest = _download(address, file, report)
        _check_digest(path, digest)
        os.replace(partial, path)
    except WeightsError as error:
        raise WeightsError(f"{error}; {by_hand}") from None
    except urllib.error.HTTPError as error:
        raise WeightsError(f"the server responded {error.code} ({error.reason}); {by_hand}") from None
    except (urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or repr(error)
        raise WeightsError(f"cannot download ({reason}); {by_hand}") from None
    except OSError as error:
        raise WeightsError(f"cannot download to {partial} ({error}); {by_hand}") from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def _download(address: str, file: BinaryIO, report: Callable[[str], None]) -> str:
    """Download an address into a file and return the SHA-256 of its content.

    Raises WeightsError if the download is incomplete or empty.
    """
    digest = hashlib.sha256()
    request = urllib.request.Request(address, headers={"User-Agent": "kseg"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        length = int(response.headers.get("Content-Length") or 0)
        report(f"downloading {address}" + (f" ({length / MEBIBYTE:.1f} MiB)" if length else ""))
        progress = Progress(length // MEBIBYTE, "MiB", report) if length >= MEBIBYTE else None
        written = 0
        while block := response.read(BLOCK):
            file.write(block)
            digest.update(block)
            written += len(block)
            if progress:
                progress.update(written // MEBIBYTE)
    if length and written != length:
        raise WeightsError(f"the download ended after {written} of {length} bytes")
    if not written:
        raise WeightsError("the download is empty")
    return digest.hexdigest()


def _check_digest(path: Path, digest: str) -> None:
    named = DIGEST.search(path.name)
    if named and not digest.startswith(named[1]):
        raise WeightsError(
            f"{path} is damaged or another file: its SHA-256 starts with {digest[:8]}, but its name requires {named[1]}"
        )
