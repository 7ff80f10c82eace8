"""Figures are drawn from ordinary and from degenerate input, and show what they claim."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from mediax import figures
from mediax.errors import InputError
from mediax.figures import Overlay

CLASSES = ["Edema", "Cardiomegaly", "Fracture"]
ALL = {"all": range(20)}


def pixels(path):
    image = np.asarray(Image.open(path).convert("RGB"))
    assert min(image.shape[:2]) > 100
    return image


def shows(path, colour):
    """Counts the pixels of a colour of the palette."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels(path).astype(int) - wanted).max(-1) < 12).sum())


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < 0.3).astype(float)
    scores = np.clip(labels * 0.3 + rng.random((200, 3)) * 0.7, 0, 1)
    labels[:20, 0] = np.nan
    labels[:, 2] = 0  # a class without positives
    return scores, labels


@pytest.fixture
def images():
    ramp = np.linspace(0.2, 0.8, 40, dtype=np.float32)
    return np.broadcast_to(ramp[None, :, None, None], (20, 40, 32, 1)).copy()


@pytest.fixture
def texts(monkeypatch):
    """Collects all text of the figures that are drawn."""
    import matplotlib.text
    from matplotlib.figure import Figure

    found = []
    save = Figure.savefig

    def spy(figure, *arguments, **options):
        save(figure, *arguments, **options)  # before: the texts of ticks are made when they are drawn
        found.extend(text.get_text() for text in figure.findobj(matplotlib.text.Text))

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


