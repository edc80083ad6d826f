"""How fast training would be on 1 to 1024 GPUs, by a cost model; and the same model checked on this machine's cores.

    python -m benchmarks.scaling --measure FILE
    python -m benchmarks.scaling --predict FILE
    python -m benchmarks.scaling --predict --heads encnet --seconds-per-image encnet=0.011 --between-gbytes 12.5

--measure trains with 1, 2 and 3 processes here, times all-reduces between them, and compares what the model says with
what they took. --predict prints that again from FILE, if one is named, and what the model says of a cluster that the
flags describe. scaling.md beside this file explains the model and where its figures come from.
"""

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import scaling_model
from benchmarks.heads import ROOT, processor
from benchmarks.scaling_model import Cluster, Link, Rhythm, Workload

HEADS = ("encnet", "deeplabv3plus")
CLASSES, CROP = 19, (512, 1024)
# The images that each process takes in a step, by the number of processes.
SHARES = {1: "2,3", 2: "2,3", 3: "2"}
GPUS = tuple(2**power for power in range(11))
# Forward, and gradients of inputs and of weights.
PASSES = 3
# Cityscapes' 500 of val have four crops' pixels each, of which only the forward pass is computed.
RHYTHM = Rhythm(checkpoint_every=1_000, validate_every=4_000, validation_images=500 * 4 / PASSES)
MICRO, GIGA = 1e-6, 1e9


@dataclass(frozen=True)
class Facts:
    """What a model is to a network of GPUs: bytes of gradients and of a checkpoint, channels of its batch
    normalisations, multiply-adds of an image's forward pass, and numbers that the normalisations look at.
    """

    gradients: int
    state: int
    norms: tuple[int, ...]
    multiply_adds: int
    normalised: int


