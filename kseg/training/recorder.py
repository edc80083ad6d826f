"""Record a training run: progress lines, metrics.jsonl, TensorBoard, validation and the best weights."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import Train
from kseg.datasets.registry import Split
from kseg.distributed import hosts
from kseg.errors import WorkdirError
from kseg.evaluation import metrics
from kseg.evaluation.counter import Counter
from kseg.evaluation.sample_images import SampleImages
from kseg.inference.prediction import protocol_of
from kseg.system.atomic_files import append_text, write_text
from kseg.system.progress import duration
from kseg.tracking.trackers import Trackers
from kseg.training import validation_images, working_directory
from kseg.training.ema import ExponentialMovingAverage
from kseg.weights import keras_files

FIXED_IMAGES = 4
# Values that describe the machine rather than what is learned, beside those of memory, which end in _mib.
SPEED = ("images_per_second", "input_share")


NO_TRACKERS = Trackers()


class StepLog:
    """Accumulate the losses, the duration and the waiting time of the steps since the last line of the log."""

    def __init__(self, settings: Train):
        self.settings = settings
        self.seconds_per_step = 0.0
        self.restart()

    def restart(self) -> None:
        self.sums, self.count, self.untimed, self.waited = {}, 0, 0, 0.0
        self.started = time.monotonic()

    def add(self, values: dict) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def exclude(self, steps: int, seconds: float) -> None:
        """Leave steps out of the speed, but not out of the means: those of the call that compiled."""
        self.untimed += steps
        self.started += seconds

    def flush(self, step: int) -> dict:
        """Return the means and the speed since the last call, and start over.

        Args:
            step: the number of steps taken in the run.

        Returns:
            The mean of each loss, "images_per_second", "input_share", the fraction of time without a batch, and
            "eta_seconds". The last three are nan as long as only the steps of the first call were taken.
        """
        seconds, timed = time.monotonic() - self.started, self.count - self.untimed
        values = {name: total / self.count for name, total in self.sums.items()}
        if timed:
            latest = seconds / timed
            self.seconds_per_step = latest if not self.seconds_per_step else 0.5 * (self.seconds_per_step + latest)
        values |= {
            "images_per_second": self.settings.global_batch * timed / seconds if timed else math.nan,
            "input_share": self.waited / seconds if timed else math.nan,
            "eta_seconds": (self.settings.steps - step) * self.seconds_per_step if self.seconds_per_step else math.nan,
        }
        self.restart()
        return values


class Recorder:
    """Write the log and the best weights of a run, and validate it.

    With several hosts all of them validate, and only the chief writes. With an EMA, its weights are validated and
    saved. `best` is {"step", "mIoU"} of the best validation.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        split: Split,
        model: keras.Model,
        ema: ExponentialMovingAverage | None,
        strategy: tf.distribute.Strategy,
        report: Callable[[str], None],
        trackers: Trackers = NO_TRACKERS,
    ):
        """Read the best validation so far; `split` is the validation split."""
        self.trackers = trackers
        self.config, self.workdir, self.split, self.model, self.report = config, workdir, split, model, report
        self.ema, self.is_chief = ema, hosts.is_chief(strategy)
        self.hosts, self.replicas = hosts.num_hosts(strategy), strategy.num_replicas_in_sync
        # All hosts know it, because they count the same pixels.
        self.best = read_best(workdir)
        self.counter = Counter(
            model, protocol_of(config), len(split.dataset.classes), strategy, config.train.deterministic
        )

    def __enter__(self) -> "Recorder":
        if self.is_chief:
            self.board = tf.summary.create_file_writer(str(self.workdir / "tensorboard"))
        return self

    def __exit__(self, *exception) -> None:
        if self.is_chief:
            self.board.close()

    def discard_after(self, step: int) -> None:
        """Remove the metrics of later steps; TensorBoard keeps them and shows both versions."""
        if self.is_chief:
            working_directory.trim_metrics(self.workdir, step)

    def write(self, step: int, values: dict) -> None:
        """Append a line to metrics.jsonl and write the same values to TensorBoard, in groups."""
        if not self.is_chief:
            return
        # JSON has no nan. An absent class can leave a mean undefined.
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        append_text(self.workdir / "metrics.jsonl", json.dumps({"step": step, **plain}) + "\n", self.report)
        self.draw({grouped_name(name): value for name, value in values.items()}, step)

    def draw(self, scalars: dict, step: int) -> None:
        """Write scalars to TensorBoard and to the trackers."""
        self.trackers.log_scalars(step, scalars)
        with self.board.as_default(step=step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)

    def log(self, step: int, values: dict) -> None:
        """Write the values of a step and report its progress line."""
        eta = values.pop("eta_seconds")
        self.write(step, values)
        parts = " ".join(f"{name} {values[name]:.4f}" for name in ("main", "aux", "se") if name in values)
        self.report(
            f"step {step}/{self.config.train.steps}  loss {values['loss']:.4f} ({parts})  "
            f"lr {values['learning_rate']:.5f}  "
            + ("" if math.isnan(values["images_per_second"]) else f"{values['images_per_second']:.1f} images/s  ")
            + ("" if math.isnan(values["input_share"]) else f"input {100 * values['input_share']:.0f}%  ")
            + (f"memory {values['memory_mib'] / 1024:.1f} GiB  " if "memory_mib" in values else "")
            + f"eta {'unknown' if math.isnan(eta) else duration(eta)}"
        )

    def has_validation(self, step: int) -> bool:
        """Return whether metrics.jsonl contains the validation of a step."""
        path = self.workdir / "metrics.jsonl"
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else ())
        return any(line["step"] == step and "val/mIoU" in line for line in lines)

    def validate(self, step: int) -> None:
        """Evaluate the validation split, log the results, and save the weights if they are the best so far."""
        samples = SampleImages(self.split, FIXED_IMAGES, self.replicas if self.hosts > 1 else 1)
        with self.ema.swapped() if self.ema else contextlib.nullcontext():
            counts = self.counter.count(self.split, examine=samples.examine if self.is_chief else None)
            results = metrics.summarize(counts.matrix, self.split.dataset.classes)
            # A comparison with nan is false: a validation without a score is never the best.
            better = results["mIoU"] > self.best["mIoU"]
            if better:
                self.best = {"step": step, "mIoU": results["mIoU"]}
            if self.is_chief:
                self._write_validation(step, results, better, samples.rows)
        miou, accuracy = (metrics.percent_points(results[name]) for name in ("mIoU", "aAcc"))
        self.report(
            f"step {step}: validation mIoU {miou}  aAcc {accuracy} on {len(counts.names)} images"
            + ("  (best so far)" if better else "")
        )

    def _write_validation(self, step: int, results: dict, better: bool, rows: list[list[np.ndarray]]) -> None:
        if better:
            keras_files.save_weights(self.model, self.workdir / "best.weights.h5", self.report)
            write_text(self.workdir / "best.json", json.dumps(self.best, allow_nan=False) + "\n", self.report)
        self.write(step, {f"val/{name}": results[name] for name in ("mIoU", "mAcc", "aAcc")})
        self.draw({f"iou/{name}": scores["iou"] for name, scores in results["classes"].items()}, step)
        with self.board.as_default(step=step):
            tf.summary.image("validation", side_by_side(rows), max_outputs=FIXED_IMAGES)
        self.board.flush()
        dataset = self.split.dataset
        validation_images.write_images(self.workdir, step, rows, dataset.classes, dataset.palette, self.report)


