"""Trains on two virtual devices, by the command and step by step, and prints what it found as JSON.

Run in a process of its own, since virtual devices have to be made before the first tensor; the arguments are those of
kseg.train:
python -m tests.helpers.replica_runs --config encnet_shapes --workdir DIR
"""

import contextlib
import io
import json
import sys

import keras
import numpy as np
import tensorflow as tf

from kseg import train
from kseg.config import Config, Loss, Model, Train
from kseg.errors import ConfigError
from kseg.models import norms
from kseg.training import trainer
from kseg.training.optimizers import MomentumSGD
from kseg.training.schedule import schedule
from kseg.training.step import Steps, all_or_none

STEPS, BATCH, CLASSES = 20, 4, 5
# About half of the 4 * 64 * 64 pixels are labelled at most, nearly all of them on one replica; 4 * 300 are the fewest
# that mining keeps.
LOSSES = {
    "valid": Loss(average="valid"),
    "all, mined below a threshold": Loss(average="all", ohem_kept=300, ohem_threshold=0.3),
    "kept, weighted and mined": Loss(average="kept", class_weights=(0.5, 1.0, 2.0, 0.1, 1.5), ohem_kept=300),
}


def batches(step):
    """A batch whose second half is mostly void, at odd steps wholly: means over each half are not the mean over all."""
    generator = np.random.default_rng(step)
    labels = generator.integers(0, CLASSES, (BATCH, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    images = generator.normal(0, 0.3, (BATCH, 64, 64, 3)) + labels[..., None] - 2
    labels[BATCH // 2:, 0 if step % 2 else 8:] = 255
    labels[0, :3] = 255
    return {"image": images.astype(np.float32), "label": labels, "index": np.arange(BATCH)}


def encnet(config):
    return trainer.build(config, CLASSES, print)[:2]


def shallow(config):
    """All outputs of EncNet, from one layer each: every loss is a graph of its own, and this one is made quickly."""
    images = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(8, 9, strides=8, padding="same", activation="relu", name="features")(images)
    outputs = {name: keras.layers.Conv2D(CLASSES, 1, name=name)(features) for name in ("main", "aux")}
    mean = keras.layers.GlobalAveragePooling2D(name="mean")(features)
    model = keras.Model(images, outputs | {"se": keras.layers.Dense(CLASSES, name="se")(mean)})
    optimizer = MomentumSGD(schedule(config.train), config.train.momentum, config.train.weight_decay)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def losses(strategy, loss, build):
    config = Config(model=Model(backbone="resnet18", width=8, channels=16, auxiliary_channels=8),
                    loss=loss, train=Train(global_batch=BATCH, steps=STEPS, learning_rate=0.02))
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model, optimizer = build(config)
    step = Steps(model, optimizer, config, strategy).one
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    data = tf.data.Dataset.from_tensor_slices(
        {name: np.concatenate([batches(index)[name] for index in range(STEPS)]) for name in ("image", "label", "index")}
    ).batch(BATCH).with_options(options)
    return [float(step(batch)["loss"]) for batch in strategy.experimental_distribute_dataset(data)]


def skips(strategy):
    """Apply gradients one of which may not be finite, and return every replica's state."""
    with strategy.scope():
        variables = [keras.Variable(np.ones(2, np.float32), name="first"), keras.Variable(2.0, name="second")]
        optimizer = MomentumSGD(0.1, skip_nonfinite=True)
        optimizer.build(variables)

    @tf.function
    def step(odd):
        def replica_step():
            context = tf.distribute.get_replica_context()
            # The second replica's gradient of the first variable alone.
            first = tf.where(tf.equal(context.replica_id_in_sync_group, 1), tf.stack([1.0, odd]), tf.ones(2))
            gradients, skipped = all_or_none([first, tf.constant(1.0)])
            optimizer.apply(gradients, variables)
            return skipped

        return strategy.reduce("mean", strategy.run(replica_step), axis=None)

    found = {}
    for name, odd in (("infinite", np.inf), ("nan", np.nan), ("finite", 1.0)):
        skipped = float(step(tf.constant(odd, tf.float32)))
        state = {"first": variables[0], "second": variables[1], "first velocity": optimizer.velocities[0],
                 "second velocity": optimizer.velocities[1]}
        found[name] = {key: [value.numpy().tolist() for value in strategy.experimental_local_results(variable.value)]
                       for key, variable in state.items()} | {"skipped": skipped}
    return found


def normalised(strategy):
    """Return what each kind of norm makes of a batch whose halves differ, how, and the messages that it took."""
    inputs, upstream, gamma, beta = norm_case()

    def replica_step(normalise):
        context = tf.distribute.get_replica_context()
        half = len(inputs) // 2 * context.replica_id_in_sync_group
        share, above = (tf.constant(values)[half:half + len(inputs) // 2] for values in (inputs, upstream))
        scale, offset = tf.constant(gamma), tf.constant(beta)
        with tf.GradientTape() as tape:
            tape.watch((share, scale, offset))
            outputs, mean, variance = normalise(share, scale, offset, 1e-5, context)
            loss = tf.reduce_sum(outputs * above)
        return outputs, mean, variance, *tape.gradient(loss, (share, scale, offset))

    found = {}
    for form in (norms.fused_training, norms.normalise_training, norms.exact_training):
        step = tf.function(lambda form=form: strategy.run(replica_step, (form,)))
        results = [[value.numpy().tolist() for value in strategy.experimental_local_results(part)] for part in step()]
        graph = step.get_concrete_function().graph.as_graph_def()
        kinds = [node.op for function in graph.library.function for node in function.node_def]
        kinds += [node.op for node in graph.node]
        found[form.__name__] = {"results": results, "messages": len([
            kind for kind in kinds if kind.startswith("CollectiveReduce")]) // 2}
    return found


def norm_case():
    """Return inputs far from zero, whose halves have other means, upstream gradients, gamma and beta."""
    generator = np.random.default_rng(3)
    inputs = generator.normal(3, 2, (4, 10, 12, 8))
    inputs[2:] += 5
    values = inputs, generator.normal(size=inputs.shape), generator.normal(size=8), generator.normal(size=8)
    return [value.astype(np.float32) for value in values]


def uneven():
    """Return what is said of three pictures for two devices."""
    try:
        trainer.prepare(Train(global_batch=3))
    except ConfigError as error:
        return str(error)
    return ""


def main(arguments):
    made, prepare = [], trainer.prepare

    def prepare_and_keep(*values):
        made.append(prepare(*values))
        return made[0]

    # All that follows shares the command's strategy: a second one would number its collective operations as the first.
    trainer.prepare = prepare_and_keep
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = train.main([*arguments, "--cpu-replicas", "2"])
    trainer.prepare = prepare
    strategies = {"one": tf.distribute.get_strategy(), "two": made[0]}
    cases = {"encnet": (encnet, LOSSES["valid"])} | {name: (shallow, loss) for name, loss in LOSSES.items()}
    print(json.dumps({
        "status": status, "printed": printed.getvalue(), "uneven": uneven(), "skips": skips(made[0]),
        "norms": normalised(made[0]),
        "losses": {title: {name: losses(strategy, loss, build) for name, strategy in strategies.items()}
                   for title, (build, loss) in cases.items()}}))


if __name__ == "__main__":
    main(sys.argv[1:])