def main() -> int:
    arguments = parse(sys.argv[1:])
    if arguments.measure:
        try:
            found = measure(arguments)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(checked(found))
        return 0
    if isinstance(arguments.predict, Path):
        print(checked(json.loads(arguments.predict.read_text(encoding="utf-8"))), end="\n\n")
    print(predictions(arguments))
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicts training on many GPUs; checks that on this machine.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--measure", type=Path, metavar="FILE", help="measure with 1, 2 and 3 processes here; JSON")
    what.add_argument("--predict", type=Path, nargs="?", const=True, metavar="FILE",
                      help="predict a cluster; with FILE, which --measure wrote, print the check of the model too")
    parser.add_argument("--heads", default=",".join(HEADS), metavar="NAME,...", help=f"default {','.join(HEADS)}")
    parser.add_argument("--crop", type=int, default=128, help="height and width of the crops measured (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="steps and all-reduces timed of each kind (default 5)")
    parser.add_argument("--largest", type=int, default=10**8, help="bytes of the largest message timed (default 1e8)")
    cluster = parser.add_argument_group("the cluster (defaults: scaling.md)")
    cluster.add_argument("--seconds-per-image", default="", metavar="HEAD=S,...",
                         help="of a training step on one GPU, by head; others as --teraflops says")
    for name, default, text in (
            ("teraflops", 250.0, "what a GPU reaches in training, 1e12 operations/s, a multiply-add being two"),
            ("fixed-ms", 2.0, "of a step, besides its images"),
            ("inside-gbytes", 450.0, "GB/s of a GPU to the others of its host"),
            ("inside-us", 2.0, "latency of that"), ("between-gbytes", 400.0, "GB/s of a host to the others"),
            ("between-us", 5.0, "latency of that"), ("launch-us", 20.0, "of each collective, however small"),
            ("cores", 14.0, "CPU cores for each GPU"), ("images-per-core", 18.8, "read by a core in a second"),
            ("storage-gbytes", 1.0, "GB/s of checkpoints"),
            ("overlap", 0.0, "the part of the backward pass in which gradients are on their way")):
        cluster.add_argument(f"--{name}", type=float, default=default, metavar="X",
                             help=f"{text} (default {default:g})")
    cluster.add_argument("--gpus-per-host", type=int, default=8, metavar="N", help="default 8")
    arguments = parser.parse_args(words)
    arguments.heads = arguments.heads.split(",")
    try:
        arguments.seconds_per_image = {name: float(value) for name, value in (
            each.split("=") for each in arguments.seconds_per_image.split(",") if each)}
    except ValueError:
        parser.error(f"--seconds-per-image {arguments.seconds_per_image}: HEAD=SECONDS, with commas between several")
    if unknown := set(arguments.seconds_per_image) - set(arguments.heads):
        parser.error(f"--seconds-per-image names {', '.join(sorted(unknown))}, which --heads does not")
    return arguments


def measure(arguments: argparse.Namespace) -> dict:
    """Train with 1, 2 and 3 processes, write their figures and return them; raises RuntimeError where they fail."""
    found = {"date": datetime.date.today().isoformat(), "machine": processor(), "cores": os.cpu_count(),
             "crop": arguments.crop, "runs": []}
    # One process uses all cores here, as each of several does.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    for processes, shares in SHARES.items():
        with tempfile.TemporaryDirectory() as directory:
            out, load = Path(directory) / "figures", os.getloadavg()[0]
            done = subprocess.run(
                [sys.executable, "-m", "kseg.launch", "--local", str(processes), "--", "-m", "benchmarks.scaling_process",
                 str(out), ",".join(arguments.heads), str(arguments.crop), shares, str(arguments.rounds),
                 str(arguments.largest)], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{processes} processes ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            hosts = [json.loads(Path(f"{out}.{place}").read_text()) for place in range(processes)]
        found["runs"].append({"processes": processes, "load": load, "load_after": os.getloadavg()[0], "hosts": hosts})
        arguments.measure.write_text(json.dumps(found) + "\n", encoding="utf-8")
        print(f"measured {processes} process{'es' * (processes > 1)}, load {load:.1f} before", flush=True)
    return found


def checked(found: dict) -> str:
    """Return what was measured, and what the model makes of it, as tables in Markdown."""
    runs = {run["processes"]: run for run in found["runs"]}
    crop, loads = found["crop"], ", ".join(f"{run['load']:.1f}" for run in found["runs"])
    lines = [f"{found['date']}, {found['machine']}, {found['cores']} cores, crops of {crop}x{crop}; load before 1, 2 "
             f"and 3 processes: {loads}", "",
             "| one process | images | s/step (min..max) | CPU s/step | with the norm of several | CPU s/step |",
             "|---|--:|--:|--:|--:|--:|"]
    alone = {(each["head"], each["share"], each["several"]): each for each in runs[1]["hosts"][0]["steps"]}
    for (head, share, normed), plain in alone.items():
        if not normed:
            other = alone[head, share, True]
            lines.append(f"| {head} | {share} | {spread(plain['wall'])} | {statistics.median(plain['cpu']):.3f} "
                         f"| {spread(other['wall'])} | {statistics.median(other['cpu']):.3f} |")
    several = {processes: run for processes, run in runs.items() if processes > 1}
    fits = {processes: scaling_model.fit(*taken(run, "wall")) for processes, run in several.items()}
    lines += ["", "| all-reduce | " + " | ".join(f"{processes} processes, ms | by the fit" for processes in several)
              + " |", "|--:|" + "--:|" * 2 * len(several)]
    for index, message in enumerate(runs[2]["hosts"][0]["messages"]):
        cells = [f"{1000 * statistics.median(run['hosts'][0]['messages'][index]['wall']):.2f} "
                 f"| {1000 * (fits[processes][0] + fits[processes][1] * message['bytes']):.2f}"
                 for processes, run in several.items()]
        lines.append(f"| {message['bytes'] / 1000:,.0f} KB | " + " | ".join(cells) + " |")
    for processes, (constant, slope) in fits.items():
        hops, sent = 2 * (processes - 1), 2 * (processes - 1) / processes
        rate = sent / slope / 1e6 if slope else math.inf
        lines.append(f"\n{processes} processes: {1000 * constant:.2f} ms + {slope * 1e9:.2f} ms for each MB; as a "
                     f"ring, {1000 * constant / hops:.2f} ms a hop and {rate:.0f} MB/s")
    lines += ["", "| processes | head | images each | all-reduces | computing | small messages | gradients | predicted "
              "s/step | measured s/step (min..max) | error | CPU s of a process, predicted | measured | error |",
              "|--:|---|" + "--:|" * 11]
    for processes, run in several.items():
        for each in run["hosts"][0]["steps"]:
            single = alone[each["head"], each["share"], True]
            computing = scaling_model.shared_compute(statistics.median(single["wall"]), statistics.median(single["cpu"]),
                                             processes, found["cores"])
            small, large = of_messages(each["messages"], taken(run, "wall"))
            predicted, measured = computing + small + large, statistics.median(each["wall"])
            spent = statistics.median(single["cpu"]) + sum(of_messages(each["messages"], taken(run, "cpu")))
            cpu = statistics.median(each["cpu"])
            lines.append(f"| {processes} | {each['head']} | {each['share']} | {len(each['messages'])} "
                         f"| {computing:.3f} | {small:.3f} | {large:.3f} | {predicted:.3f} | {spread(each['wall'])} "
                         f"| {100 * (predicted / measured - 1):+.0f} % | {spent:.3f} | {cpu:.3f} "
                         f"| {100 * (spent / cpu - 1):+.0f} % |")
    return "\n".join(lines)


def taken(run: dict, kind: str) -> tuple[list[float], list[float]]:
    """Return the bytes of the all-reduces of a run, and their median seconds of "wall" time or "cpu"."""
    messages = run["hosts"][0]["messages"]
    return [each["bytes"] for each in messages], [statistics.median(each[kind]) for each in messages]


def of_messages(messages: list[int], measured: tuple[list[float], list[float]]) -> tuple[float, float]:
    """Return the seconds of a step's small all-reduces and that of its gradients, the largest."""
    *small, large = sorted(messages)
    return sum(scaling_model.between(*measured, size) for size in small), scaling_model.between(*measured, large)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}..{max(values):.3f})"


