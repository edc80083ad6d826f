"""Write a class map function as OpenVINO's files, and run them."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kseg.exporting.class_maps import ClassMaps

# model.bin, beside it, holds the weights.
FILE = "model.xml"
# Section of the file's runtime information that holds the metadata.
SECTION = "kseg"


def write(maps: "ClassMaps", metadata: Mapping[str, str], directory: Path) -> None:
    """Write FILE and its weights in a directory, with metadata as runtime information."""
    import openvino

    traced = maps.function.get_concrete_function()
    with tempfile.TemporaryDirectory() as temporary:
        graph = Path(temporary, "graph.pb")
        graph.write_bytes(traced.graph.as_graph_def().SerializeToString())
        # openvino.convert_model would do the same and send usage statistics.
        model = openvino.Core().read_model(graph)
    # OpenVINO makes an output of each operation whose result nobody reads.
    for result in model.get_results():
        if traced.outputs[0].name not in result.output(0).names:
            model.remove_result(result)
    model.input().set_names({"image"})
    model.output().set_names({"class_map"})
    for name, text in metadata.items():
        model.set_rt_info(text, [SECTION, name])
    openvino.save_model(model, directory / FILE, compress_to_fp16=False)


def load(directory: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs FILE of a directory with a number of threads.

    It maps images, uint8 (N, H, W, 3), to class maps, uint8 (N, H, W).
    """
    import openvino

    # By default, OpenVINO computes in bfloat16 on CPUs that have it.
    compiled = openvino.Core().compile_model(
        directory / FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    )
    return lambda images: compiled(images)["class_map"]
