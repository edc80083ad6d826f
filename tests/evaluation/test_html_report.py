"""The report contains the numbers it was given, shows names as text, and refers to nothing outside the page."""

import re

import numpy as np
import pytest

from kseg import config as configs
from kseg.errors import UserError
from kseg.evaluation import html_report
from tests.helpers.report_pages import (
    AWKWARD,
    MATRIX,
    NAN,
    PALETTE,
    PUBLISHED,
    Page,
    many_classes,
    percent,
    results_of,
    sample,
    written,
)


def test_headline_without_published_scores(tmp_path):
    page = written(tmp_path)
    assert "encnet_shapes on shapes val" in page.text
    assert "1,234 images, 200 labeled pixels, 3 classes, single scale, 2026-11-21 16:40 UTC" in page.text
    # IoU is 80 / 130 and 70 / 120, Dice 160 / 210 and 140 / 190; both classes have half of the pixels.
    assert page.tables[0] == [
        ["Percent", "This run"],
        ["mIoU", "59.94"],
        ["aAcc", "75.00"],
        ["mAcc", "75.00"],
        ["fwIoU", "59.94"],
        ["boundary mIoU", "43.21"],
        ["mDice", "74.94"],
    ]
    assert "ublished" not in page.text


@pytest.mark.parametrize(
    "evaluate, published, row, protocol",
    [
        ({}, PUBLISHED, ["42.00", "+17.94"], "single scale"),
        ({}, PUBLISHED | {"mIoU": 80 / 130 / 2 + 70 / 120 / 2}, ["59.94", "+0.00"], "single scale"),
        ({"flip": True}, PUBLISHED, ["62.00", "−2.06"], "mirrored images"),
        ({"scales": [0.5, 1.0], "flip": True}, PUBLISHED, ["62.00", "−2.06"], "over scales 0.5, 1 and mirrored images"),
        ({"scales": [0.5, 1.0]}, PUBLISHED | {"mIoU_tta": None}, ["–", "–"], "No mIoU was published"),
    ],
)
def test_headline_with_the_published_score_of_the_protocol(tmp_path, evaluate, published, row, protocol):
    config = configs.to_dict(configs.load("encnet_shapes"))
    config["evaluate"] |= evaluate
    page = written(tmp_path, published=published, config=config)
    assert page.tables[0][0][2:] == ["Published", "Difference"]
    assert page.tables[0][1:3] == [["mIoU", "59.94", *row], ["aAcc", "75.00", "–", "–"]]
    assert protocol in page.text
    assert "encnet_cityscapes:r18, MMSegmentation 1.2.2" in page.text


@pytest.mark.parametrize("classes", [3, 19, 150])
def test_class_table_and_bars_contain_every_class(tmp_path, classes):
    matrix, names, palette = (MATRIX, ("road", "car", "never"), PALETTE) if classes == 3 else many_classes(classes)
    page = written(tmp_path, matrix, names, palette)
    hits, labels, predictions = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        columns = (
            hits / (labels + predictions - hits),
            hits / labels,
            2 * hits / (labels + predictions),
            hits / predictions,
            hits / labels,
            np.full(classes, 0.25),
            labels / matrix.sum(),
        )
    assert page.tables[1][0][:7] == ["Class", "IoU", "Accuracy", "Dice", "Precision", "Recall", "Boundary IoU"]
    assert page.tables[1][1:] == [
        [name, *(percent(column[index]) for column in columns)] for index, name in enumerate(names)
    ]
    charts = page.charts[: {3: 1, 19: 2, 150: 3}[classes]]
    texts = [text for chart in charts for text in chart if not re.fullmatch("0|25|50|75|100", text)]
    iou = columns[0]
    order = sorted(range(classes), key=lambda index: (np.isnan(iou[index]), iou[index], index))
    assert [text for text in texts if text in names] == [names[index] for index in order]
    assert [text for text in texts if text not in names] == [percent(iou[index], 1) for index in order]


def test_confusions_are_fractions_of_the_ground_truth(tmp_path):
    matrix = np.array([[800, 123, 77], [5, 95, 0], [0, 0, 50]])
    page = written(tmp_path, matrix, ("sidewalk", "road", "sky"))
    confusions = re.findall(r"(\w+) predicted as (\w+): ([\d.]+)% of (\w+) \(([\d,]+) pixels\)", page.text)
    assert confusions == [
        ("sidewalk", "road", "12.3", "sidewalk", "123"),
        ("sidewalk", "sky", "7.7", "sidewalk", "77"),
        ("road", "sidewalk", "5.0", "road", "5"),
    ]
    assert "The map shows the" not in page.text


def test_a_perfect_prediction_has_no_confusions(tmp_path):
    assert "All pixels are correct." in written(tmp_path, np.diag([3, 4, 5])).text


