"""Compare today's commands with what kseg 0.1.0 did, as recorded in tests/data/before.

    python -m tests.helpers.before JOBS.json

runs commands one after another in one process, since starting TensorFlow takes longer than what they do. JOBS.json is
{name: [module, argument, ...]}; what a command prints goes to NAME.txt and its exit status to NAME.status.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import runpy
import subprocess
import sys
import traceback
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BEFORE = ROOT / "tests" / "data" / "before"

# Results that depend on as little of the machine as they can: no GPU, and the same order of additions whatever the
# number of cores and however wide their registers are.
KERNELS = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_NUM_INTRAOP_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
}

# The run in run.zip, as encnet_shapes and these values.
RUN = [
    "model.width=2",
    "model.channels=8",
    "model.auxiliary_channels=4",
    "augment.crop=64,64",
    "train.global_batch=4",
    "train.steps=620",
    "train.log_every=5",
    "train.validate_every=200",
    "train.checkpoint_every=100",
    "train.keep_checkpoints=1",
    "train.deterministic=true",
]
# Twenty steps of a few thousand weights.
TINY = [
    "model.width=4",
    "model.channels=8",
    "model.auxiliary_channels=4",
    "model.output_stride=16",
    "augment.crop=64,64",
    "train.global_batch=2",
    "train.steps=20",
    "train.warmup_steps=4",
    "train.learning_rate=0.02",
    "train.log_every=1",
    "train.validate_every=20",
    "train.checkpoint_every=20",
    "train.deterministic=true",
]
# Every head; between them also mixed precision, parts of a batch, hard examples, class weights, AdamW and an average.
TRAININGS = {
    "encnet": [],
    "deeplabv3": [],
    "deeplabv3plus": [],
    "apcnet": [],
    "pspnet": [],
    "fcn": [],
    "deeplabv3-bfloat16": ["train.precision=mixed_bfloat16", "train.accumulate=2", "train.global_batch=4"],
    "pspnet-ohem": [
        "loss.ohem_kept=1000",
        "loss.ohem_threshold=0.3",
        "loss.average=kept",
        "loss.class_weights=0.5,1,1,2,1,1.5,1",
    ],
    "fcn-adamw": ["train.optimizer=adamw", "train.learning_rate=0.001", "train.average_decay=0.9"],
}


def training(name, shapes, workdir):
    """Return the job that trains one of TRAININGS."""
    return [
        "kseg.train",
        "--config",
        "encnet_shapes",
        "--workdir",
        workdir,
        "--set",
        f"data.directory={shapes}",
        *TINY,
        f"model.head={name.split('-')[0]}",
        *TRAININGS[name],
    ]


@functools.cache
def recorded(name):
    """Return the facts of data/before/NAME.json."""
    return json.loads((BEFORE / f"{name}.json").read_text(encoding="utf-8"))


def unpack(name, directory):
    """Extract data/before/NAME.zip and return the directory that it is in."""
    with zipfile.ZipFile(BEFORE / f"{name}.zip") as archive:
        archive.extractall(directory / name)
    return directory / name


def machine():
    """Return what bits of floating-point results depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = set(re.findall(r"\b(?:avx\w*|fma\w*|amx\w*)\b", " ".join(re.findall("^flags.*", text, re.M))))
    return {
        "vendor": "".join(re.findall("^vendor_id.*: (.*)", text, re.M)[:1]),
        "flags": sorted(flags),
        **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }


def start(jobs, directory):
    """Start a process that runs {name: [module, argument, ...]} in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / f"{'-'.join(jobs)[:60]}.json"
    place.write_text(json.dumps({name: list(map(str, job)) for name, job in jobs.items()}))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.before", place.name],
        cwd=directory,
        env=os.environ | KERNELS | {"PYTHONPATH": str(ROOT)},
    )


def printed(directory, name):
    """Return what a job printed; it has to have ended well."""
    text = (directory / f"{name}.txt").read_text(encoding="utf-8")
    assert (directory / f"{name}.status").read_text() == "0", text[-4000:]
    return text


def digest(array):
    """Return the first 16 digits of the SHA-256 of an array's type, shape and bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def weight_facts(path):
    """Return {name in the file: its bits, shape and norm} of a .weights.h5 file."""
    import h5py

    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, value: found.update({name: np.asarray(value)}) if isinstance(value, h5py.Dataset) else None
        )
    return {
        name: {"bits": digest(value), "shape": list(value.shape), "norm": float(np.linalg.norm(value))}
        for name, value in sorted(found.items())
    }


def training_facts(workdir):
    """Return the losses of every line of a run's log, and its final weights."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    measured = [{key: value for key, value in line.items() if not re.search("second|share|mib", key)} for line in lines]
    return {"measured": measured, "weights": weight_facts(workdir / "final.weights.h5")}


def differences(found, expected, exact, tolerance, place=""):
    """Yield where facts differ: floats by more than a relative tolerance, or at all where bits have to agree.

    Values under "bits" are compared only if `exact`; all other values are always compared.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            if key not in expected or key not in found:
                yield f"{place}/{key} is {'new' if key in found else 'missing'}"
            elif key != "bits" or exact:
                yield from differences(found[key], expected[key], exact, tolerance, f"{place}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected)):
            yield from differences(*pair, exact, tolerance, f"{place}/{index}")
    elif isinstance(expected, float) and isinstance(found, float) and not exact:
        if not math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{place}: {found}, before {expected}"
    elif found != expected:
        yield f"{place}: {found}, before {expected}"


def require_same(found, expected, made_on, tolerance=1e-4):
    """Fail where facts are not those recorded: to the bit on such a machine as they were recorded on."""
    # As JSON gives them back, without tuples.
    found = json.loads(json.dumps(found))
    exact = machine() == made_on
    wrong = list(differences(found, expected, exact, tolerance))
    kind = "to the bit" if exact else f"within {tolerance}; of another machine: {machine()}, before {made_on}"
    assert not wrong, f"{len(wrong)} differences ({kind}):\n" + "\n".join(wrong[:20])


def main(jobs):
    for name, (module, *arguments) in json.loads(Path(jobs).read_text()).items():
        sys.argv, status = [module, *arguments], 0
        with (
            open(f"{name}.txt", "w", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as stopped:
                status = stopped.code or 0
            except Exception:
                traceback.print_exc()
                status = 1
        Path(f"{name}.status").write_text(str(status))


if __name__ == "__main__":
    main(sys.argv[1])
