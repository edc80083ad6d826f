"""Made-up results for reports, and a written page taken apart."""

from html.parser import HTMLParser

import numpy as np

from kseg import config as configs
from kseg.evaluation import confusion, html_report, metrics

NAN = float("nan")
AWKWARD = 'a<b>&"\'é\u4f60 $x_1$ --> <script>alert(1)</script>'
PALETTE = ((0, 0, 0), (200, 10, 10), (20, 200, 20))
PUBLISHED = {"config": "encnet_cityscapes:r18", "mIoU": 0.42, "mIoU_tta": 0.62, "source": "MMSegmentation 1.2.2"}
# The third class is in neither truth nor prediction.
HAND = np.array([[80, 20, 0], [30, 70, 0], [0, 0, 0]])


class Page(HTMLParser):
    """A page's tags with their attributes, its visible text, and its tables as rows of cell texts."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.tables, self.charts, self.inside = [], [], [], [], []
        self.source = path.read_bytes().decode("utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.inside.append(tag)
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
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if {"script", "style"} & set(self.inside):
            return
        if "svg" in self.inside:
            self.charts[-1] += [data] if "text" in self.inside else []
        else:
            self.texts.append(data)
            if {"td", "th"} & set(self.inside):
                self.tables[-1][-1][-1] += data.strip()

    def attributes(self, tag, name):
        return [attributes.get(name) for found, attributes in self.tags if found == tag]


def results_of(matrix, classes, **changes):
    edges = {"width": 0.005, "widths": list(confusion.BOUNDARY_WIDTHS), "mIoU": [0.21, 0.32, 0.4321, 0.54, 0.65],
             "pixels": [1, 2, 4, 8, 16], "classes": {name: 0.25 for name in classes}}
    return {"split": "val", "images": 1234, **metrics.summary(matrix, classes), "boundary": edges,
            "boundary_mIoU": 0.4321, "published": None,
            "timing": {"seconds": 12.34, "images_per_second": 5.678, "devices": "2 x CPU"},
            "provenance": {"kseg": "0.1", "date": "2026-11-21T16:40:12+00:00", "dataset": "shapes", "git": None,
                           "command": "python -m kseg.evaluate --out 'a & b'", "weights": "https://example.org/w.h5"},
            "config": configs.to_dict(configs.load("encnet_shapes"))} | changes


def sample(name="one", group="worst", miou=0.5, size=(30, 40), classes=3, seed=0):
    random = np.random.default_rng(seed)
    truth, prediction = random.integers(0, classes, (2, *size)).astype(np.uint8)
    truth[0] = 255
    return html_report.Sample(name, random.integers(0, 256, (*size, 3)).astype(np.uint8), truth, prediction, miou, group)


def written(directory, matrix=HAND, classes=("road", "car", "never"), palette=PALETTE, samples=(), **changes):
    path = directory / "report.html"
    html_report.write(path, results_of(matrix, classes, **changes), matrix, samples, classes, palette)
    return Page(path)


def many(classes=150):
    """Return a confusion matrix, names and colours; class 7 is in neither truth nor prediction."""
    random = np.random.default_rng(1)
    matrix = random.integers(0, 50, (classes, classes)) + np.diag(random.integers(0, 9000, classes))
    matrix[7] = matrix[:, 7] = 0
    return matrix, tuple(f"class {index}" for index in range(classes)), tuple(
        tuple(colour) for colour in random.integers(0, 256, (classes, 3)).tolist())


def percent(value, digits=2):
    return "–" if value != value else f"{100 * value:.{digits}f}"
