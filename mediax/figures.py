"""The pictures of runs: training curves, ROC, FROC, calibration, confusion, images with truth and prediction.

Every function writes one PNG, whole or not at all. Colours are those of Okabe and Ito (2008), which people with any
kind of colour vision tell apart; blue and orange-red mark right and wrong, and a sign says the same.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mediax.box_metrics import sensitivity_at
from mediax.files import replace_file
from mediax.metric_log import read_metrics
from mediax.metrics import CALIBRATION_BINS, sign
from mediax.samples import calls, deviations

if TYPE_CHECKING:  # matplotlib takes a second to import, which a run without figures should not pay
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
DASHES = ("-", "--", ":")  # with seven colours: 21 classes that look different
GREY = "#666666"
RIGHT, WRONG, UNKNOWN = BLUE, RED, GREY
TRUTH, PREDICTION = SKY, ORANGE
ROC_AXES = ("1 − specificity", "sensitivity")
FROC_RATES = 2.0 ** np.arange(-3, 4)  # false positives per image, those of LUNA16 (arXiv:1612.08012)
PRECISION_RECALL_AXES = ("recall (sensitivity)", "precision")
DOTS_PER_INCH = 130
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}
TRAINING = ("train", "loss", "learning_rate", "gradient_norm")  # first words; every other one names an evaluation
# What is drawn first, if there is more than has room.
HEADLINES = (
    *("auroc", "ap50", "score", "dice", "pixel_f1", "pixel_iou", "quadratic_weighted_kappa", "auc", "knn_auroc"),
    *("mae", "error", "average_precision", "ap", "iou", "balanced_accuracy", "f1"),
)
MOST_LINES = 6
MOST_PANELS = 9
SMOOTHING = 0.05  # the running median spans this share of the rows
FEWEST_IN_BIN = 10  # predictions that a bin of a single class needs to be drawn
TILE, GAP, LINE_HEIGHT, TITLE_HEIGHT = 2.0, 0.08, 0.14, 0.2  # inches, on a sheet of images
LINE_LENGTH = 34  # characters that fit below an image
BELOW = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "borderaxespad": 0}  # a legend there hides no curve


@contextlib.contextmanager
def _drawing(
    path: str | os.PathLike, width: float, height: float, layout: str | None = "constrained"
) -> Iterator[Figure]:
    """Opens a figure in mediax's style (inches) and writes it as PNG at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout)
        yield figure
        png = io.BytesIO()
        figure.savefig(png, format="png")  # a Figure without pyplot draws with Agg and keeps no global state
    replace_file(path, png.getvalue())


def curves(workdir: str | os.PathLike, *, best_step: int | None = None) -> Path | None:
    """Draws `curves.png` from `metrics.jsonl`: losses, validation metrics, learning rates, gradient norm.

    The first word of a name tells training ("train/nih/loss", "learning_rate/backbone") from an evaluation
    ("validation/nih/auroc/macro"). Of the evaluations' metrics the overall ones are drawn, AUROC first, six at most.
    Faint lines are single rows of the log, strong ones a running median. Panels without values are left out.

    Args:
      best_step: marked in every panel.

    Returns the path; None if there is nothing to draw.

    Raises:
      InputError: the log is damaged, or the figure cannot be written.
    """
    series = _series(read_metrics(workdir))
    panels = {title: names for title, names in _panels(series).items() if names}
    if not panels:
        return None
    path = Path(workdir) / "curves.png"
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    drawn = np.concatenate([series[name][0] for names in panels.values() for name in names])
    most = max(len(names) for names in panels.values()) + (best_step is not None)
    with _drawing(path, 5.4 * columns, (3.2 + 0.16 * most) * rows) as figure:
        for i, (title, names) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, i)
            _curve_panel(axes, title, {name: series[name] for name in names}, best_step)
            margin = 0.03 * np.ptp(drawn) or 1
            axes.set_xlim(drawn.min() - margin, drawn.max() + margin)
    return path