def test_the_heat_map_of_many_classes_shows_the_most_confused(tmp_path):
    matrix, names, palette = many_classes()
    page = written(tmp_path, matrix, names, palette)
    assert "The map shows the 25 of 150 classes" in page.text
    assert len(re.findall(" predicted as ", page.text)) == 10
    wrong = [sum(int(matrix[a, b]) + int(matrix[b, a]) for b in range(150) if b != a) for a in range(150)]
    most = sorted(sorted(range(150), key=lambda a: -wrong[a])[:25])
    shown = [text for text in page.charts[3] if text in names]
    assert shown == [names[index] for index in most] * 2


def test_samples_by_group(tmp_path):
    one, two = sample("first", "worst", 0.1234), sample("second", "typical", NAN, (700, 1000), seed=1)
    page = written(tmp_path, samples=[one, two])
    wrong = np.mean((one.label != one.prediction)[one.label != 255])
    assert f"Worst images first mIoU 12.34 {percent(wrong, 1)}% of pixels wrong 40 x 30" in page.text
    assert "Typical images, around the median mIoU second mIoU – " in page.text
    assert page.attributes("img", "alt") == [
        f"{kind} of {name}"
        for name in ("first", "second")
        for kind in ("image", "ground truth", "prediction", "errors")
    ]
    assert page.attributes("img", "width") == ["40"] * 4 + ["480"] * 4
    assert page.attributes("img", "height") == ["30"] * 4 + ["336"] * 4
    types = [uri[:15] for uri in page.attributes("img", "src")]
    assert types == ["data:image/jpeg", "data:image/png;", "data:image/png;", "data:image/jpeg"] * 2


def test_an_image_without_labels_has_no_fraction_of_wrong_pixels(tmp_path):
    blank = sample("blank")
    blank.label[:] = 255
    assert "–% of pixels wrong" in written(tmp_path, samples=[blank]).text


def test_boundary_widths_in_percent_and_in_pixels_of_the_median_image(tmp_path):
    samples = [sample(size=size, seed=seed) for seed, size in enumerate([(30, 40), (300, 400), (600, 800)])]
    page = written(tmp_path, samples=samples)
    assert "for an image of 400 x 300" in page.text
    # Of the diagonal, 500 pixels, the widths are 0.625, 1.25, 2.5, 5 and 10: at least 1, rounded half to even.
    assert [row[:4] for row in page.tables[2][1:]] == [
        ["0.125%", "1", "21.00", "0.5"],
        ["0.25%", "1", "32.00", "1.0"],
        ["0.5%", "2", "43.21", "2.0"],
        ["1%", "5", "54.00", "4.0"],
        ["2%", "10", "65.00", "8.0"],
    ]
    assert {"21.0", "32.0", "43.2", "54.0", "65.0", "all pixels 59.9", "0.125%", "5 px"} <= set(page.charts[-1])


def test_without_samples(tmp_path):
    page = written(tmp_path)
    assert len(page.tables[2][0]) == 3 and page.tables[2][1][0] == "0.125%"
    assert "Worst images" not in page.text and "img" not in [tag for tag, _ in page.tags]


def test_timing_provenance_and_config(tmp_path):
    page = written(tmp_path)
    timing, provenance, settings = (dict(rows) for rows in page.tables[3:])
    assert timing == {"Images": "1,234", "Seconds": "12.3", "Images per second": "5.68", "Devices": "2 x CPU"}
    assert provenance == {
        "kseg": "0.1",
        "date": "2026-11-21T16:40:12+00:00",
        "dataset": "shapes",
        "git": "–",
        "command": "python -m kseg.evaluate --out 'a & b'",
        "weights": "https://example.org/w.h5",
    }
    config = configs.load("encnet_shapes")
    assert settings["model.encnet.codewords"] == str(config.model.encnet.codewords)
    assert settings["augment.crop"] == ", ".join(str(side) for side in config.augment.crop)
    assert settings["evaluate.flip"] == "False" and settings["name"] == "encnet_shapes"


@pytest.mark.parametrize("missing", [None, NAN])
def test_undefined_values_are_dashes(tmp_path, missing):
    def emptied(value):
        if isinstance(value, dict):
            return {key: emptied(item) for key, item in value.items()}
        return missing if isinstance(value, float) else value

    matrix, names = np.zeros((3, 3), np.int64), ("road", "car", "never")
    results = results_of(matrix, names, published=PUBLISHED)
    boundary = results["boundary"] | {
        "mIoU": [missing] * 5,
        "pixels": [0] * 5,
        "classes": dict.fromkeys(names, missing),
    }
    path = tmp_path / "report.html"
    html_report.write_report(
        path, emptied(results) | {"boundary": boundary, "config": results["config"]}, matrix, [], names, PALETTE
    )
    page = Page(path)
    shown = [page.text, *(text for chart in page.charts for text in chart), *page.attributes("td", "data-value")]
    assert not [text for text in shown if text and re.search(r"\b(nan|None)\b", text)]
    assert page.tables[0][1:] == [
        [name, *["–"] * 3] for name in ("mIoU", "aAcc", "mAcc", "fwIoU", "boundary mIoU", "mDice")
    ]
    assert page.tables[1][1] == ["road", *["–"] * 7]
    assert page.tables[2][1] == ["0.125%", "–", "–"]
    assert page.tables[3][1] == ["Seconds", "–"]


