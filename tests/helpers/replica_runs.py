"""Train on two virtual devices, by the command and step by step, and print the results as JSON.

This needs a separate process, because virtual devices must be configured before TensorFlow starts. The arguments are
those of kseg.train:
python -m tests.helpers.replica_runs --config encnet_shapes --workdir DIR
"""

import contextlib
import io
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import train
from kseg.config import Config
from kseg.config.sections import Loss, Model, Train
from kseg.errors import ConfigError
from kseg.models import layers, norms
from kseg.training import trainer
from kseg.training.optimizers import MomentumSGD, sum_in_packs
from kseg.training.schedule import schedule
from kseg.training.step import Steps, finite_or_nan
from tests.helpers.gpu_kernels import as_on_gpus, crossings_and_missing
from tests.helpers.small_models import shallow_resnet18
from tests.helpers.small_training import build_small_networks

STEPS, BATCH, CLASSES = 20, 4, 5
# At most half of the 4 * 64 * 64 pixels are labeled, nearly all of them on one replica. Mining keeps at least 4 * 300.
LOSSES = {
    "valid": Loss(average="valid"),
    "all, mined below a threshold": Loss(average="all", ohem_kept=300, ohem_threshold=0.3),
    "kept, weighted and mined": Loss(average="kept", class_weights=(0.5, 1.0, 2.0, 0.1, 1.5), ohem_kept=300),
}


