"""benchmarks.input_pipeline and measured_process: CPU time, ratios, missing peers and the measured pairs."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import input_pipeline, measured_process, street_pairs
from kseg.config.sections import Data
from kseg.datasets import registry
from kseg.datasets.class_names import CITYSCAPES_LABEL_IDS
from tests.helpers.running import ROOT

# A step has 4 items and uses 0.1 s of CPU time in a child process.
BURNING = """
import os, time
from benchmarks import measured_process

def burn():
    child = os.fork()
    if child == 0:
        while time.process_time() < 0.1:
            pass
        os._exit(0)
    os.waitpid(child, 0)
    return 4

measured_process.serve(lambda: ({"versions": {"burner": "1"}}, burn))
"""
MISSING = """
from benchmarks import measured_process

def build():
    import no_such_package

measured_process.serve(build)
"""


def run_script(tmp_path, text):
    script = tmp_path / "script.py"
    script.write_text(text)
    return measured_process.start([sys.executable, str(script)], {"PYTHONPATH": str(ROOT)})


def test_cpu_time_includes_child_processes_and_the_warm_up(tmp_path):
    process = run_script(tmp_path, BURNING)
    turn = process.work(warm_up=2, count=3)
    process.close()
    assert process.description == {"versions": {"burner": "1"}}
    # There are 20 items in 5 steps; the tolerance covers the clock's ticks of 10 ms.
    assert turn.cpu_seconds * 20 > 0.9 * 5 * 0.1
    assert 0 < turn.rate < 4 / 0.05
    assert turn.resident > 2**20


@pytest.mark.parametrize(
    "text, reason",
    [(MISSING, "No module named 'no_such_package'"), ("raise ValueError('no batch')", "ValueError: no batch")],
)
def test_a_process_that_cannot_work_reports_the_reason(tmp_path, text, reason):
    with pytest.raises(RuntimeError, match=reason):
        run_script(tmp_path, text)


def test_only_a_peer_may_be_unavailable(tmp_path, capsys):
    processes = {}
    for python in (None, str(tmp_path / "python")):
        start = input_pipeline.pipelines(tmp_path, python, 1)[input_pipeline.PEER]
        input_pipeline.add_pipeline(processes, input_pipeline.PEER, start)
    assert processes == {}
    assert capsys.readouterr().out.splitlines() == [
        "MMSegmentation, PNG: not measured: no --peer-python",
        f"MMSegmentation, PNG: not measured: {tmp_path / 'python'}: No such file or directory",
    ]

    def fail():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="kseg, PNG: no data"):
        input_pipeline.add_pipeline(processes, "kseg, PNG", fail)


def test_ratios_are_taken_within_rounds():
    rounds = {
        input_pipeline.PEER: [measured_process.Round(rate, 0.1, 1) for rate in (10, 20, 40)],
        "kseg": [measured_process.Round(*values) for values in ((30, 0.05, 5), (20, 0.1, 9), (80, 0.025, 7))],
    }
    results = input_pipeline.summarize(rounds, {input_pipeline.PEER: 3, "kseg": 11})
    assert results["kseg"]["ratios"] == [3, 1, 2]
    # The ratio of the medians, 30 / 20, would compare different rounds.
    assert (results["kseg"]["ratio"], results["kseg"]["rate"], results[input_pipeline.PEER]["rate"]) == (2, 30, 20)
    assert (results["kseg"]["cpu_ratio"], results["kseg"]["cpu_seconds"]) == (2, 0.05)
    assert (results["kseg"]["slowest"], results["kseg"]["fastest"]) == (20, 80)
    assert (results["kseg"]["resident"], results["kseg"]["peak"]) == (9, 11)
    assert [
        line.split()[-5:]
        for line in input_pipeline.table(rounds, {input_pipeline.PEER: 3, "kseg": 2**30}).splitlines()[2:]
    ] == [["2.00", "50.0", "2.00", "0", "1024"]]
    del rounds[input_pipeline.PEER]
    alone = input_pipeline.summarize(rounds, {"kseg": 11})["kseg"]
    assert alone["ratio"] is None and alone["cpu_ratio"] is None and alone["rate"] == 30
    assert input_pipeline.table(rounds, {"kseg": 0}).splitlines()[1].split()[-3:] == ["50.0", "0", "0"]


def test_drawn_images_compress_like_photographs_and_have_all_classes():
    image, label = street_pairs.draw_pair()
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    assert 2e6 < file.tell() < 3e6
    assert image.shape == (1024, 2048, 3) and label.shape == (1024, 2048)
    assert set(np.unique(label)) == {*CITYSCAPES_LABEL_IDS, 4}


def test_the_tree_has_eight_different_pairs_for_both_systems(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    label = np.random.default_rng(1).integers(0, 34, (16, 32), np.uint8)
    street_pairs.write_tree(tmp_path, image, label)
    split = registry.open_split(Data(name="cityscapes", directory=str(tmp_path)), "train")
    assert len(split.names) == 8
    assert len({Path(name).read_bytes() for name in split.names}) == 8
    for image_name, label_name in zip(split.names, split.label_names):
        pixels, ids = np.array(Image.open(image_name)), np.array(Image.open(label_name))
        # Image and label move together: the ids of the colors are unchanged.
        id_by_color = {tuple(color): value for color, value in zip(image.reshape(-1, 3).tolist(), label.ravel())}
        assert [id_by_color[tuple(color)] for color in pixels.reshape(-1, 3).tolist()] == ids.ravel().tolist()
        train_ids = np.array(Image.open(label_name.replace("labelIds", "labelTrainIds")))
        expected = [
            CITYSCAPES_LABEL_IDS.index(value) if value in CITYSCAPES_LABEL_IDS else 255 for value in ids.ravel()
        ]
        assert train_ids.ravel().tolist() == expected


def test_an_image_as_label_is_refused(tmp_path):
    Image.new("RGB", (8, 4)).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="image.png is uint8"):
        street_pairs.read_pair(tmp_path / "image.png", tmp_path / "image.png")
