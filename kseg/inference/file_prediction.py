"""Predict image and video files and write the results."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kseg.errors import DataError
from kseg.images import drawing, image_files, picture_reader, video_files
from kseg.inference import output_kinds
from kseg.inference.input_files import DEFAULT_KINDS, InputFile, find_input_files, skipped_files_note
from kseg.inference.output_kinds import KINDS, Prediction
from kseg.system import progress
from kseg.system.paths import printable
from kseg.system.progress import Progress

if TYPE_CHECKING:
    from kseg.datasets.registry import Dataset


class FailedFile(NamedTuple):
    """A file that could not be read completely, and the printable error message with its path."""

    path: Path
    message: str


class PredictionRun(NamedTuple):
    """The settings that apply to all files of a run; `kinds` is empty for the default kinds."""

    predict: Callable[[np.ndarray], Prediction]
    out: Path
    palette: Sequence[tuple[int, int, int]]
    kinds: Sequence[str]
    value_range: Sequence[float]
    report: Callable[[str], None]


def predict_files(
    predictor: Callable[[np.ndarray], np.ndarray],
    inputs: Sequence[str | Path],
    out: Path,
    dataset: "Dataset",
    report: Callable[[str], None] = print,
    kinds: Sequence[str] = (),
    probability_predictor: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
    value_range: Sequence[float] = (),
) -> list[FailedFile]:
    """Predict image and video files, and write the results and a legend to a directory.

    A file that cannot be read, or for which the predictor raises DataError, is reported on stderr and skipped. Results
    of a truncated video's readable frames are kept. Existing results are overwritten, each one atomically.

    Args:
        predictor: Maps an RGB image, uint8 of shape (H, W, 3), to its class ids, uint8 of shape (H, W), as
            kseg.inference.prediction.predictor returns it.
        inputs: Files, directories and glob patterns.
        out: The directory for the results; created if missing.
        dataset: The record of the dataset that the model was trained on, with `classes` and `palette`.
        report: Receives progress lines.
        kinds: Names of kseg.inference.output_kinds.KINDS. By default images get ids and overlays, and videos overlays.
        probability_predictor: Maps an RGB image to its class ids and class probabilities, floating point of shape
            (H, W, C), as kseg.inference.segmenter.probability_predictor returns it. Needed if one of
            `kinds` is made from probabilities, and called instead of `predictor` then.
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255; may be empty.

    Returns:
        The files that could not be read completely.

    Raises:
        UserError: an input matches no files, results would share a path or overwrite an input, or a kind requires other
            classes, all before anything is written; or `out` cannot be written.

    Example:
        >>> from kseg.inference import prediction, trained_model
        >>> model, config, dataset = trained_model.load_trained(workdir)
        >>> predictor = prediction.predictor(model, prediction.protocol_of(config))
        >>> predict_files(predictor, [image], out, dataset, report=lambda line: None)
        []
        >>> sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
        ['ids/street.png', 'legend.png', 'overlay/street.png']
    """

    def predict(image: np.ndarray) -> Prediction:
        if output_kinds.need_probabilities(kinds):
            return Prediction(image, *probability_predictor(image))
        return Prediction(image, predictor(image))

    out = Path(out)
    files = find_input_files(inputs, out, kinds or DEFAULT_KINDS)
    output_kinds.require_classes(kinds, dataset)
    if "cityscapes-labelids" in kinds:
        ambiguous = output_kinds.ambiguous_names(
            file.result_path("cityscapes-labelids", 0 if file.is_video else None) for file in files
        )
        if ambiguous:
            report(
                f"note: Cityscapes' test server finds each result by the CITY_SEQUENCE_FRAME at the start of its "
                f"name, which must be unique; {len(ambiguous)} of {len(files)} names do not qualify, such as "
                f"{ambiguous[0]}"
            )
    if note := skipped_files_note(inputs, out):
        report(printable(f"note: {note}"))
    if missing := drawing.missing_characters(dataset.classes):
        report(f"note: legend.png shows boxes in place of {missing}, which no font of this machine's Python has")
    image_files.save_image(drawing.legend(dataset.classes, dataset.palette), out / "legend.png")
    run = PredictionRun(predict, out, dataset.palette, kinds, value_range, report)
    images, videos = [file for file in files if not file.is_video], [file for file in files if file.is_video]
    failures = _predict_images(run, images)
    written = [f"{len(images) - len(failures)} images"] if images else []
    if videos:
        frames = [_predict_video(run, video, failures) for video in videos]
        read = sum(count > 0 for count in frames)
        written.append(f"{sum(frames)} frames of {read} video{'s' * (read != 1)}")
    if failures:
        names = ", ".join(str(failure.path) for failure in failures[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        print(printable(f"{len(failures)} of {len(files)} files failed: {names}{more}"), file=sys.stderr)
    report(printable(f"wrote results of {' and '.join(written)} to {out}"))
    return failures


def _predict_images(run: PredictionRun, images: Sequence[InputFile]) -> list[FailedFile]:
    failures: list[FailedFile] = []
    extents: list[tuple[float, float]] = []
    progress = Progress(len(images), "images", run.report)
    for done, file in enumerate(images, 1):
        try:
            picture = picture_reader.read_picture(file.path, file.path, run.value_range)
            image = picture.pixels
            if picture.pages > 1:
                run.report(
                    printable(f"note: {file.path}: only the first of {picture.pages} pages or frames is predicted")
                )
            if picture.values is not None:
                extents.append((picture.values.min(), picture.values.max()))
            arrays = _result_arrays(run, image, run.kinds or DEFAULT_KINDS, str(file.path))
        except DataError as error:
            _record_failure(failures, file, "skipped", str(error))
        else:
            for kind, array in arrays.items():
                output_kinds.save_result(array, run.out / file.result_path(kind))
        progress.update(done)
    note = picture_reader.range_note(extents) if not run.value_range else ""
    if note:
        run.report(f"note: {note} (for this model: --set data.value_range=LOW,HIGH as it was trained)")
    return failures


def _predict_video(run: PredictionRun, file: InputFile, failures: list[FailedFile]) -> int:
    """Write a video's results and return the number of its frames that were read.

    Appends to `failures` if the video cannot be read completely.
    """
    kinds = run.kinds or ("overlay",)
    try:
        video = video_files.Video(file.path)
    except DataError as error:
        # A file that the user named may have any suffix, so it may be neither an image nor a video.
        hint = "" if file.path.suffix.lower() in video_files.SUFFIXES else "; it is not an image that Pillow can read"
        _record_failure(failures, file, "skipped", f"{error}{hint}")
        return 0
    if "overlay" in kinds and not video.rate_known:
        run.report(f"note: {file.path} does not declare a frame rate; its overlay has {video.rate:g} frames per second")
    progress = Progress(video.frame_count, f"frames of {file.path.name}", run.report)
    done, writers = 0, {}
    with contextlib.ExitStack() as stack:
        try:
            for image in video.frames():
                for kind, array in _result_arrays(run, image, kinds, f"frame {done} of {file.path}").items():
                    if KINDS[kind].is_video:
                        # The writer is opened at the first frame, so that an unreadable video leaves no empty file.
                        if kind not in writers:
                            path = run.out / file.result_path(kind)
                            writers[kind] = stack.enter_context(
                                video_files.video_writer(path, array.shape[:2], video.rate)
                            )
                        writers[kind](array)
                    else:
                        output_kinds.save_result(array, run.out / file.result_path(kind, done))
                done += 1
                progress.update(done)
        except DataError as error:
            _record_failure(failures, file, "incomplete" if done else "skipped", str(error))
    if done != video.frame_count:
        progress.update(done, last=True)
    return done


def _result_arrays(run: PredictionRun, image: np.ndarray, kinds: Sequence[str], name: str) -> dict[str, np.ndarray]:
    """Predict an image, uint8 RGB (H, W, 3), and return the array of each kind of result.

    Raises DataError with `name` if the model rejects the image, for example because it is too large.
    """
    try:
        prediction = run.predict(image)
        return {kind: KINDS[kind].array(prediction, run.palette) for kind in kinds}
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:
        # A huge image may exhaust the memory, for example; the user then needs to know which image it was.
        error.add_note(f"while predicting {name}, {image.shape[1]} x {image.shape[0]} pixels")
        raise


def _record_failure(failures: list[FailedFile], file: InputFile, status: str, message: str) -> None:
    """Append a failure to the list and print it on stderr."""
    message = printable(message)
    failures.append(FailedFile(file.path, message))
    # A progress line may still be on the terminal.
    print(f"{progress.CLEAR_LINE if sys.stderr.isatty() else ''}{status}: {message}", file=sys.stderr)
