"""Predict, without a GPU, where TensorFlow would run the operations of a traced function.

The installed TensorFlow knows its GPU kernels even where it sees no GPU: the registry tells for every kernel the dtypes
it accepts and which of its arguments it expects in the memory of the host.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, device_properties_pb2, rewriter_config_pb2
from tensorflow.python.framework import kernels, meta_graph
from tensorflow.python.grappler import cluster, tf_optimizer

# Attributes of calls that name functions with operations of their own.
CALLS = {
    "PartitionedCall": ["f"],
    "StatefulPartitionedCall": ["f"],
    "While": ["cond", "body"],
    "StatelessWhile": ["cond", "body"],
    "If": ["then_branch", "else_branch"],
    "StatelessIf": ["then_branch", "else_branch"],
}
GPU = "/job:localhost/replica:0/task:0/device:GPU:0"
# The size of a dimension that is known only at run time. Vectors of that size are small, maps are not.
UNKNOWN = 100
# Operations that pass a tensor on where it is.
TRANSPARENT = {"Identity", "StopGradient", "IdentityN", "Arg", "Placeholder", "NoOp"}


class Crossing(NamedTuple):
    """Hold a tensor that would be copied between the memories of host and GPU."""

    producer: str
    consumer: str
    type: str
    bytes: int


def crossings_and_missing(function: tf.types.experimental.ConcreteFunction) -> tuple[list[Crossing], set[str]]:
    """Return the copies between host and GPU in a function and the types of operations without a GPU kernel.

    Every operation with a GPU kernel is assumed to run on the GPU, unless it is assigned to a CPU. Arguments and
    results of functions are in the memory of the host if they are int32, as in TensorFlow's runtime. The bodies of
    called functions are walked once.
    """
    crossings, missing = [], set()
    for graph in _graphs(function.graph):
        for operation in graph.get_operations():
            # Messages of assertions are strings, which exist on the host alone.
            text = any(tensor.dtype == tf.string for tensor in operation.outputs)
            if operation.type not in CALLS and not _on_gpu(operation) and "CPU" not in operation.device and not text:
                missing.add(operation.type)
            for index, tensor in enumerate(operation.inputs):
                if _in_host_memory(tensor) != _expects_host_memory(operation, index):
                    crossings.append(Crossing(tensor.op.name, operation.name, operation.type, _size(tensor)))
    return crossings, missing


def as_on_gpus(function: tf.types.experimental.ConcreteFunction) -> None:
    """Assign what a function assigns to virtual CPUs, as which replicas were traced, to GPUs."""
    for graph in _graphs(function.graph):
        for operation in graph.get_operations():
            operation._set_device(operation.device.replace("CPU", "GPU"))


def transposes(function: tf.types.experimental.ConcreteFunction) -> int:
    """Return how many transposes TensorFlow's layout optimizer leaves in a function on a GPU with tensor cores."""
    exported = meta_graph.create_meta_graph_def(graph=function.graph)
    for node in exported.graph_def.node:
        node.device = GPU
    exported.collection_def["train_op"].node_list.value.extend(
        [tensor.name for tensor in function.graph.outputs]
        + [operation.name for operation in function.graph.control_outputs]
    )
    properties = device_properties_pb2.DeviceProperties(
        type="GPU",
        vendor="NVIDIA",
        frequency=1000,
        num_cores=60,
        memory_size=2**34,
        environment={"architecture": "8.0", "cuda": "12000", "cudnn": "9000"},
    )
    config = config_pb2.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.layout_optimizer, rewrites.min_graph_nodes = rewriter_config_pb2.RewriterConfig.ON, -1
    rewrites.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    rewrites.optimizers.append("layout")
    virtual = cluster.Cluster(devices=[device_properties_pb2.NamedDevice(name=GPU, properties=properties)])
    optimized = tf_optimizer.OptimizeGraph(config, exported, cluster=virtual)
    virtual.Shutdown()
    return sum(node.op == "Transpose" for node in optimized.node)


def _graphs(graph: tf.Graph) -> Iterator[tf.Graph]:
    seen, waiting = set(), [graph]
    while waiting:
        current = waiting.pop()
        yield current
        for operation in current.get_operations():
            for attribute in CALLS.get(operation.type, ()):
                name = operation.get_attr(attribute).name
                if name not in seen:
                    seen.add(name)
                    waiting.append(_body(current, name))


def _body(graph: tf.Graph, name: str) -> tf.Graph:
    while name not in graph._functions:
        graph = graph.outer_graph
    return graph._functions[name].graph


def _on_gpu(operation: tf.Operation) -> bool:
    return operation.type in TRANSPARENT or _kernel(operation) is not None


def _in_host_memory(tensor: tf.Tensor) -> bool:
    operation = tensor.op
    if operation.type in TRANSPARENT and operation.inputs and "CPU" not in operation.device:
        return _in_host_memory(operation.inputs[tensor.value_index])
    if operation.type in CALLS or operation.type in TRANSPARENT:
        return tensor.dtype == tf.int32
    kernel = _kernel(operation)
    return (
        kernel is None
        or _argument(operation.op_def.output_arg, operation, tensor.value_index) in kernel.host_memory_arg
    )


def _expects_host_memory(operation: tf.Operation, index: int) -> bool:
    if operation.type in TRANSPARENT:
        return _in_host_memory(operation.inputs[index])
    if operation.type in CALLS:
        return operation.inputs[index].dtype == tf.int32
    kernel = _kernel(operation)
    return kernel is None or _argument(operation.op_def.input_arg, operation, index) in kernel.host_memory_arg


def _argument(arguments: list, operation: tf.Operation, index: int) -> str:
    """Return the name of the argument to which the input or output with an index belongs."""
    for argument in arguments:
        length = 1
        if argument.number_attr:
            length = operation.get_attr(argument.number_attr)
        elif argument.type_list_attr:
            length = len(operation.get_attr(argument.type_list_attr))
        if index < length:
            return argument.name
        index -= length
    raise IndexError(operation.name)


@functools.cache
def _kernels(kind: str) -> list:
    return [
        kernel
        for kernel in kernels.get_registered_kernels_for_op(kind).kernel
        if kernel.device_type in ("GPU", "DEFAULT") and not kernel.label
    ]


def _kernel(operation: tf.Operation):
    """Return the definition of the GPU kernel of an operation, or None, also for one that is assigned to the CPU."""
    if "CPU" in operation.device:
        return None

    def accepts(kernel) -> bool:
        for constraint in kernel.constraint:
            value = operation.node_def.attr[constraint.name]
            types = {value.type} if value.WhichOneof("value") == "type" else set(value.list.type)
            if not types <= set(constraint.allowed_values.list.type):
                return False
        return True

    found = [kernel for kernel in _kernels(operation.type) if accepts(kernel)]
    return max(found, key=lambda kernel: (kernel.device_type == "GPU", kernel.priority), default=None)


def _size(tensor: tf.Tensor) -> int:
    """Return the number of bytes of a tensor, 0 for the handle of a variable."""
    if tensor.dtype in (tf.resource, tf.variant):
        return 0
    sizes = tensor.shape.as_list() if tensor.shape.rank is not None else [None] * 4
    return math.prod(UNKNOWN if size is None else size for size in sizes) * tensor.dtype.size
