"""kseg.evaluation.report_graphics: lengths, cells and texts of the charts, read back from their SVG."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from kseg.evaluation import report_graphics

NAN = float("nan")


def test_bars_are_as_long_as_their_values():
    chart, = report_graphics.bars(["half", "whole", "nothing"], [0.5, 1.0, NAN], NAN)
    bars = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--accent\)"', chart)
    spans = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", bar)] for bar in bars]
    half, whole, nothing = (max(span) - min(span) for span in spans)
    assert half == pytest.approx(whole / 2, abs=1e-3) and whole > 200 and nothing == 0


def test_charts_take_their_colours_from_the_page():
    charts = [*report_graphics.bars(["a"], [0.5], 0.5), report_graphics.heat_map(np.eye(1), ["a"]),
              report_graphics.curve([0.1, 0.2], [0.5, None], ["1", "2"], 0.1, 0.7)]
    for chart in charts:
        text = re.sub(r"data:image/png;base64,[^\"]*", "", chart)
        assert set(re.findall(r"#[0-9a-f]{6}", text)) <= set(), text
        assert "var(--ink)" in text and "xmlns" not in text


def test_heat_map_has_a_cell_for_each_pair():
    shares = np.array([[0.75, 0.25, 0.0], [0.004, 0.996, 0.0], [NAN, NAN, NAN]])
    chart = report_graphics.heat_map(shares, ["a", "b", "c"])
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,\s*([^\"]+)", chart).group(1)))))
    assert picture.shape == (3, 3, 4)
    right, wrong = [59, 130, 246], [229, 75, 46]
    assert picture[0, 0].tolist() == [*right, round(0.75 * 0.75 * 255)]
    assert picture[0, 1].tolist() == [*wrong, round(0.9 * 0.5 * 255)]
    assert picture[0, 2, 3] == 0 and picture[2, :, 3].tolist() == [0, 0, 0]
    # Whole percent from 1 on, so 0.4 % has no number.
    assert re.findall(r">(\d+)</text>", chart) == ["75", "25", "100"]