def write_log(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_curves_have_a_panel_for_what_was_logged(tmp_path, texts):
    rows = [{"step": s, "train/nih/loss": 1 / s, "learning_rate": 0.1} for s in range(1, 60)]
    rows[7]["train/nih/loss"] = "NaN"
    rows += [
        {"step": s, "val/loss": 0.5, "val/nih/auroc/macro": 0.8, "val/nih/auroc/Edema": 0.7, "val/nih/cohen_kappa": 0.3}
        for s in (20, 40)
    ]
    write_log(tmp_path, rows)
    assert figures.curves(tmp_path, best_step=40) == tmp_path / "curves.png"
    assert shows(tmp_path / "curves.png", figures.BLUE) > 200
    assert {"Loss", "Evaluation", "Learning rate", "best: step 40"} <= set(texts)
    assert "Gradient norm" not in texts
    assert {"train/nih/loss (1 of 59 not finite)", "val/loss", "val/nih/auroc", "val/nih/cohen kappa"} <= set(texts)
    assert "val/nih/auroc/Edema" not in texts


def test_curves_of_years_or_pixels_have_a_panel_of_their_own(tmp_path, texts):
    panels = figures._panels(
        ["val/fire/auc", "val/fire/error", "val/age/bias", "val/age/mae", "val/age/r2", "val/loss"]
    )
    assert panels["Evaluation"] == ["val/fire/auc", "val/age/r2"]
    assert panels["Errors"] == ["val/age/mae", "val/fire/error", "val/age/bias"]
    many = [
        f"{name}/embedding/{figure}" for name in "ab" for figure in ("recall@1", "recall@5", "p@1", "knn_auroc/macro")
    ]
    assert figures._panels(many)["Evaluation"][:2] == ["a/embedding/knn_auroc/macro", "b/embedding/knn_auroc/macro"]


def test_curves_of_nothing_are_not_drawn(tmp_path):
    assert figures.curves(tmp_path) is None
    write_log(tmp_path, [{"step": 1, "train/nih/accuracy": 0.5}])
    assert figures.curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("value", [0.5, "NaN"])
def test_curves_of_a_single_row(tmp_path, value):
    write_log(tmp_path, [{"step": 1, "loss": value, "gradient_norm": value}])
    assert figures.curves(tmp_path) and pixels(tmp_path / "curves.png").std() > 0


def test_the_smoothed_curve_passes_over_spikes_and_gaps():
    values = np.linspace(2, 1, 200)
    spoilt = values.copy()
    spoilt[50], spoilt[100:103] = 1000, np.nan
    smooth = figures._smoothed(spoilt)
    assert np.isnan(smooth[100:103]).all()
    assert np.nanmax(np.abs(smooth - values)) < 0.03


def test_roc_names_every_class_with_its_area(tmp_path, predictions, texts):
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, labels = predictions
    figures.roc(tmp_path / "roc.png", scores, labels, CLASSES)
    known = labels[20:, 0], scores[20:, 0]
    line = f"{roc_auc_score(*known):.3f} {average_precision_score(*known):.3f}  Edema ({int(known[0].sum())}/180)"
    assert line in texts
    assert any("Fracture: no positives" in text for text in texts)
    assert shows(tmp_path / "roc.png", figures.BLUE) > 200 and shows(tmp_path / "roc.png", figures.ORANGE) > 200


@pytest.mark.parametrize("label", [0.0, 1.0, np.nan])
def test_figures_of_one_image(tmp_path, label, texts):
    scores, labels = np.array([[0.7]]), np.array([[label]])
    figures.roc(tmp_path / "roc.png", scores, labels, ["Edema"])
    figures.reliability(tmp_path / "reliability.png", scores, labels, ["Edema"])
    figures.samples(
        tmp_path / "samples.png",
        np.full((1, 8, 8, 1), 0.5),
        sections={"all": [0]},
        classes=["Edema"],
        labels=labels,
        scores=scores,
    )
    state, colour = {0.0: ("absent", figures.WRONG), 1.0: ("present", figures.RIGHT)}.get(
        label, ("unknown", figures.UNKNOWN)
    )
    assert any(text.endswith(f"Edema 0.70 {state}") for text in texts)
    assert shows(tmp_path / "samples.png", colour) > 20
    for name in ("roc", "reliability"):
        assert pixels(tmp_path / f"{name}.png").std() > 0


def test_the_calibration_error_is_that_of_the_metrics(tmp_path, predictions, texts):
    from mediax.metrics import classification

    scores, labels = predictions
    figures.reliability(tmp_path / "reliability.png", scores, labels, CLASSES)
    values = {metric.name: metric.value for metric in classification(scores, labels, CLASSES, resamples=0)}
    for name in CLASSES:
        assert f"{name} ({values[f'ece/{name}']:.3f})" in texts


def test_bins_are_closed_above():
    mean, share, count = figures._bins(np.array([0.0, 2 / 15, 0.14, 0.15, 1.0]), np.array([0, 1, 0, 1, 1]))
    np.testing.assert_allclose(mean, [0, 2 / 15, 0.145, 1])
    assert share.tolist() == [0, 1, 0.5, 1] and count.tolist() == [1, 1, 2, 1]


def test_wilson_intervals():
    low, high = figures._wilson(np.array([0.0, 0.5]), np.array([10, 100]))
    np.testing.assert_allclose(low, [0.0, 0.4038], atol=1e-4)
    np.testing.assert_allclose(high, [0.2775, 0.5962], atol=1e-4)


def test_confusion_counts_known_rows(tmp_path, texts):
    predicted, labels = [0, 0, 1, 2, 2], [0, 1, 1, np.nan, -1]
    figures.confusion(tmp_path / "confusion.png", predicted, labels, CLASSES)
    assert {"Confusion, n = 3", "Edema (1)", "Cardiomegaly (2)", "Fracture (0)", "1\n50%", "1\n100%"} <= set(texts)
    assert pixels(tmp_path / "confusion.png").std() > 0


def test_samples_say_what_is_right_and_wrong(tmp_path, images, texts):
    scores, labels = np.full((20, 3), 0.1), np.zeros((20, 3))
    scores[4], labels[4] = (0.9, 0.2, 0.8), (0, 1, 1)
    labels[5] = np.nan
    figures.samples(tmp_path / "s.png", images, sections=ALL, classes=CLASSES, labels=labels, scores=scores)
    first = texts.index("✗ Edema 0.90 absent")
    assert texts[first + 1 : first + 3] == ["✗ Cardiomegaly 0.20 present", "✓ Fracture 0.80 present"]
    assert texts.count("✓ none; Edema 0.10") == 18 and texts.count("? none; Edema 0.10") == 1
    assert shows(tmp_path / "s.png", figures.RIGHT) > 100 and shows(tmp_path / "s.png", figures.WRONG) > 50


def test_a_sheet_shows_its_sections_under_their_titles_and_no_other_image(tmp_path, images, texts):
    sections, captions = (
        {"worst, of 1,234 images": [7, 3], "best, of 1,234 images": [0]},
        [f"image {i}" for i in range(20)],
    )
    figures.samples(tmp_path / "s.png", images, sections=sections, classes=CLASSES, captions=captions)
    order = [text for text in texts if text in captions or text in sections]
    assert [text for text in order if text in sections] == [*sections]
    assert [text for text in order if text in captions] == ["image 7", "image 3", "image 0"]


def test_samples_of_exclusive_classes_go_by_the_highest_score(tmp_path, images, texts):
    scores, labels = np.tile([0.4, 0.35, 0.25], (20, 1)), np.tile([1.0, 0, 0], (20, 1))
    labels[3] = [0, 1, 0]
    options = {"labels": labels, "scores": scores, "exclusive": True}
    figures.samples(tmp_path / "s.png", images, sections=ALL, classes=CLASSES, **options)
    assert texts.count("✓ Edema 0.40 present") == 19
    assert "✗ Edema 0.40 absent" in texts and "✗ Cardiomegaly 0.35 present" in texts


def test_samples_draw_masks_and_boxes_of_truth_and_prediction(tmp_path, images, texts):
    masks = np.zeros((20, 40, 32, 3), np.uint8)
    masks[:, 10:20, 8:20, 0] = 1
    truth, found = Overlay(masks=masks), Overlay(masks=np.roll(masks, 6, 1))
    some = {"worst": [19, 18], "best": [0, 1]}
    figures.samples(tmp_path / "m.png", images, sections=some, classes=CLASSES, truth=truth, prediction=found)
    boxes = np.zeros((20, 2, 4), np.float32)
    boxes[:, 0] = [0.2, 0.2, 0.6, 0.7]
    found = Overlay(boxes=boxes + 0.1, box_labels=np.array([[1, -1]] * 20), box_scores=np.full((20, 2), 0.75))
    figures.samples(
        tmp_path / "b.png",
        np.repeat(images, 3, -1),
        sections=some,
        classes=CLASSES,
        truth=Overlay(boxes=boxes, box_labels=np.zeros((20, 2), int)),
        prediction=found,
        captions=[f"IoU {i / 20:.2f}" for i in range(20)],
    )
    for name in ("m.png", "b.png"):
        assert shows(tmp_path / name, figures.TRUTH) > 100
        assert shows(tmp_path / name, figures.PREDICTION) > 100
    assert texts.count("Edema") == 4 and texts.count("Cardiomegaly 0.75") == 4  # padding is not drawn
    assert "IoU 0.95" in texts and "IoU 0.90" in texts


def test_a_projection_has_a_panel_for_each_of_the_commonest_classes(tmp_path):
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(50, 2)), (rng.random((50, 12)) < 0.3).astype(float)
    labels[::5] = np.nan
    path = tmp_path / "projection.png"
    sizes = []
    for classes in (12, 1, 0):
        figures.projection(path, points, (0.5, 0.2), labels[:, :classes], [f"class {k}" for k in range(classes)])
        sizes.append(Image.open(path).size)
    assert sizes[0][1] > 2.5 * sizes[1][1] and sizes[1] == sizes[2]


