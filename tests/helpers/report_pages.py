"""Make up results for evaluation reports, and parse a written report."""

from html.parser import HTMLParser

import numpy as np

from kseg import config as configs
from kseg.evaluation import html_report, metrics

NAN = float("nan")
AWKWARD = "a<b>&\"'é\u4f60 $x_1$ --> <script>alert(1)</script>"
PALETTE = ((0, 0, 0), (200, 10, 10), (20, 200, 20))
PUBLISHED = {"config": "encnet_cityscapes:r18", "mIoU": 0.42, "mIoU_tta": 0.62, "source": "MMSegmentation 1.2.2"}
# The third class occurs neither in the labels nor in the predictions.
MATRIX = np.array([[80, 20, 0], [30, 70, 0], [0, 0, 0]])


class Page(HTMLParser):
    """The tags of a page with their attributes, its visible text, the texts of its charts, and its tables."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.tables, self.charts, self.open_tags = [], [], [], [], []
        self.source = path.read_bytes().decode("utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open_tags.append(tag)
        if tag == "svg":
            self.charts.append([])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if {"script", "style"} & set(self.open_tags):
            return
        if "svg" in self.open_tags:
            self.charts[-1] += [data] if "text" in self.open_tags else []
        else:
            self.texts.append(data)
            if {"td", "th"} & set(self.open_tags):
                self.tables[-1][-1][-1] += data.strip()

    def attributes(self, tag, name):
        return [attributes.get(name) for other, attributes in self.tags if other == tag]


def results_of(matrix, classes, **changes):
    """Return the content of a metrics.json for a confusion matrix, with some keys changed."""
    boundary = {
        "width": 0.005,
        "widths": list(metrics.BOUNDARY_WIDTHS),
        "mIoU": [0.21, 0.32, 0.4321, 0.54, 0.65],
        "pixels": [1, 2, 4, 8, 16],
        "classes": dict.fromkeys(classes, 0.25),
    }
    return {
        "split": "val",
        "images": 1234,
        **metrics.summarize(matrix, classes),
        "boundary": boundary,
        "boundary_mIoU": 0.4321,
        "published": None,
        "timing": {"seconds": 12.34, "images_per_second": 5.678, "devices": "2 x CPU"},
        "provenance": {
            "kseg": "0.1",
            "date": "2026-11-21T16:40:12+00:00",
            "dataset": "shapes",
            "git": None,
            "command": "python -m kseg.evaluate --out 'a & b'",
            "weights": "https://example.org/w.h5",
        },
        "config": configs.to_dict(configs.load("encnet_shapes")),
    } | changes


def sample(name="one", group="worst", miou=0.5, size=(30, 40), classes=3, seed=0):
    """Return a random sample whose first row of pixels is ignored."""
    random = np.random.default_rng(seed)
    label, prediction = random.integers(0, classes, (2, *size)).astype(np.uint8)
    label[0] = 255
    image = random.integers(0, 256, (*size, 3)).astype(np.uint8)
    return html_report.Sample(name, image, label, prediction, miou, group)


def written(directory, matrix=MATRIX, classes=("road", "car", "never"), palette=PALETTE, samples=(), **changes):
    """Write a report and return it parsed."""
    path = directory / "report.html"
    html_report.write_report(path, results_of(matrix, classes, **changes), matrix, samples, classes, palette)
    return Page(path)


def many_classes(classes=150):
    """Return a confusion matrix, names and a palette; class 7 occurs neither in labels nor in predictions."""
    random = np.random.default_rng(1)
    matrix = random.integers(0, 50, (classes, classes)) + np.diag(random.integers(0, 9000, classes))
    matrix[7] = matrix[:, 7] = 0
    return (
        matrix,
        tuple(f"class {index}" for index in range(classes)),
        tuple(tuple(color) for color in random.integers(0, 256, (classes, 3)).tolist()),
    )


def percent(value, digits=2):
    return "–" if value != value else f"{100 * value:.{digits}f}"