def grouped_name(name: str) -> str:
    """Return the name of a value of metrics.jsonl under its group: train/, validation/ or system/."""
    group, _, rest = name.rpartition("/")
    if group == "val":
        return f"validation/{rest}"
    return f"system/{name}" if name in SPEED or name.endswith("_mib") else f"train/{name}"


def side_by_side(rows: list[list[np.ndarray]]) -> tf.Tensor:
    """Place the images of each row side by side; all are resized to the smallest row.

    Args:
        rows: Images of equal size in each row, uint8 (H, W, 3).

    Returns:
        uint8 (N, h, w, 3).
    """
    wide = [np.concatenate(row, axis=1) for row in rows]
    # TensorBoard requires images of equal size.
    smallest = min((row.shape[:2] for row in wide), key=lambda size: size[0] * size[1])
    return tf.stack([tf.image.resize(row, smallest, method="nearest") for row in wide])


def read_best(workdir: Path) -> dict:
    """Read {"step", "mIoU"} of the best validation of a run; without one that has a score they are 0 and -1."""
    path = workdir / "best.json"
    none = {"step": 0, "mIoU": -1.0}
    try:
        best = json.loads(path.read_text(encoding="utf-8")) if path.exists() else none
        # Earlier versions called a validation without labeled pixels the best one.
        return none if math.isnan(best["mIoU"]) else best
    except (ValueError, LookupError, TypeError):
        raise WorkdirError(f"{path} is damaged; remove it, and the next validation counts as the best one") from None