def _series(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns steps i[T] and values f[T] of every scalar."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                points.setdefault(name, []).append((row["step"], value))
    return {name: tuple(np.asarray(column) for column in zip(*pairs)) for name, pairs in points.items()}


def _panels(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns title -> names."""
    training = [name for name in names if not _of_evaluation(name)]
    losses = [name for name in names if _of_evaluation(name) and name.endswith("loss")]
    metrics = [name for name in names if _of_evaluation(name) and name not in losses]
    # "auroc/Edema" is one class of "auroc/macro"; "cohen_kappa" stands for itself.
    macros = {name.removesuffix("/macro") for name in metrics if name.endswith("/macro")}
    overall = [name for name in metrics if name.endswith("/macro") or name.rpartition("/")[0] not in macros]
    ranked = sorted(overall, key=_headline_rank)
    return {
        "Loss": _fewest_words([n for n in training if n.endswith("loss")])[:MOST_LINES] + losses[:MOST_LINES],
        "Evaluation": [name for name in ranked if not _is_error(name)][:MOST_LINES],
        "Errors": [name for name in ranked if _is_error(name)][:MOST_LINES],
        "Learning rate": [name for name in training if "learning_rate" in name][:MOST_LINES],
        "Gradient norm": [name for name in training if "gradient_norm" in name][:MOST_LINES],
    }


def _of_evaluation(name: str) -> bool:
    return name.split("/")[0] not in TRAINING


def _fewest_words(names: Sequence[str]) -> list[str]:
    fewest = min((name.count("/") for name in names), default=0)
    return [name for name in names if name.count("/") == fewest]


def _is_error(name: str) -> bool:
    """Whether a figure has a unit of its own, as years or pixels, instead of a share."""
    metric = _metric_of(name)
    return sign(metric) < 0 or metric == "bias"


def _metric_of(name: str) -> str:
    return name.removesuffix("/macro").rpartition("/")[2]


def _headline_rank(name: str) -> int:
    metric = _metric_of(name)
    return HEADLINES.index(metric) if metric in HEADLINES else len(HEADLINES)


def _curve_panel(axes: Axes, title: str, series: Mapping[str, tuple], best_step: int | None) -> None:
    from matplotlib.ticker import FuncFormatter

    for i, (name, (steps, values)) in enumerate(series.items()):
        colour, label = COLOURS[i % len(COLOURS)], _curve_label(title, name)
        missing = int((~np.isfinite(values)).sum())
        if missing:
            label += f" ({missing:,} of {values.size:,} not finite)"
            values = np.where(np.isfinite(values), values, np.nan)
        if title in ("Loss", "Gradient norm") and not _of_evaluation(name) and values.size > 20:
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(steps, _smoothed(values), color=colour, label=label)
        else:
            marker = "o" if _of_evaluation(name) or values.size == 1 else None
            axes.plot(steps, values, color=colour, label=label, marker=marker, markersize=3.5)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if title in ("Loss", "Gradient norm"):
        _limit_height(axes, series)
    if best_step is not None:
        axes.axvline(best_step, color=GREY, linestyle=":", linewidth=1.2, label=f"best: step {best_step:,}")
    axes.legend(**BELOW)


def _curve_label(title: str, name: str) -> str:
    """Leaves out of a scalar's name what the title of its panel says."""
    for redundant in ("/macro", "learning_rate/"):
        name = name.removesuffix(redundant).removeprefix(redundant)
    if title == "Gradient norm":
        name = name.removesuffix("/gradient_norm")
    return name.replace("_", " ")


def _limit_height(axes: Axes, series: Mapping[str, tuple]) -> None:
    """Keeps a few outliers (the first steps, a spike) from pressing the curves flat."""
    finite = {name: values[np.isfinite(values)] for name, (_, values) in series.items()}
    values = np.concatenate(list(finite.values()))
    if values.size < 20:
        return
    low, high = values.min(), np.percentile(values, 99)
    high = max([high, *(few.max() for name, few in finite.items() if _of_evaluation(name) and few.size)])
    if low > 0 and high > 30 * np.median(values):
        axes.set_yscale("log")
    elif values.max() > high:
        margin = 0.05 * (high - low) or 1
        axes.set_ylim(low - margin, high + margin)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Running median, which a single spike does not bend, then a running mean; missing values stay missing."""
    present = ~np.isnan(values)
    smooth = values.copy()
    reach = max(2, round(SMOOTHING * values.size / 2))
    for average in (np.nanmedian, np.nanmean):
        padded = np.pad(smooth, reach, constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
        smooth[present] = average(windows[present], axis=1)
    return smooth


def _known(labels: np.ndarray) -> np.ndarray:
    return (labels == 0) | (labels == 1)


def roc(path: str | os.PathLike, scores: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> None:
    """Draws ROC and precision-recall curves side by side, one line a class.

    Args:
      scores: f[N,K] higher means present.
      labels: f[N,K] 1 present, 0 absent; every other value (NaN, soft) leaves the row out of that class.
      classes: K names.

    Classes without a positive or a negative row have no curve and say so in the legend.
    Raises InputError if the figure cannot be written.
    """
    scores, labels = _matrices(scores, labels, classes)
    rows = len(classes) + 2
    with _drawing(path, 11, max(4.2, 0.19 * rows + 0.6)) as figure:
        left, right, legend = figure.subplots(1, 3, width_ratios=(1, 1, 0.72))
        _plot_chance(left)
        lines, texts = left.plot([], [], color="none"), ["AUROC  AP     class (positives/n)"]
        for k, name in enumerate(classes):
            known = _known(labels[:, k])
            truth, score = labels[known, k], scores[known, k]
            style = {"color": COLOURS[k % 7], "linestyle": DASHES[k // 7 % 3]}
            positives = int(truth.sum())
            if positives in (0, truth.size):
                (line,) = left.plot([], [], color="none")
                texts.append(f"  –     –    {name}: no {'negatives' if positives else 'positives'}")
            else:
                line, area, average = _plot_roc(left, right, score, truth, **style)
                texts.append(f"{area:.3f} {average:.3f}  {name} ({positives:,}/{truth.size:,})")
            lines.append(line)
        _unit_square(left, "ROC", *ROC_AXES)
        _unit_square(right, "Precision and recall", *PRECISION_RECALL_AXES)
        legend.axis("off")
        size = 8 if rows < 18 else 7
        legend.legend(
            lines,
            texts,
            loc="center left",
            borderaxespad=0,
            prop={"family": "monospace", "size": size},
        )


def _plot_roc(roc: Axes, precision_recall: Axes, scores: np.ndarray, labels: np.ndarray, **style):
    """Draws both curves of scores f[N] for labels 0 and 1, both present; returns a line, AUROC, average precision."""
    from sklearn import metrics

    false_positives, sensitivity, _ = metrics.roc_curve(labels, scores)
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    (line,) = roc.plot(false_positives, sensitivity, **style)
    precision_recall.plot(recall, precision, drawstyle="steps-post", **style)  # the steps that AP sums
    return line, metrics.roc_auc_score(labels, scores), metrics.average_precision_score(labels, scores)


def _plot_chance(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 3)))


def compare_roc(
    path: str | os.PathLike, models: Mapping[str, tuple[ArrayLike, ArrayLike]], classes: Sequence[str]
) -> None:
    """Draws the ROC and precision-recall curves of several models over each other, two panels for each class.

    Args:
      models: name -> (scores f[N,K], labels f[N,K]), as for `roc`.
      classes: K names.

    The legend of a class gives the area under ROC, and the average precision; a model that has no positive or no
    negative row of it has no curve. Raises InputError if the figure cannot be written.
    """
    arrays = {name: _matrices(*pair, classes) for name, pair in models.items()}
    columns = 2 if len(classes) == 1 else 4
    rows = math.ceil(2 * len(classes) / columns)
    with _drawing(path, 3.4 * columns, (3.9 + 0.16 * len(models)) * rows) as figure:
        figure.get_layout_engine().set(h_pad=0.15)  # inches: a title keeps away from the legend above it
        for k, name in enumerate(classes):
            left, right = (figure.add_subplot(rows, columns, 2 * k + panel) for panel in (1, 2))
            _plot_chance(left)
            for (model, (scores, labels)), style in zip(arrays.items(), _styles()):
                known = _known(labels[:, k])
                truth = labels[known, k]
                if truth.size and truth.min() < truth.max():
                    line, area, average = _plot_roc(left, right, scores[known, k], truth, **style)
                    line.set_label(f"{area:.3f}  {average:.3f}  {_clipped(model)}")
            _unit_square(left, name, *ROC_AXES)
            _unit_square(right, "", *PRECISION_RECALL_AXES)
            if left.get_legend_handles_labels()[1]:
                left.legend(title="AUROC, AP, model", title_fontsize=7, alignment="left", fontsize=7, **BELOW)


def froc(
    path: str | os.PathLike,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    iou: float,
    rates: Sequence[float] = FROC_RATES,
    reached: bool = False,
    lower_end: bool = False,
    subject: str = "",
) -> None:
    """Draws sensitivity against the mean number of false positives in an image (FROC), one line a detector.

    Args:
      curves: name -> (false positives per image f[M], share of the true boxes that are found f[M]), both rising; the
        legend gives the mean sensitivity at `rates`, as in `box_metrics.froc`.
      rates: false positives per image that are marked, above 0; the figure reaches a little beyond them.
      lower_end: takes the lower end of the curve where it rises at a rate.
      iou: what the intersection over union of a hit exceeds, or with `reached` reaches, for the title.
      subject: more words for the title, such as the number of images.

    Raises InputError if the figure cannot be written.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    marked = np.unique(rates)
    drawn = np.geomspace(marked[0] / 1.2, marked[-1] * 1.2, 1000)
    with _drawing(path, 7.4, 4.3 + 0.16 * len(curves)) as figure:
        axes = figure.subplots()
        for (name, points), style in zip(curves.items(), _styles()):
            mean = sensitivity_at(marked, *points, lower_end).mean()
            label = f"{mean:.3f}  {_clipped(name)}"
            axes.plot(drawn, sensitivity_at(drawn, *points, lower_end), label=label, **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(marked))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: _rate(rate)))
        axes.xaxis.set_minor_locator(NullLocator())
        hit = f"of {iou:g} or more" if reached else f"above {iou:g}"
        title = f"FROC, hits at an IoU {hit}" + (f", {subject}" if subject else "")
        axes.set(title=title, xlabel="mean false positives in an image", ylabel="sensitivity")
        axes.set(xlim=(drawn[0], drawn[-1]), ylim=(-0.02, 1.02))
        axes.legend(title="mean sensitivity at the marked rates, model", title_fontsize=8, alignment="left", **BELOW)


