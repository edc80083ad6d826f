"""Train, evaluate, predict with and export a run from Python, by the functions that the commands call."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kseg import config as configs
from kseg.config import Config, checks
from kseg.errors import ConfigError
from kseg.system import quiet_start

if TYPE_CHECKING:
    from PIL import Image

    from kseg.inference.segmenter import Segmenter

    ImageLike = np.ndarray | Image.Image | Path | str

# Width of the pictures that a notebook shows, in pixels of the page.
SHOWN_WIDTH = 480


class Scores(dict):
    """The content of an evaluation's metrics.json; a notebook shows it as a table.

    Undefined scores are nan.
    """

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{_percent(scores['iou'])}</td>"
            f"<td>{_percent(scores['accuracy'])}</td></tr>"
            for name, scores in self["classes"].items()
        )
        return (
            f"<p>mIoU <b>{_percent(self['mIoU'])}</b>, aAcc {_percent(self['aAcc'])}, mAcc "
            f"{_percent(self['mAcc'])} on {self['images']} images of {html.escape(self['split'])}</p>"
            f"<table><tr><th>class</th><th>IoU</th><th>accuracy</th></tr>{rows}</table>"
        )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


@dataclass(frozen=True)
class Segmentation:
    """The class ids of an image; a notebook shows them over it.

    Attributes:
        image: The image, uint8 RGB (H, W, 3).
        ids: Class ids, uint8 (H, W).
        classes: Names of the classes by id.
        palette: RGB colors 0..255 of the classes.
    """

    image: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def fractions(self) -> dict[str, float]:
        """Return the fraction of the pixels of each class that occurs, the largest first."""
        counts = np.bincount(self.ids.ravel(), minlength=len(self.classes)) / self.ids.size
        return {
            self.classes[index]: float(counts[index]) for index in np.argsort(-counts, kind="stable") if counts[index]
        }

    def overlay(self, opacity: float = 0.5) -> np.ndarray:
        """Return the image blended with the class colors.

        Args:
            opacity: Weight of the class color, 0..1.

        Returns:
            The blended image, uint8 (H, W, 3).
        """
        from kseg.images import drawing

        return drawing.overlay(self.image, self.ids, self.palette, opacity)

    def _repr_html_(self) -> str:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(self.overlay()).save(file, "PNG")
        legend = ", ".join(
            f'<span style="color: rgb{self.palette[self.classes.index(name)]}">&#9632;</span> {html.escape(name)} '
            f"{_percent(fraction)} %"
            for name, fraction in self.fractions().items()
        )
        picture = base64.b64encode(file.getvalue()).decode()
        return f'<img width="{SHOWN_WIDTH}" src="data:image/png;base64,{picture}"><p>{legend}</p>'


class Run:
    """A run: a config and the working directory that holds what becomes of it.

    Args:
        config: NAME or NAME:VARIANT of a config, the path of a .py file, or a Config. Without it the config of
            `workdir` is read.
        workdir: The working directory; runs/NAME by default.
        **changes: Values by dotted key, which override the config's.

    Attributes:
        config: The checked config.
        workdir: The working directory.

    Raises:
        ConfigError: An unknown config or key, a refused value, or neither `config` nor `workdir`.
        WorkdirError: The config of `workdir` cannot be read.

    Example:
        >>> import kseg
        >>> run = kseg.Run(workdir=workdir, **{"data.directory": str(data)})
        >>> result = run.predict(image)
        >>> result.ids.shape == result.image.shape[:2]
        True
    """

    def __init__(self, config: str | Config | None = None, workdir: Path | str | None = None, **changes: Any):
        if config is None and workdir is None:
            raise ConfigError("name a config, such as encnet_shapes, or the working directory of a run")
        self.workdir = None if workdir is None else Path(workdir).expanduser()
        if config is None:
            from kseg.inference import trained_model

            config = trained_model.read_config(self.workdir)
        elif isinstance(config, str):
            config = configs.load(config)
        for key, value in changes.items():
            config = configs.replace_value(config, key, value)
        self.config = checks.check_config(config)
        if self.workdir is None:
            self.workdir = configs.default_workdir(config)
        self._segmenter: Segmenter | None = None

    def __repr__(self) -> str:
        return f"Run({self.config.name!r}, {str(self.workdir)!r})"

    def train(self, report: Callable[[str], None] = print) -> dict:
        """Train to the last step, resuming from the newest checkpoint if there is one.

        Args:
            report: Receives the lines of the log.

        Returns:
            {"step": number of steps taken, "best_mIoU": fraction, "best_step": step of the best validation}.

        Raises:
            UserError: The config, the data or the working directory is unusable.
            NonFiniteLoss: The loss was not finite too often.
            Stopped: The process was interrupted; the state has been saved, and the next call resumes.
        """
        quiet_start.import_tensorflow(optional_packages=True, for_training=True)
        from kseg.training import trainer

        self._segmenter = None
        return trainer.train(self.config, self.workdir, trainer.prepare_strategy(self.config.train), report)

    def evaluate(
        self, split: str | None = None, out: Path | str | None = None, report: Callable[[str], None] = print
    ) -> Scores:
        """Measure the best weights on a split at original resolution.

        Args:
            split: The split; by default data.val_split.
            out: Directory for report.html, metrics.json and the other files; WORKDIR/SPLIT by default.
            report: Receives progress and results.

        Returns:
            The content of metrics.json.

        Raises:
            UserError: The run has no weights yet, or the data cannot be evaluated.
        """
        quiet_start.import_tensorflow(optional_packages=True)
        from kseg.datasets import registry
        from kseg.evaluation import evaluator

        model, dataset, weights = self._load()
        name = split or self.config.data.val_split
        out = self.workdir / name if out is None else Path(out)
        scores = evaluator.evaluate(
            model, self.config, dataset, registry.open_split(self.config.data, name), out, report, weights=weights
        )
        evaluator.track_evaluation(self.config, self.workdir, out, scores, report)
        return Scores(scores)

    def predict(self, images: "ImageLike | Iterable[ImageLike]") -> Segmentation | list[Segmentation]:
        """Segment an image, or each of several.

        Args:
            images: A path, a PIL image or an array, uint8 RGB (H, W, 3); or a list of these.

        Returns:
            A Segmentation, or a list of them.

        Raises:
            DataError: An image cannot be read, or has another type or shape.
            UserError: The run has no weights yet.
        """
        quiet_start.import_tensorflow(optional_packages=True)
        from kseg.inference import segmenter

        if self._segmenter is None:
            model, dataset, _ = self._load()
            self._segmenter = segmenter.Segmenter(model, self.config, dataset)
        if isinstance(images, (list, tuple)):
            return [self.predict(image) for image in images]
        pixels = segmenter.as_rgb_array(images, self.config.data.value_range)
        return Segmentation(pixels, self._segmenter(pixels), self._segmenter.classes, self._segmenter.palette)

    def export(
        self, out: Path | str, formats: Sequence[str] = ("savedmodel",), calibrate: tuple[str, int] | None = None
    ) -> Path:
        """Write the best weights as a version that a server loads.

        Args:
            out: The directory that a server watches.
            formats: Some of savedmodel, onnx, litert and openvino.
            calibrate: For export.precision=int8, the split and the number of its images on which ranges are measured.

        Returns:
            The directory of the new version.

        Raises:
            ConfigError: A format does not support the config.
            UserError: The run has no weights yet, or `out` cannot be written.
        """
        quiet_start.import_tensorflow(optional_packages=True)
        from kseg.datasets import registry
        from kseg.exporting import exporter
        from kseg.exporting import formats as known_formats
        from kseg.exporting.calibration import Calibration
        from kseg.tracking import trackers

        known_formats.require_formats(formats, self.config)
        model, dataset, weights = self._load()
        calibration = None
        if calibrate:
            measured, tested = (
                registry.open_split(self.config.data, name) for name in (calibrate[0], self.config.data.val_split)
            )
            calibration = Calibration(measured, calibrate[1], tested)
        path = exporter.export(
            model, self.config, dataset, Path(out), weights, calibration=calibration, formats=list(formats)
        )
        trackers.log_results(self.config, self.workdir, [path], f"export/{path.name}", {})
        return path

    def _load(self) -> tuple:
        """Return (model with the best weights, dataset record of the training, file of the weights)."""
        from kseg.inference import trained_model

        weights = trained_model.best_weights(self.workdir)
        dataset = trained_model.read_dataset(self.workdir)
        model, _, _ = trained_model.load_with_weights(self.config, dataset, weights, False)
        return model, dataset, weights