def facts(network) -> Facts:
    """Return the facts of a built Keras model whose sizes are all known."""
    from kseg.models.norms import BatchNormalization

    norms = [layer for layer in network.layers if isinstance(layer, BatchNormalization)]
    multiply_adds = sum(math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
                        for layer in network.layers if hasattr(layer, "kernel"))
    trainable, fixed = (scaling_model.FLOAT * sum(math.prod(each.shape) for each in weights)
                        for weights in (network.trainable_variables, network.non_trainable_variables))
    # The momentum of each weight is as large as the weight.
    return Facts(trainable, 2 * trainable + fixed, tuple(layer.gamma.shape[0] for layer in norms), multiply_adds,
                 sum(math.prod(layer.output.shape[1:]) for layer in norms))


def cluster_of(arguments: argparse.Namespace) -> Cluster:
    """Return the cluster that the flags describe."""
    return Cluster(Link(MICRO * arguments.inside_us, GIGA * arguments.inside_gbytes),
                   Link(MICRO * arguments.between_us, GIGA * arguments.between_gbytes), arguments.gpus_per_host,
                   MICRO * arguments.launch_us, arguments.cores * arguments.images_per_core,
                   GIGA * arguments.storage_gbytes)


def workload(head: str, known: Facts, arguments: argparse.Namespace) -> Workload:
    """Return the training of a head on the GPUs that the flags describe."""
    image = arguments.seconds_per_image.get(head, 2 * PASSES * known.multiply_adds / arguments.teraflops / 1e12)
    return Workload(known.gradients, known.norms, known.state, image, arguments.fixed_ms / 1000, arguments.overlap)


def predictions(arguments: argparse.Namespace) -> str:
    """Return what the model says of a cluster, for each head, as tables in Markdown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from kseg import models
    from kseg.config import Model

    cluster, texts = cluster_of(arguments), []
    for head in arguments.heads:
        known = facts(models.build(Model(head=head), CLASSES, CROP))
        work = workload(head, known, arguments)
        texts.append(
            f"{head}: {known.gradients / 1e6:.1f} MB of gradients, {len(known.norms)} batch normalisations of "
            f"{known.normalised / 1e6:.0f} M numbers an image, checkpoints of {known.state / 1e6:.0f} MB, "
            f"{known.multiply_adds / 1e9:.1f} G multiply-adds an image; "
            f"{1000 * work.image:.2f} ms of computing an image")
        texts.append("2 images a GPU:\n\n" + table(work, cluster, {gpus: 2.0 for gpus in GPUS}))
        for batch in (8, 16):
            texts.append(f"Global batch {batch}:\n\n" + table(
                work, cluster, {gpus: batch / gpus for gpus in GPUS if gpus <= batch}))
        texts.append("Images/s at 2 images a GPU, one assumption changed:\n\n" + sensitivity(work, cluster))
    return "\n\n".join(texts)


def table(work: Workload, cluster: Cluster, shares: dict[int, float]) -> str:
    """Return a line for each number of GPUs; efficiency is images/s beside so many times those of the first line."""
    lines = ["| GPUs | global batch | computing, ms | norms | gradients | reading | steps/s | images/s | efficiency "
             "| most time |", "|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"]
    first = None
    for gpus, share in shares.items():
        step = scaling_model.step(work, cluster, RHYTHM, gpus, share)
        images = gpus * share / step.seconds
        first = first or images / gpus
        values = (1000 * each for each in (step.compute, step.norms, step.gradients, step.reading))
        lines.append(f"| {gpus} | {gpus * share:.0f} | " + " | ".join(f"{each:.1f}" for each in values)
                     + f" | {1 / step.seconds:.2f} | {images:,.0f} | {100 * images / gpus / first:.0f} % "
                     f"| {step.limit} |")
    return "\n".join(lines)


def sensitivity(work: Workload, cluster: Cluster) -> str:
    """Return images/s with one assumption changed at a time."""
    slow = Link(6 * cluster.between.latency, 12.5 * GIGA)
    changed = {
        "as assumed": (work, cluster),
        "GPUs twice as fast": (replace(work, image=work.image / 2), cluster),
        "one 100 Gbit/s Ethernet port a host, six times the latency": (work, replace(cluster, between=slow)),
        "a collective's launch twice as long": (work, replace(cluster, launch=2 * cluster.launch)),
        "four all-reduces a norm instead of two": (replace(work, norm_messages=4 * (scaling_model.FLOAT,)), cluster),
        "norms not synchronised": (replace(work, norm_messages=()), cluster),
        "gradients on their way during all of the backward pass": (replace(work, overlap=1.0), cluster),
        "a quarter of the cores": (work, replace(cluster, input_rate=cluster.input_rate / 4))}
    counts = (1, 8, 64, 1024)
    lines = ["| | " + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in counts) + " |",
             "|---|" + "--:|" * len(counts)]
    for name, (own, other) in changed.items():
        rates = [2 * gpus / scaling_model.step(own, other, RHYTHM, gpus, 2).seconds for gpus in counts]
        lines.append(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