def _rate(rate: float) -> str:
    return f"1/{1 / rate:g}" if rate < 1 and math.log2(rate).is_integer() else f"{rate:g}"


def learning_curves(path: str | os.PathLike, logs: Mapping[str, Sequence[Mapping[str, float]]], metric: str) -> bool:
    """Draws the training loss and one metric of several runs over each other.

    Args:
      logs: name -> rows of its log, as `metric_log.read_metrics` gives them.
      metric: how the metric's name ends ("classification/auroc/macro"); the first evaluation that logs it is drawn.

    Returns whether there was anything to draw. Raises InputError if the figure cannot be written.
    """
    from matplotlib.ticker import FuncFormatter

    losses, scores = {}, {}
    for name, rows in logs.items():
        series = _series(rows)
        of_training = _fewest_words([one for one in series if not _of_evaluation(one) and one.endswith("loss")])
        of_evaluation = [one for one in series if _of_evaluation(one) and one.endswith(f"/{metric}")]
        for lines, found in ((losses, of_training), (scores, of_evaluation)):
            if found:
                lines[name] = series[found[0]]
    panels = {"Training loss": losses, metric.removesuffix("/macro").replace("_", " "): scores}
    # One evaluation, or a metric that is undefined there, makes no curve.
    panels = {
        title: lines
        for title, lines in panels.items()
        if any(np.isfinite(values).sum() > 1 for _, values in lines.values())
    }
    if not panels:
        return False
    styles = dict(zip(logs, _styles()))
    with _drawing(path, 5.4 * len(panels), 3.4 + 0.16 * len(logs)) as figure:
        for axes, (title, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items()):
            for name, (steps, values) in lines.items():
                values = np.where(np.isfinite(values), values, np.nan)
                values = _smoothed(values) if title == "Training loss" and values.size > 20 else values
                marker = None if title == "Training loss" and values.size > 1 else "o"
                axes.plot(steps, values, label=_clipped(name), marker=marker, markersize=3.5, **styles[name])
            axes.set(title=title, xlabel="step")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
            if title == "Training loss":
                _limit_height(axes, lines)
            axes.legend(**BELOW)
    return True


