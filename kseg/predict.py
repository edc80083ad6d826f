"""Predict class ids, overlays and more for images and videos, at the original size of each.

    python -m kseg.predict holiday.jpg photos 'scans/**/*.tif' --workdir runs/camvid --out predicted
    python -m kseg.predict photos --config encnet_camvid --weights FILE --out predicted
    python -m kseg.predict clip.mp4 --workdir runs/camvid --out predicted --save ids,overlay

    OUT/ids/REL.png          class ids, 8-bit gray; REL is the path below the directory, or below the fixed part of
                             the pattern, without its suffix
    OUT/overlay/REL.png      the image blended with the class colors; for a video REL.mp4
    OUT/KIND/REL.SUFFIX      further kinds of kseg.inference.output_kinds that --save lists
    OUT/KIND/REL/000000.png  result for the first frame of a video, for all kinds but overlay
    OUT/legend.png           the class colors

From Python, `predict.predict` is kseg.inference.file_prediction.predict_files, imported at its first use.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from kseg import cli
from kseg.images import video_files
from kseg.inference import output_kinds
from kseg.inference.input_files import DEFAULT_KINDS, find_input_files
from kseg.inference.output_kinds import KINDS


def __getattr__(name: str) -> Callable:
    """Import the prediction function when it is used (PEP 562)."""
    if name != "predict":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kseg.inference.file_prediction import predict_files

    return predict_files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=cli.program("kseg.predict"), description=__doc__.splitlines()[0])
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="an image or video, a directory (searched recursively for both), or a quoted pattern "
        f"like 'photos/**/*.jpg'; video suffixes: {' '.join(video_files.SUFFIXES)}",
    )
    cli.add_model_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="where to write legend.png and one directory for each kind of result; existing files are overwritten",
    )
    parser.add_argument(
        "--save",
        metavar="KIND[,KIND...]",
        nargs="+",
        action="extend",
        default=[],
        help="kinds of results (default: ids and overlay for images, overlay for videos): "
        + "; ".join(f"{name}: {kind.description}" for name, kind in KINDS.items())
        + "; for a video every kind but overlay is one file for each frame",
    )
    values = parser.parse_args(arguments)
    kinds = output_kinds.parse_kinds(values.save) if values.save else ()
    # A wrong path is reported here, before loading a model takes its time.
    find_input_files(values.inputs, values.out, kinds or DEFAULT_KINDS)
    model, config, dataset = cli.load_model(values)
    from kseg.inference import file_prediction, prediction, segmenter

    protocol = prediction.protocol_of(config)
    failures = file_prediction.predict_files(
        prediction.predictor(model, protocol),
        values.inputs,
        values.out,
        dataset,
        kinds=kinds,
        probability_predictor=(
            segmenter.probability_predictor(model, protocol) if output_kinds.need_probabilities(kinds) else None
        ),
        value_range=config.data.value_range,
    )
    return 1 if failures else 0


if __name__ == "__main__":
    cli.run(main)