def test_samples_draw_points_of_truth_and_prediction(tmp_path, images):
    points = np.full((20, 3, 2), [0.5, 0.25])
    points[:, 2] = np.nan
    path = tmp_path / "samples.png"
    overlays = {"truth": Overlay(points=points), "prediction": Overlay(points=points + 0.2)}
    figures.samples(path, images, sections=ALL, classes=(), **overlays)
    assert shows(path, figures.TRUTH) > 50 and shows(path, figures.PREDICTION) > 50
    figures.samples(path, images, sections=ALL, classes=(), truth=Overlay(points=np.full((20, 3, 2), np.nan)))
    assert shows(path, figures.TRUTH) == 0


def test_success_rates_count_the_known_cases(tmp_path, texts):
    figures.success_rates(
        tmp_path / "success.png", {"ours": [1, 2, np.nan, np.inf], "none": [np.nan] * 4}, 25, "pixels"
    )
    assert shows(tmp_path / "success.png", figures.BLUE) > 100
    assert {"ours (n = 3)", "none (n = 0)", "tolerance in pixels"} <= set(texts)


def test_scores_that_are_not_finite_are_refused(tmp_path, predictions):
    scores, labels = predictions
    scores[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 600 scores"):
        figures.roc(tmp_path / "roc.png", scores, labels, CLASSES)
    with pytest.raises(ValueError, match=r"expected both \[N,2\]"):
        figures.roc(tmp_path / "roc.png", scores, labels, CLASSES[:2])


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, predictions):
    path = tmp_path / "roc.png"
    figures.roc(path, *predictions, CLASSES)
    before = path.read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"roc\.png: cannot be written"):
        figures.roc(path, *predictions, CLASSES)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_figures_leave_the_callers_matplotlib_alone(tmp_path, predictions):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.roc(tmp_path / "roc.png", *predictions, CLASSES)
    assert dict(matplotlib.rcParams) == before
    assert Image.open(io.BytesIO((tmp_path / "roc.png").read_bytes())).format == "PNG"


