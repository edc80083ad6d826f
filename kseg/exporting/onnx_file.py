"""Write a class map function as an ONNX file, and run one with ONNX Runtime."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    from tf2onnx.graph import Graph, Node

    from kseg.exporting.class_maps import ClassMaps

FILE = "model.onnx"
# Runtimes since 2022 read it.
OPSET = 17


def write(maps: "ClassMaps", metadata: Mapping[str, str], directory: Path) -> None:
    """Write FILE in a directory, with metadata as its metadata_props."""
    import onnx
    import tf2onnx

    proto, _ = tf2onnx.convert.from_function(
        maps.function,
        input_signature=maps.function.input_signature,
        opset=OPSET,
        custom_op_handlers={"ResizeBilinear": (_resize_to_size, [])},
    )
    _pad_explicitly(proto)
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto)
    (directory / FILE).write_bytes(proto.SerializeToString())


def load(directory: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs FILE of a directory with a number of threads.

    It maps images, uint8 (N, H, W, 3), to class maps, uint8 (N, H, W).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(directory / FILE, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["class_map"], {"image": images})[0]


def _pad_explicitly(proto: "onnx.ModelProto") -> None:
    """Replace the padding SAME of dilated convolutions by numbers, because ONNX Runtime refuses it."""
    from onnx import helper

    for node in proto.graph.node:
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type != "Conv" or values.get("auto_pad") != b"SAME_UPPER" or max(values.get("strides", [1])) > 1:
            continue
        totals = [(size - 1) * dilation for size, dilation in zip(values["kernel_shape"], values["dilations"])]
        pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]
        kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def _resize_to_size(graph: "Graph", node: "Node", name: str, arguments: list) -> None:
    """Convert a ResizeBilinear to a Resize with a size.

    tf2onnx itself writes factors, and the product of a factor and a length may be rounded down to a smaller size.
    """
    from onnx import TensorProto

    images, size = node.input
    shapes, dtypes = node.output_shapes, node.output_dtypes
    centers = "align_corners" if node.get_attr_value("align_corners") else "half_pixel"

    def add(operation: str, inputs: list[str], **attributes) -> str:
        return graph.make_node(operation, inputs, attributes).output[0]

    def constant(suffix: str, values: list, dtype: type) -> str:
        return graph.make_const(f"{name}/{suffix}", np.array(values, dtype)).output[0]

    planes = add("Transpose", [images], perm=[0, 3, 1, 2])
    kept = add("Slice", [add("Shape", [planes]), constant("first", [0], np.int64), constant("last", [2], np.int64)])
    sizes = add("Concat", [kept, add("Cast", [size], to=TensorProto.INT64)], axis=0)
    none = constant("none", [], np.float32)
    resized = add("Resize", [planes, none, none, sizes], mode="linear", coordinate_transformation_mode=centers)
    graph.remove_node(node.name)
    graph.make_node(
        "Transpose",
        [resized],
        {"perm": [0, 2, 3, 1]},
        name=node.name,
        outputs=node.output,
        shapes=shapes,
        dtypes=dtypes,
    )