def _styles() -> Iterator[dict[str, str]]:
    """Yields looks of lines, each different from those before for as long as that is possible."""
    for dash in itertools.cycle(DASHES):
        for colour in COLOURS:
            yield {"color": colour, "linestyle": dash}


def _clipped(name: str, most: int = 64) -> str:
    """Shortens a name, and keeps matplotlib from taking it for a formula or for a line that has no label."""
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    return name.replace("$", r"\$").removeprefix("_")


def _unit_square(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))


def reliability(path: str | os.PathLike, scores: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> None:
    """Draws how often a class is present among images of equal predicted probability (Guo et al. 2017).

    The black line pools all classes, with 95 % Wilson intervals; thin lines are single classes, where a bin holds ten
    predictions or more. Below: how many predictions lie in each bin. The bins are those of the expected calibration
    error in mediax.metrics.

    Args:
      scores: f[N,K] probabilities in [0,1].
      labels: f[N,K] 1 present, 0 absent; every other value (NaN, soft) is left out.
      classes: K names.

    Raises InputError if the figure cannot be written.
    """
    scores, labels = _matrices(scores, labels, classes)
    known = _known(labels)
    with _drawing(path, 7.4, 5.2) as figure:
        top, bottom = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        top.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 3)), label="perfect")
        for k, name in enumerate(classes if len(classes) > 1 else ()):
            mean, share, count = _bins(scores[known[:, k], k], labels[known[:, k], k])
            label = f"{name} ({_calibration_error(mean, share, count):.3f})"
            colour, dash = COLOURS[:6][k % 6], DASHES[k // 6 % 3]
            mean, share = mean[count >= FEWEST_IN_BIN], share[count >= FEWEST_IN_BIN]
            top.plot(mean, share, color=colour, linestyle=dash, linewidth=0.9, alpha=0.75, label=label)
        mean, share, count = _bins(scores[known], labels[known])
        low, high = _wilson(share, count)
        name = "all classes" if len(classes) > 1 else classes[0]
        label = f"{name} ({_calibration_error(mean, share, count):.3f})"
        bars = np.maximum([share - low, high - share], 0)
        top.errorbar(mean, share, bars, color=BLACK, marker="o", markersize=4, linewidth=1.6, capsize=2, label=label)
        top.set(title="Calibration", ylabel="share that is present", ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
        heading = {"title": "class (expected calibration error)", "title_fontsize": 8, "alignment": "left"}
        top.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **heading)
        bottom.hist(scores[known], bins=np.linspace(0, 1, CALIBRATION_BINS + 1), color=SKY, edgecolor="white")
        bottom.set(xlabel="predicted probability", ylabel="predictions")
        if known.sum() > 100:
            bottom.set_yscale("log")
            bottom.set_ylim(bottom=0.8)


def _bins(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean score, share of positives and count of the occupied bins, which are closed above."""
    index = np.searchsorted(np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS, scores, side="left")
    count = np.bincount(index, minlength=CALIBRATION_BINS)
    full = count > 0
    mean = np.bincount(index, scores, CALIBRATION_BINS)[full] / count[full]
    share = np.bincount(index, labels, CALIBRATION_BINS)[full] / count[full]
    return mean, share, count[full]


def _calibration_error(mean: np.ndarray, share: np.ndarray, count: np.ndarray) -> float:
    return float(np.sum(np.abs(mean - share) * count) / count.sum()) if count.size else math.nan


def _wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % score interval of a proportion (Wilson 1927)."""
    z = 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def confusion(path: str | os.PathLike, predicted: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> None:
    """Draws the confusion matrix of exclusive classes: counts, coloured by the share of the true class (the row).

    Args:
      predicted: i[N] class indices.
      labels: [N] true class indices; negative or NaN is unknown and left out.
      classes: K names.

    Raises InputError if the figure cannot be written.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels, float)
    if predicted.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"predicted {predicted.shape} and labels {labels.shape}, expected both [N]")
    known = labels >= 0
    size = len(classes)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (labels[known].astype(int), predicted[known].astype(int)), 1)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    cells = max(2.4, 0.55 * size)
    longest = 0.08 * max(map(len, classes))  # inches
    turned = longest > cells / size
    with _drawing(path, cells + longest + 2.2, cells + (0.65 * longest if turned else 0) + 0.9) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(counts.shape):
            text = f"{counts[i, j]:,}\n{shares[i, j]:.0%}" if counts[i, j] else "0" if totals[i, 0] else "–"
            colour = "white" if shares[i, j] > 0.55 else "black" if counts[i, j] else "#AAAAAA"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7.5)
        angle = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(range(size), classes, **angle)
        axes.set_yticks(range(size), [f"{name} ({total:,})" for name, total in zip(classes, totals[:, 0])])
        axes.set(xlabel="predicted", ylabel="true (n)", title=f"Confusion, n = {known.sum():,}")
        axes.grid(False)
        axes.tick_params(length=0)
        figure.colorbar(image, label="share of the true class", shrink=0.8)


def agreement(path: str | os.PathLike, predicted: ArrayLike, true: ArrayLike, names: Sequence[str]) -> None:
    """Draws predicted against true numbers, and their differences against their means (Bland and Altman 1986).

    On the right the solid line is the mean difference and the dashed ones are its limits of agreement, 1.96 standard
    deviations away.

    Args:
      predicted, true: f[N,R] in one unit; NaN is unknown and left out.
      names: of the R numbers, one row of panels each.

    Raises InputError if the figure cannot be written.
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    if predicted.shape != true.shape or true.ndim != 2 or true.shape[1] != len(names):
        raise ValueError(f"predicted {predicted.shape} and true {true.shape}, expected both [N,{len(names)}]")
    with _drawing(path, 8.6, 4.2 * len(names)) as figure:
        panels = figure.subplots(len(names), 2, squeeze=False)
        for (left, right), name, p, y in zip(panels, names, predicted.T, true.T):
            known = np.isfinite(p) & np.isfinite(y)
            p, y = p[known], y[known]
            dots = {"s": 12, "color": BLUE, "alpha": 0.6, "linewidths": 0}
            left.scatter(y, p, **dots)
            left.set(title=f"{name}, n = {p.size:,}", xlabel="true", ylabel="predicted", aspect="equal")
            right.scatter((p + y) / 2, p - y, **dots)
            right.set(title="Differences", xlabel="mean of true and predicted", ylabel="predicted − true")
            if not p.size:
                continue
            low, high = min(p.min(), y.min()), max(p.max(), y.max())
            left.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle=(0, (1, 3)))
            mean, deviation = float(np.mean(p - y)), float(np.std(p - y, ddof=1)) if p.size > 1 else 0.0
            right.axhline(mean, color=BLACK, linewidth=1.2, label=f"mean {mean:+.3g}")
            for limit in (mean - 1.96 * deviation, mean + 1.96 * deviation):
                right.axhline(limit, color=RED, linewidth=1, linestyle="--", label=f"limit {limit:+.3g}")
            right.legend(loc="best")


def success_rates(path: str | os.PathLike, errors: Mapping[str, ArrayLike], limit: float, unit: str) -> None:
    """Draws the share of cases whose error is below a tolerance, against the tolerance.

    Args:
      errors: f[N] of each way to register, by its name; NaN is unknown and left out.
      limit: the largest tolerance.
      unit: of errors and tolerances.

    Raises InputError if the figure cannot be written.
    """
    with _drawing(path, 5.4, 4.2) as figure:
        axes = figure.subplots()
        tolerances = np.linspace(0, limit, 501)
        for (name, values), colour in zip(errors.items(), itertools.cycle(COLOURS)):
            values = np.sort(np.asarray(values, float))
            values = values[~np.isnan(values)]
            share = np.searchsorted(values, tolerances, side="left") / max(values.size, 1)
            axes.plot(tolerances, share, color=colour, label=f"{name} (n = {values.size:,})")
        axes.set(title="Success rate", xlabel=f"tolerance in {unit}", ylabel="share below", ylim=(-0.02, 1.02))
        axes.legend(loc="best")


def scores(path: str | os.PathLike, scores: ArrayLike, labels: ArrayLike, threshold: float, name: str) -> None:
    """Draws how scores are distributed, with the class and without it, and the threshold between them.

    Args:
      scores: f[N] any number, higher means present.
      labels: f[N] 1 present, 0 absent; every other value is unknown.
      threshold: from which on the class is called present.
      name: of the class.

    Raises InputError if the figure cannot be written.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, float)
    groups = {"absent": (labels == 0, BLUE), "present": (labels == 1, RED), "unknown": (~_known(labels), UNKNOWN)}
    bins = np.histogram_bin_edges(np.append(scores, threshold), bins=40)
    with _drawing(path, 6.4, 3.6) as figure:
        axes = figure.subplots()
        for state, (rows, colour) in groups.items():
            if rows.any():
                axes.hist(scores[rows], bins, color=colour, alpha=0.6, label=f"{state} ({rows.sum():,})")
        axes.axvline(threshold, color=BLACK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.4g}")
        axes.set(title=name, xlabel="score", ylabel="images")
        axes.legend(loc="best")


def projection(
    path: str | os.PathLike, points: ArrayLike, shares: ArrayLike, labels: ArrayLike, classes: Sequence[str]
) -> None:
    """Draws where images lie in a plane, once for each class, whose images are coloured; at most `MOST_PANELS` classes.

    Those are shown that most images have. Without labels there is one panel.

    Args:
      points: f[N,2].
      shares: f[2] of the variance that the two axes explain.
      labels: f[N,K] 1 present, 0 absent; every other value is unknown.
      classes: K names.

    Raises InputError if the figure cannot be written.
    """
    points, labels = np.asarray(points, float), np.asarray(labels, float)
    order = np.argsort(-(labels == 1).sum(axis=0), kind="stable")[:MOST_PANELS]
    panels = [(f"{classes[k]} ({int((labels[:, k] == 1).sum()):,})", labels[:, k]) for k in order]
    panels = panels or [(f"{len(points):,} images", np.full(len(points), np.nan))]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _drawing(path, 3.2 * columns + 0.6, 3.2 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for one, (title, label) in zip(axes, panels):
            for state, colour in ((~_known(label), UNKNOWN), (label == 0, SKY), (label == 1, RED)):
                one.scatter(*points[state].T, s=9, color=colour, alpha=0.6, linewidths=0)
            one.set(title=title)
        for one in axes[len(panels) :]:
            one.axis("off")
        if labels.size:
            figure.suptitle("orange: present, blue: absent, grey: unknown", fontsize=8, x=0.01, ha="left")
        figure.supxlabel(f"first principal component ({shares[0]:.0%} of the variance)", fontsize=8)
        figure.supylabel(f"second ({shares[1]:.0%})", fontsize=8)


def _matrices(scores: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, float), np.asarray(labels, float)
    if scores.shape != labels.shape or scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}, expected both [N,{len(classes)}]")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite")
    return scores, labels


@dataclass(frozen=True)
class Overlay:
    """What is drawn onto images: boxes, masks, points; of the truth or of a prediction."""

    boxes: ArrayLike | None = None  # f[N,M,4] ymin,xmin,ymax,xmax in [0,1]; a box without area is padding
    box_labels: ArrayLike | None = None  # i[N,M] class index; negative is padding
    box_scores: ArrayLike | None = None  # f[N,M] in [0,1]
    masks: ArrayLike | None = None  # u8[N,H,W,K]
    points: ArrayLike | None = None  # f[N,P,2] y, x in [0,1]; NaN is unknown


def samples(
    path: str | os.PathLike,
    images: ArrayLike,
    *,
    sections: Mapping[str, Sequence[int]],
    classes: Sequence[str],
    labels: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    exclusive: bool = False,
    thresholds: ArrayLike | None = None,
    captions: Sequence[str] | None = None,
    truth: Overlay | None = None,
    prediction: Overlay | None = None,
    columns: int = 6,
) -> None:
    """Draws a sheet of images with what is true and what was predicted, section by section.

    Below each image stand the classes that are present or predicted, most wrong first. The sheet shows pixels and
    findings alone; it is for the caller to pass no caption that identifies a patient.

    Args:
      images: f[N,H,W,C] in [0,1], C is 1 or 3.
      sections: the images that are shown, by the title above them.
      classes: names of labels, box labels and mask channels.
      labels: f[N,K] 1 present, 0 absent, NaN unknown.
      scores: f[N,K] probabilities in [0,1].
      exclusive: the predicted class is the one of the highest score, instead of each that reaches its threshold.
      thresholds: f[K], as for the metrics; None means 0.5.
      captions: N short lines ("Dice 0.83"), one below each image.
      truth, prediction: overlays, drawn in solid blue and dashed orange.
      columns: images in a row.

    Raises:
      InputError: the figure cannot be written.
    """
    images = np.asarray(images, np.float32)
    texts = [[] if captions is None else [("", GREY, captions[i])] for i in range(len(images))]
    if labels is not None and scores is not None:
        scores, labels = _matrices(scores, labels, classes)
        called = calls(scores, thresholds, exclusive=exclusive)
        wrong = deviations(scores, labels, thresholds, exclusive=exclusive)
        for i, lines in enumerate(texts):
            lines += _findings(scores[i], labels[i], called[i], wrong[i], classes)
    shown = [i for rows in sections.values() for i in rows]
    columns = max(1, min(columns, max(map(len, sections.values()), default=1)))
    text_lines = max((len(texts[i]) for i in shown), default=0)
    # Placed by hand: automatic layouts leave wide gaps between images of a fixed shape.
    image_height = TILE * images.shape[1] / images.shape[2]
    row_height = image_height + LINE_HEIGHT * text_lines + 2 * GAP
    width = max(columns, 2) * (TILE + GAP) + GAP
    title = _sheet_title(labels is not None and scores is not None, truth, prediction)
    title = textwrap.fill(title, int(width * 17))
    header = 0.15 + 0.14 * (title.count("\n") + 1) if title else GAP
    height = header + sum(TITLE_HEIGHT + math.ceil(len(rows) / columns) * row_height for rows in sections.values())
    overlays = ((truth, TRUTH, "-"), (prediction, PREDICTION, (0, (4, 2))))
    with _drawing(path, width, height, layout=None) as figure:
        figure.text(GAP / width, 1 - 0.1 / height, title, fontsize=7.5, va="top")
        top = header
        for heading, rows in sections.items():
            figure.text(GAP / width, 1 - top / height, heading, fontsize=8, fontweight="bold", va="top")
            top += TITLE_HEIGHT
            for place, i in enumerate(rows):
                left, lower = GAP + place % columns * (TILE + GAP), top + place // columns * row_height + image_height
                box = (left / width, 1 - lower / height, TILE / width, image_height / height)
                axes = figure.add_axes(box)
                axes.axis("off")
                _show_image(axes, images[i])
                for overlay, colour, dash in overlays:
                    if overlay is not None:
                        _show_overlay(axes, overlay, i, classes, colour, dash)
                _show_texts(axes, texts[i])
            top += math.ceil(len(rows) / columns) * row_height


def _findings(
    scores: np.ndarray,
    labels: np.ndarray,
    called: np.ndarray,
    wrong: np.ndarray,
    classes: Sequence[str],
    most: int = 4,
) -> list[tuple[str, str, str]]:
    """Returns (sign, colour, text) for each class that is present or called, most wrong first."""
    order = np.argsort(-np.fmax(wrong, 0) - scores * 1e-3, kind="stable")
    listed = [k for k in order if called[k] or labels[k] >= 0.5]
    lines = []
    for k in listed:
        sign, colour = ("?", UNKNOWN) if np.isnan(wrong[k]) else ("✗", WRONG) if wrong[k] > 0 else ("✓", RIGHT)
        state = "unknown" if np.isnan(labels[k]) else "present" if labels[k] >= 0.5 else "absent"
        lines.append((sign, colour, f"{_short(classes[k])} {scores[k]:.2f} {state}"))
    if not lines:
        k = int(np.argmax(scores))
        known = not np.isnan(wrong).all()
        lines = [("✓" if known else "?", RIGHT if known else UNKNOWN, f"none; {_short(classes[k])} {scores[k]:.2f}")]
    if len(lines) > most:
        lines = [*lines[: most - 1], ("", GREY, f"and {len(lines) - most + 1} more")]
    return lines


def _short(name: str) -> str:
    room = LINE_LENGTH - len(" 0.00 unknown")
    name = name.replace("_", " ")
    return name if len(name) <= room else name[: room - 1] + "…"


def _show_image(axes: Axes, image: np.ndarray) -> None:
    image = np.clip(np.nan_to_num(image), 0, 1)
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1, extent=extent)
    else:
        axes.imshow(image, extent=extent)


def _show_overlay(axes: Axes, overlay: Overlay, i: int, classes: Sequence[str], colour: str, dash) -> None:
    from matplotlib.patches import Rectangle

    right, _, bottom, _ = (*axes.get_xlim()[::-1], *axes.get_ylim())
    if overlay.masks is not None:
        for channel in np.moveaxis(np.asarray(overlay.masks[i]) > 0, -1, 0):
            if channel.any():
                x = (np.arange(channel.shape[1]) + 0.5) * right / channel.shape[1]
                y = (np.arange(channel.shape[0]) + 0.5) * bottom / channel.shape[0]
                axes.contour(x, y, channel, [0.5], colors=[colour], linewidths=1.1, linestyles=[dash])
    if overlay.points is not None:
        y, x = np.asarray(overlay.points[i], float).T * [[bottom], [right]]
        # A ring for the truth, a cross for the prediction: on each other, both are seen.
        ring, cross = {"marker": "o", "facecolors": "none", "edgecolors": colour}, {"marker": "x", "color": colour}
        axes.scatter(x, y, s=9, linewidths=0.7, **(ring if colour == TRUTH else cross))
        axes.set(xlim=(0, right), ylim=(bottom, 0))
    if overlay.boxes is None:
        return
    for m, (ymin, xmin, ymax, xmax) in enumerate(np.asarray(overlay.boxes[i], float)):
        label = None if overlay.box_labels is None else int(overlay.box_labels[i][m])
        if not (ymax > ymin and xmax > xmin) or (label is not None and label < 0):
            continue
        x, y, width, height = xmin * right, ymin * bottom, (xmax - xmin) * right, (ymax - ymin) * bottom
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.2, linestyle=dash))
        text = "" if label is None else _short(classes[label])
        if overlay.box_scores is not None:
            text = f"{text} {float(overlay.box_scores[i][m]):.2f}".strip()
        if text:
            # Truth above its box and prediction below, since the two boxes often lie on each other.
            y, side = (y, "bottom") if colour == TRUTH else (y + height, "top")
            box = {"facecolor": "black", "alpha": 0.55, "pad": 0.8, "edgecolor": "none"}
            axes.text(x, y, text, color=colour, fontsize=5.5, va=side, bbox=box, clip_on=True)


def _show_texts(axes: Axes, texts: Sequence[tuple[str, str, str]]) -> None:
    for line, (mark, colour, text) in enumerate(texts):
        below = (0, -2 - 72 * LINE_HEIGHT * line)
        where = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
        axes.annotate(f"{mark} {text}".strip(), (0, 0), below, color=colour, fontsize=6.5, **where)


def _sheet_title(findings: bool, truth: Overlay | None, prediction: Overlay | None) -> str:
    parts = []
    if findings:
        parts.append("✓ right, ✗ wrong: class, predicted probability, truth")
    if truth is not None:
        parts.append("solid blue: truth")
    if prediction is not None:
        parts.append("dashed orange: prediction")
    return "   ·   ".join(parts)
