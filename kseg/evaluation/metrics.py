"""Segmentation metrics, all from one confusion matrix over a whole split."""


import numpy as np

from kseg.evaluation import confusion


def boundary_summary(counts: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Return what the boundary bands, widening, have: mIoU and pixels within each, and each class's IoU in one of them.

    {"width": BOUNDARY_WIDTH, "widths": [...], "mIoU": [...], "pixels": [...], "classes": {name: IoU there}}, fractions,
    nan where nothing is counted. `counts` is the matrices of `metrics.counts`, summed over images.
    """
    bands = [summary(matrix, classes) for matrix in np.cumsum(np.asarray(counts, np.int64)[:-1], axis=0)]
    headline = bands[confusion.BOUNDARY_WIDTHS.index(confusion.BOUNDARY_WIDTH)]["classes"]
    return {"width": confusion.BOUNDARY_WIDTH, "widths": list(confusion.BOUNDARY_WIDTHS), "mIoU": [band["mIoU"] for band in bands],
            "pixels": [band["pixels"] for band in bands],
            "classes": {name: row["iou"] for name, row in headline.items()}}


def summary(matrix: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Return mIoU, mAcc, aAcc, mDice, mFscore, mPrecision, mRecall, fwIoU and what each class has, as fractions.

    A ratio without a denominator is nan and left out of the mean, as MMSegmentation does (its IoUMetric): a class in
    neither truth nor prediction has no IoU and no Dice, one without truth no accuracy, which is its recall, one that is
    never predicted no precision, and where both of these are nan or 0 there is no F-score. The frequency-weighted fwIoU
    weighs a class's IoU by its share of the labelled pixels.
    """
    matrix = np.asarray(matrix, np.int64)
    hit, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)

    def ratio(part, whole):
        return np.divide(part, whole, out=np.full(len(hit), np.nan), where=whole > 0)

    recall, precision = ratio(hit, truth), ratio(hit, predicted)
    rows = {"iou": ratio(hit, truth + predicted - hit), "accuracy": recall, "dice": ratio(2 * hit, truth + predicted),
            "fscore": ratio(2 * precision * recall, precision + recall), "precision": precision, "recall": recall}
    per_class = {name: {kind: float(values[index]) for kind, values in rows.items()} | {"pixels": int(truth[index])}
                 for index, name in enumerate(classes)}
    pixels = int(matrix.sum())
    means = {"mIoU": "iou", "mAcc": "accuracy", "mDice": "dice", "mFscore": "fscore", "mPrecision": "precision",
             "mRecall": "recall"}
    nan = float("nan")
    return {name: _mean(rows[kind]) for name, kind in means.items()} | {
        "aAcc": float(hit.sum() / pixels) if pixels else nan,
        "fwIoU": float(np.nansum(rows["iou"] * truth) / pixels) if pixels else nan,
        "pixels": pixels, "classes": per_class}


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def table(results: dict) -> str:
    """Return the per-class table of `summary`'s results as text; nan reads "-"."""
    def percent(value):
        return f"{100 * value:6.2f}" if value == value else f"{'-':>6}"

    width = max(len(name) for name in (*results["classes"], "class"))
    lines = [f"{'class':<{width}}    IoU  accuracy        pixels"]
    for name, row in results["classes"].items():
        lines.append(f"{name:<{width}} {percent(row['iou'])}    {percent(row['accuracy'])}  {row['pixels']:12,}")
    lines.append(f"mIoU {percent(results['mIoU'])}   aAcc {percent(results['aAcc'])}   mAcc {percent(results['mAcc'])}")
    return "\n".join(lines)