def references(page):
    """Return all attributes that a browser may load or follow."""
    names = ("src", "href", "xlink:href", "srcset", "poster", "data", "action", "formaction", "background", "ping")
    return [(tag, name, value) for tag, attributes in page.tags for name, value in attributes.items() if name in names]


def test_the_page_refers_to_nothing_outside(tmp_path):
    page = written(tmp_path, samples=[sample(), sample("b", "typical")], published=PUBLISHED)
    entries = references(page)
    assert len(entries) > 10
    assert [entry for entry in entries if not entry[2].startswith(("data:", "#"))] == []
    assert not {"iframe", "object", "embed", "base", "video", "audio"} & {tag for tag, _ in page.tags}
    assert "@import" not in page.source
    assert [target for target in re.findall(r"url\(([^)]*)", page.source) if not target.startswith("#")] == []
    # The provenance contains the only address, as text.
    assert re.findall("https?:[^\"'<\\s]*", page.source) == ["https://example.org/w.h5"]


def test_ids_are_unique_and_links_have_targets(tmp_path):
    matrix, names, palette = many_classes()
    page = written(tmp_path, matrix, names, palette, [sample(classes=150)])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, _, value in references(page) if value.startswith("#")]
    assert len(targets) > 7 and set(targets) <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page.source)) <= set(ids)


def test_names_are_text_and_never_markup(tmp_path):
    names = (AWKWARD, "$\\frac", "x" * 200)
    images = [sample(AWKWARD), sample("caf\udce9.jpg"), sample("tab\tand\u202e.jpg")]
    config = configs.to_dict(configs.load("encnet_shapes")) | {"name": AWKWARD}
    page = written(tmp_path, classes=names, samples=images, config=config)
    plain = [tag for tag, _ in written(tmp_path, samples=images).tags if tag not in ("g", "use", "path", "defs")]
    assert [tag for tag, _ in page.tags if tag not in ("g", "use", "path", "defs")] == plain
    assert plain.count("script") == 1
    assert f"{AWKWARD} on shapes val" in page.text
    assert [row[0] for row in page.tables[1][1:]] == list(names)
    assert f"image of {AWKWARD}" in page.attributes("img", "alt")
    # Unprintable characters are escaped, including the byte of a file name that is not UTF-8.
    assert "caf\\udce9.jpg mIoU" in page.text
    assert "tab\\tand\\u202e.jpg mIoU" in page.text
    assert "x" * 20 + "…" in page.charts[0]


def test_a_new_report_replaces_the_old_one(tmp_path):
    written(tmp_path)
    assert "one image" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    written(tmp_path, samples=[sample("one image")])
    assert "one image" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_unwritable_path_is_named(tmp_path):
    path = tmp_path / "missing" / "report.html"
    with pytest.raises(UserError, match=f"cannot write {re.escape(str(path))}: No such file"):
        html_report.write_report(path, results_of(MATRIX, "abc"), MATRIX, [], tuple("abc"), PALETTE)


def test_inconsistent_arguments_are_refused(tmp_path):
    path, results = tmp_path / "report.html", results_of(MATRIX, "abc")
    with pytest.raises(ValueError, match="2 classes and 3 colors"):
        html_report.write_report(path, results, MATRIX, [], tuple("ab"), PALETTE)
    with pytest.raises(ValueError, match="'best'"):
        html_report.write_report(path, results, MATRIX, [sample(group="best")], tuple("abc"), PALETTE)
    turned = sample()._replace(prediction=np.zeros((40, 30), np.uint8))
    with pytest.raises(ValueError, match=r"one: .*\(30, 40\), \(30, 40\) and \(40, 30\)"):
        html_report.write_report(path, results, MATRIX, [turned], tuple("abc"), PALETTE)
    assert not path.exists()


def test_full_size_samples_stay_small(tmp_path):
    random = np.random.default_rng(0)
    # Noise compresses worst.
    image = random.integers(0, 256, (1024, 2048, 3)).astype(np.uint8)
    label = np.repeat(np.repeat(random.integers(0, 3, (64, 128)), 16, 0), 16, 1).astype(np.uint8)
    one = html_report.Sample("one", image, label, np.roll(label, 5, 1), 0.5, "worst")
    page = written(tmp_path, samples=[one, one._replace(group="typical")])
    # A report has up to 24 samples and stays below 8 MB.
    assert len(page.source) / 2 < 8e6 / 24
