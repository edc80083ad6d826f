"""Predict image and video files and write the results."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kseg.errors import DataError
from kseg.images import drawing, image_files, video_files
from kseg.inference import output_kinds
from kseg.inference.input_files import DEFAULT_KINDS, Picture, find_pictures
from kseg.inference.output_kinds import KINDS, Prediction
from kseg.system import progress
from kseg.system.progress import Progress

if TYPE_CHECKING:
    from kseg.datasets.registry import Dataset


class FailedFile(NamedTuple):
    """A file that could not be read, or a video not to its end, and the message that names it."""

    path: Path
    message: str


class PredictionRun(NamedTuple):
    """What all pictures and videos of a run share; `kinds` are empty where none were asked for."""

    look: Callable[[np.ndarray], Prediction]
    out: Path
    palette: Sequence[tuple[int, int, int]]
    kinds: Sequence[str]
    report: Callable[[str], None]


def predict_files(predictor: Callable[[np.ndarray], np.ndarray], inputs: Sequence[str | Path], out: Path, dataset: "Dataset",
                  report: Callable[[str], None] = print, kinds: Sequence[str] = (),
                  scorer: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None) -> list[FailedFile]:
    """Write results and the legend for all inputs to `out`, and return the files that could not be read to their end.

    `predictor` takes a uint8 RGB picture (H, W, 3) and returns its uint8 class ids (H, W). `kinds` are names of
    outputs.KINDS; by default ids and overlays of pictures, and overlays of videos. Where they have scores, `scorer`
    is called in the predictor's place, which returns the ids and the classes' probabilities (H, W, C). A file that
    cannot be read, or for which they raise DataError, is named on stderr and left out; of a video that cannot be read
    to its end, what was read is kept. Existing results are overwritten, each at once. Raises UserError as
    `find_pictures` and `output_kinds.require_classes` do, before anything is written, and where `out` cannot be written.
    """
    def look(image: np.ndarray) -> Prediction:
        return Prediction(image, *scorer(image)) if "scores" in kinds else Prediction(image, predictor(image))

    out = Path(out)
    chosen = find_pictures(inputs, out, kinds or DEFAULT_KINDS)
    output_kinds.require_classes(kinds, dataset)
    if "cityscapes-labelids" in kinds:
        odd = output_kinds.ambiguous_names(picture.result("cityscapes-labelids", 0 if picture.video else None)
                                           for picture in chosen)
        if odd:
            report(f"note: for Cityscapes' test server each result's name begins with the picture's own "
                   f"CITY_SEQUENCE_FRAME; {len(odd)} of {len(chosen)} do not, such as {odd[0]}")
    image_files.save_image(drawing.legend(dataset.classes, dataset.palette), out / "legend.png")
    run = PredictionRun(look, out, dataset.palette, kinds, report)
    images, clips = [each for each in chosen if not each.video], [each for each in chosen if each.video]
    failures = _predict_images(run, images)
    written = [f"{len(images) - len(failures)} images"] if images else []
    if clips:
        frames = [_predict_video(run, clip, failures) for clip in clips]
        read = sum(count > 0 for count in frames)
        written.append(f"{sum(frames)} frames of {read} video{'s' * (read != 1)}")
    if failures:
        names = ", ".join(str(failure.path) for failure in failures[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        print(f"{len(failures)} of {len(chosen)} files failed: {names}{more}", file=sys.stderr)
    report(f"wrote results of {' and '.join(written)} to {out}")
    return failures


def _predict_images(run: PredictionRun, images: Sequence[Picture]) -> list[FailedFile]:
    failures: list[FailedFile] = []
    progress = Progress(len(images), "images", run.report)
    for done, picture in enumerate(images, 1):
        try:
            image = image_files.read_image(picture.path)
            arrays = _results(run, image, run.kinds or DEFAULT_KINDS, str(picture.path))
        except DataError as error:
            _note(failures, picture, "skipped", str(error))
        else:
            for kind, array in arrays.items():
                output_kinds.save_result(array, run.out / picture.result(kind))
        progress.update(done)
    return failures


def _predict_video(run: PredictionRun, clip: Picture, failures: list[FailedFile]) -> int:
    """Write a video's results, and return the number of frames that it gave; appends to `failures` where it ends early.
    """
    kinds = run.kinds or ("overlay",)
    try:
        video = video_files.Video(clip.path)
    except DataError as error:
        # Nothing is known of a file that was named itself.
        other = "" if clip.path.suffix.lower() in video_files.SUFFIXES else "; nor is it a picture that Pillow reads"
        _note(failures, clip, "skipped", f"{error}{other}")
        return 0
    if "overlay" in kinds and not video.rate_known:
        run.report(f"note: {clip.path} does not say how many frames a second it has; its overlay gets {video.rate:g}")
    progress = Progress(video.frame_count, f"frames of {clip.path.name}", run.report)
    done, films = 0, {}
    with contextlib.ExitStack() as stack:
        try:
            for image in video.frames():
                for kind, array in _results(run, image, kinds, f"frame {done} of {clip.path}").items():
                    if KINDS[kind].filmed:
                        # Not before: a video of no frames is none.
                        if kind not in films:
                            films[kind] = stack.enter_context(
                                video_files.video_writer(run.out / clip.result(kind), array.shape[:2], video.rate))
                        films[kind](array)
                    else:
                        output_kinds.save_result(array, run.out / clip.result(kind, done))
                done += 1
                progress.update(done)
        except DataError as error:
            _note(failures, clip, "cut short" if done else "skipped", str(error))
    if done != video.frame_count:
        progress.update(done, last=True)
    return done


def _results(run: PredictionRun, image: np.ndarray, kinds: Sequence[str], name: str) -> dict[str, np.ndarray]:
    """Return the array of each kind of result for a picture, uint8 RGB (H, W, 3).

    Raises DataError naming the picture where the model cannot look at it, as one that is too large.
    """
    try:
        prediction = run.look(image)
        return {kind: KINDS[kind].array(prediction, run.palette) for kind in kinds}
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:
        # Such as memory that one huge picture used up: which one is half of the answer.
        error.add_note(f"while predicting {name}, {image.shape[1]} x {image.shape[0]} pixels")
        raise


def _note(failures: list[FailedFile], picture: Picture, what: str, message: str) -> None:
    """Append a failure, and say so on stderr."""
    failures.append(FailedFile(picture.path, message))
    # A progress line may stand half-written on a terminal.
    print(f"{progress.CLEAR_LINE if sys.stderr.isatty() else ''}{what}: {message}", file=sys.stderr)