def test_models_are_drawn_over_each_other(tmp_path, predictions, texts):
    scores, labels = predictions
    models = {"first $model": (scores, labels), "_second": (1 - scores, labels)}
    figures.compare_roc(tmp_path / "roc.png", models, CLASSES)
    legend = [text for text in texts if "model" in text or "second" in text]
    assert sum("first" in text for text in legend) == sum("second" in text for text in legend) == 2  # of three classes
    assert shows(tmp_path / "roc.png", figures.BLUE) > 100 and shows(tmp_path / "roc.png", figures.ORANGE) > 100


def test_froc_reads_sensitivity_at_the_marked_rates(tmp_path, texts):
    found = (np.array([0.0, 0.0, 0.5, 10.0]), np.array([0.25, 0.5, 0.5, 0.5]))
    curves = {"detector": found, "blind": (np.array([1.0, 2.0]), np.zeros(2)), "silent": (np.zeros(0), np.zeros(0))}
    figures.froc(tmp_path / "froc.png", curves, iou=0.2)
    assert {"0.500  detector", "0.000  blind", "0.000  silent", "1/8", "8"} <= set(texts)
    assert "FROC, hits at an IoU above 0.2" in texts


def test_froc_shows_the_rates_that_a_protocol_judges_at(tmp_path, texts):
    steps = (np.array([0.0, 0.1, 0.1, 0.4]), np.array([0.2, 0.2, 0.8, 0.8]))
    rates = (0.2, 0.05, 0.1)
    figures.froc(tmp_path / "upper.png", {"upper": steps}, iou=0.5, rates=rates)
    figures.froc(tmp_path / "lower.png", {"lower": steps}, iou=0.5, rates=rates, lower_end=True, reached=True)
    assert {"0.05", "0.1", "0.2", "0.600  upper", "0.400  lower"} <= set(texts) and not {"1/8", "8"} & set(texts)
    assert "FROC, hits at an IoU of 0.5 or more" in texts


def test_learning_curves_overlay_runs(tmp_path, texts):
    rows = [{"step": step, "train/nih/loss": 1 / step, "validation/findings/auroc/macro": 0.5} for step in range(1, 40)]
    logs = {"a": rows, "b": [*rows[:1], {"step": 2, "train/nih/loss": np.nan}], "c": []}
    assert figures.learning_curves(tmp_path / "learning.png", logs, "findings/auroc/macro")
    assert {"Training loss", "findings/auroc", "a", "b"} <= set(texts) and "c" not in texts
    assert not figures.learning_curves(tmp_path / "none.png", {"c": []}, "findings/auroc/macro")
    assert not (tmp_path / "none.png").exists()
