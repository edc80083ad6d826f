"""Run the notebooks in a kernel, with trainings of a few steps, and compare them with their texts."""

import socket
from pathlib import Path

import pytest

from tests.helpers.running import ROOT

jupytext = pytest.importorskip("jupytext", reason="needs the extra [notebooks]")
nbclient = pytest.importorskip("nbclient", reason="needs the extra [notebooks]")

TEXTS = sorted((ROOT / "notebooks").glob("*.md"))
# A network that takes a second for a step.
SMALL = {
    "model.width": 8,
    "model.channels": 16,
    "model.auxiliary_channels": 8,
    "train.steps": 4,
    "train.global_batch": 2,
    "train.validate_every": 4,
    "augment.crop": (64, 64),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cells(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def run(text: Path, directory: Path) -> dict[str, list]:
    """Run a notebook with small settings in a directory, and return {source of a cell: its outputs}."""
    notebook = jupytext.read(text)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += f"\nchanges |= {SMALL}\nport = {free_port()}\n"
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": directory}}
    ).execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(outputs: list) -> str:
    """Return the HTML that a cell shows."""
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def printed(outputs: list) -> str:
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_a_notebook_and_its_text_have_the_same_cells(text):
    notebook = jupytext.read(text.with_suffix(".ipynb"))
    assert cells(notebook) == cells(jupytext.read(text))
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_the_first_model_shows_scores_and_a_picture(tmp_path):
    outputs = run(ROOT / "notebooks/first_model.md", tmp_path)
    (scores,) = (shown(found) for source, found in outputs.items() if "evaluate" in source)
    assert "<table" in scores and "mIoU" in scores
    (picture,) = (shown(found) for source, found in outputs.items() if "run.predict" in source)
    assert "data:image/png;base64," in picture
    assert (tmp_path / "first-model/run/val/report.html").is_file()


def test_labelme_polygons_become_a_model(tmp_path):
    outputs = run(ROOT / "notebooks/own_images.md", tmp_path)
    names = [line.split()[1] for line in (tmp_path / "own-images/data/classes.txt").read_text().splitlines()]
    assert names == ["background", "door"]
    assert any("data:image/png;base64," in shown(found) for found in outputs.values())


def test_a_server_answers_like_the_saved_model(tmp_path):
    outputs = run(ROOT / "notebooks/checkpoint_to_server.md", tmp_path)
    (comparison,) = (printed(found) for source, found in outputs.items() if "client.segment" in source)
    assert comparison.count("of the pixels equal") == 4
