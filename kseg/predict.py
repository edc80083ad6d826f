"""Prediction for pictures and videos: class ids, overlays and more at each one's own size.

    python -m kseg.predict holiday.jpg photos 'scans/**/*.tif' --workdir runs/camvid --out predicted
    python -m kseg.predict photos --config encnet_camvid --weights FILE --out predicted
    python -m kseg.predict clip.mp4 --workdir runs/camvid --out predicted --save ids,overlay

    OUT/ids/REL.png          class ids, 8-bit grey; REL is the path below the directory, or below the pattern's fixed
                             part, without its suffix
    OUT/overlay/REL.png      the picture mixed with the classes' colours; of a video REL.mp4
    OUT/KIND/REL.SUFFIX      the other kinds of kseg.inference.output_kinds that --save names
    OUT/KIND/REL/000000.png  those of a video's first frame, of all kinds but overlay
    OUT/legend.png           the colours
"""

import argparse
from pathlib import Path

from kseg import cli
from kseg.images import video_files
from kseg.inference import file_prediction, output_kinds
from kseg.inference.input_files import DEFAULT_KINDS, find_pictures
from kseg.inference.output_kinds import KINDS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.predict", description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", metavar="INPUT",
                        help="a picture or video, a directory (searched recursively for both), or a quoted pattern "
                             f"like 'photos/**/*.jpg'; videos are {' '.join(video_files.SUFFIXES)}")
    cli.add_model_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True,
                        help="where a directory for each kind of result and legend.png are written; existing files "
                             "are overwritten")
    parser.add_argument("--save", metavar="KIND[,KIND...]", nargs="+", action="extend", default=[],
                        help="the kinds of results (default: ids and overlay of pictures, overlay of videos): "
                             + "; ".join(f"{name}: {kind.description}" for name, kind in KINDS.items())
                             + "; of a video each kind but overlay is one file a frame")
    values = parser.parse_args(arguments)
    kinds = output_kinds.parse_kinds(values.save) if values.save else ()
    # Once here already: a wrong name is told before the time that loading a model takes.
    find_pictures(values.inputs, values.out, kinds or DEFAULT_KINDS)
    # TensorFlow, which these bring, takes seconds that --help shall not.
    from kseg.inference.prediction import predictor, protocol_of
    from kseg.inference.segmenter import scorer

    model, config, dataset = cli.load_model(values)
    protocol = protocol_of(config)
    failures = file_prediction.predict_files(predictor(model, protocol), values.inputs, values.out, dataset, kinds=kinds,
                                             scorer=scorer(model, protocol) if "scores" in kinds else None)
    return 1 if failures else 0


if __name__ == "__main__":
    cli.run(main)