def batch_of(step):
    """Return a batch whose second half is mostly ignored, and completely at odd steps."""
    generator = np.random.default_rng(step)
    labels = generator.integers(0, CLASSES, (BATCH, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    images = generator.normal(0, 0.3, (BATCH, 64, 64, 3)) + labels[..., None] - 2
    labels[BATCH // 2 :, 0 if step % 2 else 8 :] = 255
    labels[0, :3] = 255
    return {"image": images.astype(np.float32), "label": labels, "index": np.arange(BATCH)}


def encnet(config):
    """Return EncNet on the shortest ResNet, whose graph takes most of the time of this process."""
    with shallow_resnet18():
        return trainer.build_training(config, CLASSES, print)[:2]


def shallow(config):
    """Return a model with EncNet's outputs that is traced quickly, because each loss needs a separate graph."""
    images = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(8, 9, strides=8, padding="same", activation="relu", name="features")(images)
    outputs = {name: keras.layers.Conv2D(CLASSES, 1, name=name)(features) for name in ("main", "aux")}
    mean = keras.layers.GlobalAveragePooling2D(name="mean")(features)
    model = keras.Model(images, outputs | {"se": keras.layers.Dense(CLASSES, name="se")(mean)})
    optimizer = MomentumSGD(schedule(config.train), config.train.momentum, config.train.weight_decay)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def losses(strategy, loss, build):
    config = Config(
        model=Model(backbone="resnet18", width=8, channels=16, auxiliary_channels=8),
        loss=loss,
        train=Train(global_batch=BATCH, steps=STEPS, learning_rate=0.02),
    )
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model, optimizer = build(config)
    step = Steps(model, optimizer, config, strategy).one
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    batches = [batch_of(index) for index in range(STEPS)]
    images = {name: np.concatenate([batch[name] for batch in batches]) for name in ("image", "label", "index")}
    data = tf.data.Dataset.from_tensor_slices(images).batch(BATCH).with_options(options)
    return [float(step(batch)["loss"]) for batch in strategy.experimental_distribute_dataset(data)]


def walk(strategy):
    """Return what lacks a GPU kernel, and what crosses to the host, in the step of two replicas of 1x512x1024."""
    config = Config(model=Model(backbone="resnet18", width=8, channels=16), train=Train(global_batch=2))
    spec = {
        "image": tf.TensorSpec((1, 512, 1024, 3), tf.uint8),
        "inside": tf.TensorSpec((1, 4), tf.int32),
        "label": tf.TensorSpec((1, 512, 1024), tf.uint8),
    }
    with pytest.MonkeyPatch.context() as patch, strategy.scope():
        for module in (layers, norms):
            patch.setattr(module, "on_cpu", lambda: False)
        model, optimizer = encnet(config)
        step = Steps(model, optimizer, config, strategy).step
        batch = strategy.experimental_distribute_values_from_function(
            lambda context: tf.nest.map_structure(lambda each: tf.zeros(each.shape, each.dtype), spec)
        )
        function = step.get_concrete_function(batch)
    as_on_gpus(function)
    crossings, missing = crossings_and_missing(function)
    return {
        "missing": sorted(missing),
        "crossings": sorted({each.type for each in crossings if each.bytes > 1000}),
        "messages": messages(function),
    }


def skips(strategy):
    """Apply gradients with and without non-finite values and return the state of every replica."""
    with strategy.scope():
        variables = [keras.Variable(np.ones(2, np.float32), name="first"), keras.Variable(2.0, name="second")]
        optimizer = MomentumSGD(0.1, skip_nonfinite=True)
        optimizer.build(variables)

    @tf.function
    def step(value):
        def replica_step():
            context = tf.distribute.get_replica_context()
            # Only one element on the second replica has this value.
            first = tf.where(tf.equal(context.replica_id_in_sync_group, 1), tf.stack([1.0, value]), tf.ones(2))
            gradients, skipped = finite_or_nan([first, tf.constant(1.0)])
            optimizer.apply(gradients, variables)
            return skipped

        return strategy.reduce("mean", strategy.run(replica_step), axis=None)

    states = {}
    for name, value in (("infinite", np.inf), ("nan", np.nan), ("finite", 1.0)):
        skipped = float(step(tf.constant(value, tf.float32)))
        state = {
            "first": variables[0],
            "second": variables[1],
            "first velocity": optimizer.velocities[0],
            "second velocity": optimizer.velocities[1],
        }
        states[name] = {
            key: [copy.numpy().tolist() for copy in strategy.experimental_local_results(variable.value)]
            for key, variable in state.items()
        } | {"skipped": skipped}
    return states


def norm_results(strategy):
    """Return the outputs and gradients of each kind of norm on a batch whose halves differ, and its messages."""
    inputs, upstream, gamma, beta = norm_case()

    def replica_step(normalize):
        context = tf.distribute.get_replica_context()
        half = len(inputs) // 2 * context.replica_id_in_sync_group
        local, weights = (tf.constant(values)[half : half + len(inputs) // 2] for values in (inputs, upstream))
        scale, offset = tf.constant(gamma), tf.constant(beta)
        with tf.GradientTape() as tape:
            tape.watch((local, scale, offset))
            outputs, mean, variance = normalize(local, scale, offset, 1e-5, context)
            loss = tf.reduce_sum(outputs * weights)
        return outputs, mean, variance, *tape.gradient(loss, (local, scale, offset))

    found = {}
    for form in (norms.fused_training, norms.normalize_training, norms.exact_training):
        step = tf.function(lambda form=form: strategy.run(replica_step, (form,)))
        results = [[value.numpy().tolist() for value in strategy.experimental_local_results(part)] for part in step()]
        found[form.__name__] = {"results": results, "messages": messages(step.get_concrete_function())}
    return found


def messages(function):
    """Return how often each of two replicas sends in a compiled function."""
    graph = function.graph.as_graph_def()
    kinds = [node.op for body in graph.library.function for node in body.node_def]
    kinds += [node.op for node in graph.node]
    return len([kind for kind in kinds if kind.startswith("CollectiveReduce")]) // 2


def packs(strategy):
    """Return the sums of gradients of 400, 800 and 400 bytes for some sizes of a pack, and the messages they need."""
    found = {}
    for size in (0, 500, 2000):

        def replica_step(size=size):
            context = tf.distribute.get_replica_context()
            value = tf.cast(context.replica_id_in_sync_group + 1, tf.float32)
            return sum_in_packs([value * tf.ones(count) for count in (100, 200, 100)], size)

        step = tf.function(lambda function=replica_step: strategy.run(function))
        sums = [
            [float(tf.reduce_max(value)), float(tf.reduce_min(value)), int(tf.size(value))]
            for part in step()
            for value in strategy.experimental_local_results(part)
        ]
        found[str(size)] = {"sums": sums, "messages": messages(step.get_concrete_function())}
    return found


def norm_case():
    """Return inputs far from zero, whose halves have different means, and upstream gradients, gamma and beta."""
    generator = np.random.default_rng(3)
    inputs = generator.normal(3, 2, (4, 10, 12, 8))
    inputs[2:] += 5
    values = inputs, generator.normal(size=inputs.shape), generator.normal(size=8), generator.normal(size=8)
    return [value.astype(np.float32) for value in values]


def uneven():
    """Return the error message for three images on two devices."""
    try:
        trainer.prepare_strategy(Train(global_batch=3))
    except ConfigError as error:
        return str(error)
    return ""


def main(arguments):
    strategies, prepare = [], trainer.prepare_strategy

    def prepare_and_keep(*values):
        strategies.append(prepare(*values))
        return strategies[0]

    # Everything below uses the command's strategy: a second one would reuse the numbers of its collective operations.
    trainer.prepare_strategy = prepare_and_keep
    # The command divides the batch and writes its files whatever the model; the losses below are those of real ones.
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        build_small_networks(patch)
        status = train.main([*arguments, "--cpu-replicas", "2"])
    trainer.prepare_strategy = prepare
    by_name = {"one": tf.distribute.get_strategy(), "two": strategies[0]}
    cases = {"encnet": (encnet, LOSSES["valid"])} | {name: (shallow, loss) for name, loss in LOSSES.items()}
    print(
        json.dumps(
            {
                "status": status,
                "printed": printed.getvalue(),
                "uneven": uneven(),
                "skips": skips(strategies[0]),
                "norms": norm_results(strategies[0]),
                "walk": walk(strategies[0]),
                "packs": packs(strategies[0]),
                "losses": {
                    title: {name: losses(strategy, loss, build) for name, strategy in by_name.items()}
                    for title, (build, loss) in cases.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
