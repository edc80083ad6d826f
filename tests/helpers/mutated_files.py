"""Read weight files with damaged bytes in processes with little memory and time.

    python -m tests.helpers.mutated_files N

Prints one JSON object: the number of files by kind and outcome, and the seeds of those whose outcome is neither arrays
nor WeightsError. Seed i always gives the same file.
"""

import collections
import json
import os
import random
import resource
import signal
import sys
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np

from kseg.errors import WeightsError
from kseg.system import quiet_start
from tests.helpers.torch_writing import FakeTensor, Stored, write_legacy, write_zip

# One process reads so many files, with this much more memory than it has at the start, and each file in these seconds.
# A file of HDF5 may keep the process that tries it for some seconds of its own.
FILES_PER_PROCESS, BYTES, SECONDS = 50, 1 << 30, 40
LARGE_NUMBERS = (2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1)


def sound_files(directory: Path) -> dict[str, bytes]:
    """Return the content of one sound file of each kind by name."""
    arrays = {f"w{index}": np.arange(12, dtype="f4").reshape(3, 4) for index in range(4)}
    tensors = {
        name: FakeTensor(Stored(array.ravel(), key=str(index)), 0, (3, 4), (4, 1))
        for index, (name, array) in enumerate(arrays.items())
    }
    saved = {"meta": {"classes": ("a", "b"), "n": np.float32(1)}, "state_dict": tensors}
    write_zip(directory / "zip.pth", saved)
    write_legacy(directory / "legacy.pth", saved)
    np.savez(directory / "a.npz", **arrays)
    np.savez_compressed(directory / "deflated.npz", a=np.ones((30, 40), "f4"))
    with h5py.File(directory / "a.weights.h5", "w") as file:
        for index, array in enumerate(arrays.values()):
            group = file.create_group(f"layers/layer{index}/vars")
            group.attrs["name"] = f"layer{index}"
            group.create_dataset("0", data=array, chunks=(2, 2) if index == 3 else None)
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    with h5py.File(directory / "grouped.h5", "w") as file:
        file.attrs["layer_names"] = ["conv1_conv", "conv1_bn"]
        for layer, names in zip(file.attrs["layer_names"], (("kernel", "bias"), norm)):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0" for name in names]
            for name in names:
                group[f"{layer}/{name}:0"] = np.ones((2, 2, 3, 4) if name == "kernel" else 4, "f4")
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": [3, 4], "data_offsets": [48 * index, 48 * index + 48]}
            for index, name in enumerate(arrays)
        }
    ).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    (directory / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Return data with a few changed, removed, repeated or enlarged bytes."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        position = generator.randrange(len(changed))
        match generator.randrange(5):
            case 0:
                changed[position] ^= 1 << generator.randrange(8)
            case 1:
                changed[position] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
            case 2:
                del changed[position : position + generator.choice((1, 4, 100))]
            case 3:
                start = generator.randrange(len(changed))
                changed[position:position] = changed[start : start + generator.choice((1, 8, 64))]
            case 4:
                number = generator.choice(LARGE_NUMBERS)
                length = 8 if number >= 2**32 else 4
                changed[position : position + length] = number.to_bytes(length, "little")
        changed = changed or bytearray(b"x")
    return bytes(changed)


def mutated_pickle(data: bytes, generator: random.Random) -> bytes:
    """Return a zip of torch.save whose checksums are right and whose pickle is mutated."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, mutated(content, generator) if name.endswith("data.pkl") else content)
        file.seek(0)
        return file.read()


def outcome(path: Path) -> str:
    """Return "read", "WeightsError", or the type of another error."""
    from kseg.weights import keras_files
    from kseg.weights.foreign_files import read_foreign_checkpoint

    signal.alarm(SECONDS)
    try:
        keras_files.read_layers(path) if path.name.endswith(".weights.h5") else read_foreign_checkpoint(path)
    except WeightsError:
        return "WeightsError"
    except BaseException as error:
        return type(error).__name__
    finally:
        signal.alarm(0)
    return "read"


def read_in_process(directory: Path, originals: dict[str, bytes], seeds: range) -> dict[int, tuple[str, str]]:
    """Return (kind, outcome) of each seed; a process that dies ends with the signal as its last seed's outcome."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        # The alarm ends the process, so that a file that never ends is found.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES,) * 2)
        names = [*originals, "pickle.pth"]
        for seed in seeds:
            generator, name = random.Random(seed), names[seed % len(names)]
            data = (
                mutated_pickle(originals["zip.pth"], generator)
                if name == "pickle.pth"
                else mutated(originals[name], generator)
            )
            path = directory / f"mutated-{name}"
            path.write_bytes(data)
            os.write(writer, f"{seed} {name} ".encode())
            os.write(writer, f"{outcome(path)}\n".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        lines = stream.read().splitlines()
    _, status = os.waitpid(process, 0)
    results = {
        int(seed): (name, *(end or [f"signal {os.WTERMSIG(status)}"])) for seed, name, *end in map(str.split, lines)
    }
    if len(results) < len(seeds) and results and max(results) + 1 in seeds:
        results |= read_in_process(directory, originals, range(max(results) + 1, seeds.stop))
    return results


def main(count: int) -> None:
    """Read `count` files and print the outcomes."""
    quiet_start.import_tensorflow()
    outcomes: collections.Counter = collections.Counter()
    bad = {}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "sound").mkdir()
        originals = sound_files(Path(directory) / "sound")
        for start in range(0, count, FILES_PER_PROCESS):
            seeds = range(start, min(start + FILES_PER_PROCESS, count))
            for seed, (name, result) in read_in_process(Path(directory), originals, seeds).items():
                outcomes[f"{name} {result}"] += 1
                if result not in ("read", "WeightsError"):
                    bad[seed] = f"{name} {result}"
    print(json.dumps({"outcomes": dict(sorted(outcomes.items())), "bad": bad}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
