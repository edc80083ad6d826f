"""Published files of weights: where they lie on the network, and where they are kept here.

A file is looked for in $KSEG_WEIGHTS, else in weights/, under the name that its address ends in; only where it is
absent is it fetched. Where there is no network, put it there by hand.
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

# ImageNet backbones under the names that configs use. The deep-stemmed ones are those of MMSegmentation and
# SSSegmentation (mmcv's open_mmlab.json); none is published there for v1d. The others are torchvision's first weights.
BACKBONES = {
    "resnet18_v1c": "https://download.openmmlab.com/pretrain/third_party/resnet18_v1c-b5776b93.pth",
    "resnet50_v1c": "https://download.openmmlab.com/pretrain/third_party/resnet50_v1c-2cccc1ad.pth",
    "resnet101_v1c": "https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth",
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
}

# Publishers end a name with the first digits of the file's SHA-256.
DIGEST = re.compile(r"-([0-9a-f]{8})\.\w+$")
BLOCK = 2**20
MEBIBYTE = 2**20
# Seconds without a byte.
TIMEOUT = 30


def directory() -> Path:
    """Return where weights are kept: $KSEG_WEIGHTS, else weights/."""
    return Path(os.environ.get("KSEG_WEIGHTS") or "weights")


def backbone(name: str) -> Path:
    """Return the file of a published backbone, fetching it where it is absent; raises WeightsError as `fetch` does."""
    if name not in BACKBONES:
        raise WeightsError(unknown("backbone file", name, BACKBONES))
    return fetch(BACKBONES[name])


def at_hand(config: Config, report: Callable[[str], None]) -> Config:
    """Return a config that starts from no published backbone whose file is still to be fetched, and report on it.

    For a dry run, which fetches nothing.
    """
    name = config.init.backbone
    if config.init.weights or name not in BACKBONES or Path(name).exists() or place(BACKBONES[name]).is_file():
        return config
    report(f"the backbone's weights are not there yet: {BACKBONES[name]}, to be kept at {place(BACKBONES[name])}")
    return replace(config, init=replace(config.init, backbone="", skip=()))


def place(address: str) -> Path:
    """Return where the file of an address is kept, there or not; raises WeightsError where it ends in no file name."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name
    if not name:
        raise WeightsError(f"{address!r} is no address of a file")
    return directory() / name


def fetch(address: str, report: Callable[[str], None] = print) -> Path:
    """Return the file of an http, https or file address, downloading it where it is absent.

    What arrives is written beside its place, checked against the length the server tells and the digits of the SHA-256
    at the end of its name, and only then given its name; what is there already is checked too. Raises WeightsError,
    naming the address and the place, where it cannot be had or is not what it should be.
    """
    path = place(address)
    if path.is_file():
        # It may have been put there by hand, and cut short on the way.
        with path.open("rb") as file:
            _check_digest(path, hashlib.file_digest(file, "sha256").hexdigest())
        return path
    # One of its own for each process: two runs may start together.
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    by_hand = f"fetch {address} by other means and put it at {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            digest = _download(address, file, report)
        _check_digest(path, digest)
        os.replace(partial, path)
    except WeightsError as error:
        raise WeightsError(f"{error}; {by_hand}") from None
    except urllib.error.HTTPError as error:
        raise WeightsError(f"the server answers {error.code} ({error.reason}); {by_hand}") from None
    except (urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or repr(error)
        raise WeightsError(f"cannot download ({reason}); {by_hand}") from None
    except OSError as error:
        raise WeightsError(f"cannot download to {partial} ({error}); {by_hand}") from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def _download(address: str, file: BinaryIO, report: Callable[[str], None]) -> str:
    """Write what an address gives into a file and return its SHA-256; raises WeightsError where it ends too early."""
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
        raise WeightsError(f"{path} is damaged or another file: its SHA-256 begins with {digest[:8]}, its name says "
                           f"{named[1]}")
