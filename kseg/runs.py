"""What a training run writes while it goes: progress lines, metrics.jsonl, TensorBoard, the best weights."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kseg import evaluate, metrics, workdirs
from kseg.config import Config, Train
from kseg.counts import Counter
from kseg.datasets import Dataset
from kseg.errors import WorkdirError
from kseg.inference import predictor
from kseg.progress import duration

FIXED_IMAGES = 4


class StepLog:
    """Means over the steps since the last line, and how long they took."""

    def __init__(self, settings: Train):
        self.settings = settings
        self.seconds_per_step = 0.0
        self.restart()

    def restart(self) -> None:
        self.sums, self.count, self.waited = {}, 0, 0.0
        self.started = time.monotonic()

    def add(self, values: dict, waited: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.waited += waited

    def flush(self, step: int, rate: float) -> dict:
        """Return what was measured since the last call, and start over."""
        seconds = time.monotonic() - self.started
        # The first stretch holds the compilation, so the estimate forgets quickly.
        latest = seconds / self.count
        self.seconds_per_step = latest if not self.seconds_per_step else 0.5 * (self.seconds_per_step + latest)
        values = {name: total / self.count for name, total in self.sums.items()}
        values |= {"learning_rate": rate, "images_per_second": self.settings.global_batch * self.count / seconds,
                   "input_share": self.waited / seconds,
                   "eta_seconds": (self.settings.steps - step) * self.seconds_per_step}
        self.restart()
        return values


class Run:
    """What a run writes while it trains: progress lines, metrics.jsonl, TensorBoard, the best weights."""

    def __init__(self, config: Config, workdir: Path, dataset: Dataset, model: keras.Model,
                 strategy: tf.distribute.Strategy, report: Callable[[str], None]):
        self.config, self.workdir, self.dataset, self.model, self.report = config, workdir, dataset, model, report
        self.counter = Counter(model, config, len(dataset.classes), strategy)
        self.predict = predictor(model, config)

    def __enter__(self) -> "Run":
        self.jsonl = (self.workdir / "metrics.jsonl").open("a", encoding="utf-8")
        self.board = tf.summary.create_file_writer(str(self.workdir / "tensorboard"))
        return self

    def __exit__(self, *exception) -> None:
        self.jsonl.close()
        self.board.close()

    def write(self, step: int, values: dict) -> None:
        """Append a line to metrics.jsonl and the same numbers to TensorBoard."""
        # JSON has no nan; an absent class can leave a mean without a value.
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.jsonl.write(json.dumps({"step": step, **plain}) + "\n")
        self.jsonl.flush()
        with self.board.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def log(self, step: int, values: dict) -> None:
        """Report the progress line of a step."""
        eta = values.pop("eta_seconds")
        self.write(step, values)
        parts = " ".join(f"{name} {values[name]:.4f}" for name in ("main", "aux", "se") if name in values)
        self.report(f"step {step}/{self.config.train.steps}  loss {values['loss']:.4f} ({parts})  "
                    f"lr {values['learning_rate']:.5f}  {values['images_per_second']:.1f} images/s  "
                    f"input {100 * values['input_share']:.0f}%  eta {duration(eta)}")

    def best(self) -> dict:
        """Return {"step", "mIoU"} of the best validation."""
        path = self.workdir / "best.json"
        try:
            return json.loads(path.read_text()) if path.exists() else {"step": 0, "mIoU": -1.0}
        except ValueError:
            raise WorkdirError(f"{path} is damaged; remove it, and the next validation counts as the best") from None

    def validated(self, step: int) -> bool:
        """Return whether metrics.jsonl holds the validation of a step."""
        lines = map(json.loads, (self.workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return any(line["step"] == step and "val/mIoU" in line for line in lines)

    def validate(self, step: int, interrupted: Callable[[], bool]) -> bool:
        """Count the validation split, keep the weights if they are the best, and draw the fixed images.

        Returns False where `interrupted()` became true; nothing is written then.
        """
        counts = self.counter.count(self.config.data.val_split, interrupted=interrupted)
        if counts is None:
            return False
        results = metrics.summary(counts.matrix, self.dataset.classes)
        best = self.best()
        better = not results["mIoU"] <= best["mIoU"]
        if better:
            workdirs.save_weights(self.model, self.workdir / "best.weights.h5")
            workdirs.write_text(self.workdir / "best.json", json.dumps({"step": step, "mIoU": results["mIoU"]}) + "\n")
        self.write(step, {f"val/{name}": results[name] for name in ("mIoU", "mAcc", "aAcc")})
        self.report(f"step {step}: validation mIoU {100 * results['mIoU']:.2f}  aAcc {100 * results['aAcc']:.2f} "
                    f"on {len(counts.names)} images" + ("  (best so far)" if better else ""))
        with self.board.as_default(step=step):
            tf.summary.image("validation", self.fixed_images(), max_outputs=FIXED_IMAGES)
        self.board.flush()
        return True

    def fixed_images(self) -> tf.Tensor:
        """Return image, truth and prediction side by side, uint8 (N, H, 3 W, 3), for images that never change."""
        rows = [np.concatenate(row, axis=1) for row in evaluate.picture_rows(
            self.predict, self.config, self.dataset, self.config.data.val_split, FIXED_IMAGES)]
        # TensorBoard wants one size.
        smallest = min((row.shape[:2] for row in rows), key=lambda size: size[0] * size[1])
        return tf.stack([tf.image.resize(row, smallest, method="nearest") for row in rows])
