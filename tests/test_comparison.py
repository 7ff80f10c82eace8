"""Reports on runs: who is best, what cannot be told apart, what was left out; degenerate and hostile input."""

import dataclasses
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_document import Parsed

from mediax import box_metrics, comparison, evaluate, figures, metrics, protocols, report, run
from mediax.errors import InputError
from mediax.metrics import Metric
from mediax.report import Result
from mediax.report import __main__ as command_line

CLASSES = ("Nodule/Mass", "Edema")
PROTOCOL = "image (every image is a case, all classes; thresholds from validation)"


@pytest.fixture
def truth():
    """Labels of 120 images of 60 patients."""
    rng = np.random.default_rng(0)
    labels = (rng.random((120, 2)) < 0.4).astype(np.float32)
    labels[:5, 0] = np.nan
    return labels, np.repeat([f"patient {i}" for i in range(60)], 2)


def scores(labels, noise, seed=0):
    rng = np.random.default_rng(seed)
    known = np.nan_to_num(labels, nan=0.5)
    return (1 / (1 + np.exp(-(2 * known - 1 + noise * rng.normal(size=labels.shape))))).astype(np.float32)


def config(backbone="resnet", seed=0, **changes):
    task = {"name": "classification", "head": {"name": "pooled"}}
    stream = {"dataset": "chestxray14", "build": {"size": 224}, "tasks": {"findings": task}}
    settings = {"seed": seed, "backbone": {"name": backbone, "options": {"variant": "18"}}}
    return settings | {"streams": {"nih": stream}, "evaluations": {"test": {"stream": ""}}} | changes


def write_result(folder, found, *, settings=None, command=("python", "-m", "mediax.main"), **changes):
    """Writes the results.json of a run whose one result has the metrics `found`."""
    settings = config() if settings is None else settings
    values = {"evaluation": "test", "dataset": "chestxray14", "split": "test", "task": "findings"}
    values |= {"protocol": PROTOCOL, "phantom": False} | changes
    about = {"command": list(command), "config": settings, "seed": settings.get("seed"), "step": 10}
    report.write_results(folder, run=about, results=[Result(metrics=tuple(found), **values)])


def write_run(folder, predicted, truth, *, keep=True, **options):
    """Writes a run that classified, with its predictions as a run writes them."""
    labels, patients = truth
    found = metrics.classification(predicted, labels, CLASSES, patients, resamples=200)
    write_result(folder, found, **options)
    if keep:
        keep_predictions(folder, {"scores": predicted}, {"labels": labels}, patients, found, classes=CLASSES)


def keep_predictions(folder, predictions, targets, patients, found, **task):
    evaluation = evaluate.Evaluation(
        name="test",
        dataset="chestxray14",
        split="test",
        protocol=protocols.get("image"),
        tasks={"findings": SimpleNamespace(**task)},
        batches=None,
        size=len(patients),
        calibrate_on="test",
        during_training=False,
        rows="",
    )
    host = {"id": np.array([f"image {i}" for i in range(len(patients))]), "patient_id": patients}
    rows = evaluate.Collected({"findings": predictions}, {"findings": targets}, host, 0.0)
    run._save_predictions(folder / "predictions", evaluate.Score(evaluation, "findings", found), rows)


def rows_of(folder):
    """The rows of the tables of a report that name a dataset: cells without emphasis and escapes."""
    lines = (folder / "report.md").read_text().splitlines()
    cells = [line.replace("\\", "").strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [row for row in cells if "chestxray14" in row[0]]


def groups_of(*folders):
    problems = []
    runs, problems = comparison.find_runs(folders)
    groups = comparison.arrange(comparison.scored_of(runs, problems), problems)
    assert not problems
    return groups


def entry(predicted, labels, patients, resamples):
    """An entry of one run whose figure is the macro mean of AUROC."""
    found = metrics.classification(predicted, labels, range(labels.shape[1]), patients, resamples=resamples)
    (figure,) = [one for one in found if one.name == "auroc/macro"]
    arrays = {"case": np.arange(len(labels)), "group": np.arange(len(labels)) if patients is None else patients}
    arrays |= {"metric": np.array([figure.name]), "draws": np.float32([figure.draws])}
    figure = dataclasses.asdict(figure)
    return comparison.Entry("", (comparison.Scored(None, {}, figure, (figure,), "", "", "", arrays),))


def test_a_difference_draws_the_same_patients_for_both_runs(tmp_path, truth):
    labels, patients = truth
    a, b = scores(labels, 1.0, seed=1), scores(labels, 1.0, seed=2)
    write_run(tmp_path / "a", a, truth)
    write_run(tmp_path / "b", b, truth, settings=config("vit"))
    ((row,),) = [group.rows for group in groups_of(tmp_path)]
    first, second = row.entries
    found = comparison.difference(first, second)

    def auroc(predicted, rows):
        known = ~np.isnan(labels[rows])
        return np.mean([roc_auc_score(labels[rows][known[:, k], k], predicted[rows][known[:, k], k]) for k in (0, 1)])

    generator, draws = np.random.default_rng(0), []
    for _ in range(200):
        drawn = generator.integers(60, size=60)
        rows = np.concatenate([np.flatnonzero(patients == f"patient {one}") for one in drawn])
        draws.append(auroc(a, rows) - auroc(b, rows))
    below, above = (np.array(draws) <= 0).sum(), (np.array(draws) >= 0).sum()
    expected = [auroc(a, np.arange(120)) - auroc(b, np.arange(120)), *np.percentile(draws, [2.5, 97.5])]
    np.testing.assert_allclose((found.value, found.low, found.high), expected, atol=1e-6)
    assert below and above and found.p_value == pytest.approx(min(1, 2 * (min(below, above) + 1) / 201))
    assert found.basis == "paired bootstrap, 60 patients"
    swapped = comparison.difference(second, first)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert swapped.p_value == found.p_value
    comparison.write([tmp_path], tmp_path / "out")
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert f"{found.p_value:.3g}" in text and "twice the share on the rarer side of zero" in text


def test_truths_differ_where_what_both_runs_keep_does(truth):
    labels, patients = truth
    first, second = (entry(scores(labels, 1.0, seed=seed), labels, patients, 100) for seed in (1, 2))
    for each in (first, second):
        each.scored[0].arrays["target/labels"] = labels.copy()
    second.scored[0].arrays["target/masks_known"] = np.ones(len(labels), bool)  # a detector that learns masks as well
    assert "truths differ" not in comparison.difference(first, second).basis
    second.scored[0].arrays["target/labels"] += 1
    assert "; the truths differ" in comparison.difference(first, second).basis


def test_the_p_value_of_a_difference_is_never_zero(truth):
    labels, patients = truth
    perfect, guessed = (entry(scores(labels, noise), labels, patients, 100) for noise in (0.1, 99.0))
    assert comparison.difference(perfect, guessed).p_value == pytest.approx(2 / 101)
    same = comparison.difference(perfect, perfect)
    assert (same.value, same.low, same.high, same.p_value, same.mark) == (0, 0, 0, 1, "≈")
    single = entry(scores(labels, 1.0), labels, np.zeros(120, int), 100)
    assert np.isnan(comparison.difference(single, single).p_value)


def test_the_p_value_of_equal_runs_is_uniform():
    p_values = []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        labels = (generator.random((80, 1)) < 0.4).astype(float)
        a, b = (entry(one * 0.5 + 0.3 * labels, labels, None, 100) for one in generator.random((2, 80, 1)))
        p_values.append(comparison.difference(a, b).p_value)
    assert 0.4 < np.mean(p_values) < 0.6
    assert np.mean(np.array(p_values) < 0.1) < 0.2


def test_results_with_fields_of_an_earlier_mediax_are_read(tmp_path):
    write_result(tmp_path / "a", [Metric("auroc/macro", 0.9, 0.8, 1.0, 50)])
    content = json.loads((tmp_path / "a" / "results.json").read_text())
    content["results"][0]["metrics"][0]["p_value"] = None
    (tmp_path / "a" / "results.json").write_text(json.dumps(content))
    assert comparison.write([tmp_path], tmp_path / "out") == [] and len(rows_of(tmp_path / "out")) == 1


def test_a_row_marks_what_cannot_be_told_from_the_best(tmp_path, truth):
    write_run(tmp_path / "best", scores(truth[0], 0.8), truth, settings=config("resnet"))
    write_run(tmp_path / "near", scores(truth[0], 1.0, seed=1), truth, settings=config("swin"))
    write_run(tmp_path / "far", scores(truth[0], 9.0), truth, settings=config("vit"))
    assert comparison.write([tmp_path], tmp_path / "out") == []
    ((_, n, trivial, best, near, far),) = rows_of(tmp_path / "out")
    assert n == "120" and trivial == "–"
    assert best.startswith("**0.9") and best.endswith(")**")
    assert near.endswith(") ≈") and not far.endswith("≈)") and not far.endswith("≈")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "paired bootstrap, 60 patients" in text
    assert (tmp_path / "out" / "figures" / "1_1_roc.png").is_file() and "figures/1_1_roc.png" in text


def test_without_predictions_intervals_are_compared_and_the_mark_says_so(tmp_path, truth):
    write_run(tmp_path / "best", scores(truth[0], 0.8), truth)
    write_run(tmp_path / "near", scores(truth[0], 0.82), truth, settings=config("swin"), keep=False)
    write_run(tmp_path / "far", scores(truth[0], 9.0), truth, settings=config("vit"), keep=False)
    comparison.write([tmp_path], tmp_path / "out")
    ((*_, near, far),) = rows_of(tmp_path / "out")
    assert near.endswith(" (≈)") and not far.endswith("≈)")
    assert "overlap of intervals" in (tmp_path / "out" / "report.md").read_text()


def test_other_cases_are_not_paired(tmp_path, truth):
    labels, patients = truth
    write_run(tmp_path / "a", scores(labels, 1.0), truth)
    write_run(tmp_path / "b", scores(labels, 1.1), (labels, patients[::-1].repeat(2)[:120]), settings=config("vit"))
    ((row,),) = [group.rows for group in groups_of(tmp_path)]
    assert comparison.difference(*row.entries).basis == "overlap of intervals"


def test_predictions_without_an_interval_leave_a_question(tmp_path):
    for name, value in (("resnet", 0.9), ("vit", 0.8)):
        found = [Metric("auroc/macro", value, np.nan, np.nan, 50)]
        write_result(tmp_path / name, found, settings=config(name))
    comparison.write([tmp_path], tmp_path / "out")
    assert [row[3:] for row in rows_of(tmp_path / "out")] == [["**0.900**", "0.800 ?"]]


def test_seeds_of_one_config_are_one_entry(tmp_path, truth):
    for seed in (2, 10):
        write_run(tmp_path / f"seed{seed}", scores(truth[0], 0.8, seed), truth, settings=config(seed=seed))
    write_run(tmp_path / "again", scores(truth[0], 0.8, 2), truth, settings=config(seed=2))
    write_run(tmp_path / "other", scores(truth[0], 0.9, 7), truth, settings=config("vit"))
    ((row,),) = [group.rows for group in groups_of(tmp_path)]
    several, single = row.entries
    assert [one.run.about["seed"] for one in several.scored] == [2, 10] and len(single.scored) == 1
    values = [one.value for one in several.scored]
    comparison.write([tmp_path], tmp_path / "out")
    shown = rows_of(tmp_path / "out")[0][3]
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} (n = 2)" in shown
    draws = comparison._paired_draws([*several.scored, *single.scored])
    expected = np.percentile(draws[:2].mean(0) - draws[2], 2.5)
    assert comparison.difference(several, single).low == pytest.approx(expected)


def test_a_repeated_run_of_other_figures_is_left_out_by_name(tmp_path):
    for name, value in (("a", 0.501), ("b", 0.501), ("c", 0.99)):
        write_result(tmp_path / name, [Metric("auroc/macro", value, 0.4, 1.0, 50)], settings=config(seed=1))
    problems = comparison.write([tmp_path], tmp_path / "out")
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'c'} (test, findings): left out as a repetition of {tmp_path / 'a'} (")
    assert "(auroc/macro 0.990, there 0.501); give one of them another seed" in problems[0]
    assert "left out as a repetition" in (tmp_path / "out" / "report.md").read_text()


def test_configs_of_one_model_are_named_by_what_differs(tmp_path):
    found = [Metric("auroc/macro", 0.9, 0.8, 1.0, 50)]
    for steps in (100, 20):
        write_result(tmp_path / f"run{steps}", found, settings=config(steps=steps))
    ((row,),) = [group.rows for group in groups_of(tmp_path)]
    assert [entry.label for entry in row.entries] == ["resnet 18 + pooled, steps 20", "resnet 18 + pooled, steps 100"]
    write_result(tmp_path / "run20", found, settings=config(steps=20, a=1, b=2))
    ((row,),) = [group.rows for group in groups_of(tmp_path)]
    assert [entry.label for entry in row.entries] == ["resnet 18 + pooled, run20", "resnet 18 + pooled, run100"]


def test_phantom_and_real_never_share_a_row(tmp_path):
    found = [Metric("auroc/macro", 0.9, 0.8, 1.0, 50)]
    write_result(tmp_path / "real", found)
    write_result(tmp_path / "phantom", found, settings=config(phantom={"chestxray14": {"count": 9}}), phantom=True)
    comparison.write([tmp_path], tmp_path / "out")
    real, phantom = rows_of(tmp_path / "out")
    assert real[0] == "chestxray14" and phantom[0] == "PHANTOM chestxray14, count 9"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "### PHANTOM phantom" in text and "**Phantom data: these figures say nothing" in text


def test_figures_that_are_undefined_are_dashes(tmp_path):
    nothing = [Metric("auroc/macro", np.nan, np.nan, np.nan, 0, "no positives")]
    write_result(tmp_path / "nan", nothing)
    write_result(tmp_path / "also", nothing, settings=config("vit"))
    comparison.write([tmp_path], tmp_path / "out")
    assert rows_of(tmp_path / "out") == [["chestxray14", "0", "–", "–", "–"]]
    assert "### chestxray14" not in (tmp_path / "out" / "report.md").read_text()  # no heading above nothing
    write_result(tmp_path / "also", [Metric("auroc/macro", 0.8, 0.7, 0.9, 5)], settings=config("vit"))
    comparison.write([tmp_path], tmp_path / "out")
    assert rows_of(tmp_path / "out") == [["chestxray14", "0; 5", "–", "–", "**0.800 (0.700 to 0.900)**"]]


def test_of_errors_the_least_is_best_and_the_trivial_score_is_beside(tmp_path):
    good, worse = Metric("", 7.0, 6.0, 8.0, 50, trivial=9.0), Metric("", 8.5, 7.5, 9.5, 50, trivial=9.0, reader=4.0)
    good, worse = ([replace(one, name=name) for name in ("mae/macro", "mae/Age")] for one in (good, worse))
    write_result(tmp_path / "good", good)
    write_result(tmp_path / "worse", worse, settings=config("vit"))
    comparison.write([tmp_path], tmp_path / "out")
    ((_, *cells),) = rows_of(tmp_path / "out")
    assert cells == ["50", "9.000", "4.000; –", "**7.000 (6.000 to 8.000)**", "8.500 (7.500 to 9.500) (≈) ✗"]
    assert "lower is better" in (tmp_path / "out" / "report.md").read_text()


def test_the_protocol_names_the_headline_figure(tmp_path):
    found = [Metric(name, value, 0.0, 1.0, 50) for name, value in (("auroc/macro", 0.9), ("cohen_kappa", 0.4))]
    found.append(Metric("quadratic_weighted_kappa", 0.5, 0.4, 0.6, 50))
    protocol = protocols.get("eyepacs/kappa")
    write_result(tmp_path / "a", found, protocol=f"{protocol.name} ({protocol.description}; thresholds from x)")
    write_result(tmp_path / "b", found, protocol="of an older mediax (gone)")
    assert [group.metric for group in groups_of(tmp_path)] == ["quadratic_weighted_kappa", "auroc/macro"]


def test_every_headline_figure_of_a_protocol_is_shown(tmp_path):
    headlines = {name: protocol.headline for name, protocol in protocols.PROTOCOLS.items() if protocol.headline}
    headlines["coco"] += ("mask_ap/macro",)
    values = {}
    for name, figure_names in headlines.items():
        found = [Metric("loss_of_nobody", 0.5, 0.4, 0.6, 9)]
        for figure in figure_names:
            values[name, figure] = value = 0.001 * (len(values) + 100)
            found.insert(0, Metric(figure, value, 0.0, 0.9, 9, reader=value + 0.5))
        write_result(tmp_path / name.replace("/", "_"), found, protocol=f"{name} (x)")
    comparison.write([tmp_path], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text().replace("\\", "")
    page = Parsed((tmp_path / "out" / "report.html").read_text()).text
    for (_, figure), value in values.items():
        for shown in (text, page):
            assert figure in shown and f"{value:.3f} (0.000 to 0.900)" in shown and f"{value + 0.5:.3f}" in shown
    assert "loss_of_nobody" not in text
    for group in groups_of(tmp_path):
        name = group.protocol.removesuffix(" (x)")
        assert group.metric == group.figures[0] == headlines[name][0] and set(group.figures) == set(headlines[name])


def test_figures_are_rows_of_one_table_and_the_first_is_compared(tmp_path):
    protocol = protocols.get("drishti_gs")
    for name, disc, cup, error in (("resnet", 0.95, 0.8, 0.1), ("vit", 0.93, 0.9, 0.05)):
        found = [Metric("ratio_error/macro", error, error - 0.01, error + 0.01, 40, trivial=0.2)] * (name == "vit")
        found += [Metric("dice/Optic Cup", cup, cup - 0.01, cup + 0.01, 41)]
        found += [Metric("dice/Optic Disc", disc, disc - 0.01, disc, 42)]
        write_result(tmp_path / name, found, settings=config(name), protocol=f"{protocol.name} (x)")
        log = [{"step": step, "train/loss": 1.0, "validation/findings/dice/Optic Disc": 0.5} for step in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    comparison.write([tmp_path], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[:4] == [
        "| dataset | figure | n | trivial predictor | resnet 18 + pooled | vit 18 + pooled |",
        "| chestxray14, 2 classes | dice/Optic Disc | 42 | – | **0.950 (0.940 to 0.950)** | 0.930 (0.920 to 0.930) |",
        "|  | dice/Optic Cup | 41 | – | 0.800 (0.790 to 0.810) | **0.900 (0.890 to 0.910)** |",
        "|  | ratio\\_error/macro | 40 | 0.200 |  | **0.050 (0.040 to 0.060)** |",
    ]
    assert "ratio\\_error/macro (lower is better). Below the table the models are compared by the first." in text
    assert text.count("difference from the best") == text.count("*Training: chestxray14") == 1
    assert text.count("\n## Classification") == 1


def test_detections_are_compared_by_froc(tmp_path):
    rng = np.random.default_rng(0)
    true = np.tile(np.float32([0.2, 0.2, 0.5, 0.5]), (20, 2, 1))
    targets = {"boxes": true, "box_labels": np.zeros((20, 2), int)}
    targets |= {"box_valid": np.tile([True, False], (20, 1)), "boxes_known": np.arange(20) > 0}
    found = [Metric("ap/macro", 0.5, 0.4, 0.6, 20)]
    patients = np.arange(20).astype(str)
    for name, shift in (("resnet", 0.0), ("vit", 0.5)):
        boxes = np.stack([true[:, 0] + shift, true[:, 0] + 0.4], 1)
        predictions = {"boxes": boxes, "scores": rng.random((20, 2)), "labels": np.zeros((20, 2), int)}
        write_result(tmp_path / name, found, settings=config(name))
        keep_predictions(tmp_path / name, predictions, targets, patients, found)
    ((row,),) = [group.rows for group in groups_of(tmp_path)]
    perfect, blind = comparison._detections(
        {entry.label: entry.scored[0] for entry in row.entries}, protocols.get("coco")
    ).values()
    rate, sensitivity = comparison._froc(perfect, 0.5)
    assert sensitivity[-1] == 1 and rate[-1] == 1 and (np.diff(rate) >= 0).all()
    assert comparison._froc(blind, 0.5)[1].max() == 0
    # Of images that have a box alone, those of any class: what the protocol of the row counts.
    arrays = row.entries[0].scored[0].arrays
    some = arrays | {"target/box_valid": np.tile([True, False], (20, 1)) & (np.arange(20) % 2 == 0)[:, None]}
    other = some | {"prediction/labels": np.ones((20, 2), int)}
    scored = {"other": dataclasses.replace(row.entries[0].scored[0], arrays=other)}
    for protocol, images, hits in (("coco", 19, 0), ("tbx11k/tuberculosis_agnostic", 9, 9)):
        found = comparison._detections(scored, protocols.get(protocol))
        assert len(found["other"].true) == images
        assert comparison._froc(found["other"], 0.5)[1].max() * 9 == hits
    comparison.write([tmp_path], tmp_path / "out")
    assert "FROC" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "figures" / "1_1_froc.png").is_file()


def test_equal_scores_are_one_point_of_froc_as_for_the_scorer():
    box, other = np.float32([[0.1, 0.1, 0.4, 0.4]]), np.float32([[0.5, 0.5, 0.9, 0.9]])
    found = {"boxes": np.concatenate([box, other]), "scores": np.array([0.7, 0.7]), "labels": np.zeros(2, int)}
    true = {"boxes": box, "labels": np.zeros(1, int)}
    boxes = box_metrics.Boxes([found], [true], np.zeros(1, int), ("Nodule",))
    rates, sensitivity = comparison._froc(boxes, 0.5)
    assert (rates.tolist(), sensitivity.tolist()) == ([1.0], [1.0])
    for lower_end in (False, True):
        options = {"rates": (0.25, 1.0, 2.0), "lower_end": lower_end}
        scored = {one.name: one.value for one in box_metrics.froc(boxes, [0], iou=0.5, **options, resamples=0)}
        expected = [scored[f"sensitivity@{rate:g}/Nodule"] for rate in options["rates"]]
        assert box_metrics.sensitivity_at(options["rates"], rates, sensitivity, lower_end).tolist() == expected


def test_froc_is_read_as_its_protocol_reads_it(tmp_path, monkeypatch):
    true = np.tile(np.float32([0.2, 0.2, 0.5, 0.5]), (9, 1, 1))
    targets = {"boxes": true, "box_labels": np.zeros((9, 1), int)}
    targets |= {"box_valid": np.ones((9, 1), bool), "boxes_known": np.ones(9, bool)}
    predictions = {"boxes": true, "scores": np.full((9, 1), 0.5), "labels": np.zeros((9, 1), int)}
    figure = [Metric("froc/macro", 0.5, 0.4, 0.6, 9)]
    predictions = {name: np.repeat(values, 2, 1) for name, values in predictions.items()}  # each box a second time
    predictions["scores"][:, 1] = 0.4
    asked = {}
    draw = figures.froc

    def noted(path, lines, **options):
        asked[options["iou"], options["reached"]] = (*lines.values(), options)
        draw(path, lines, **options)

    monkeypatch.setattr(figures, "froc", noted)
    for name in ("chestxdet/froc", "coco", "node21/detection"):
        write_result(tmp_path / name, figure, protocol=f"{name} (x)")
        keep_predictions(tmp_path / name, predictions, targets, np.arange(9).astype(str), figure)
    comparison.write([tmp_path], tmp_path / "out")
    assert asked[0.5, True][1] == {"iou": 0.5, "reached": True, "rates": (0.05, 0.1, 0.2), "lower_end": True}
    np.testing.assert_array_equal(asked[0.5, False][1]["rates"], figures.FROC_RATES)
    assert asked[0.5, False][1]["lower_end"] is False
    np.testing.assert_array_equal(asked[0.5, False][0], [[0, 1], [1, 1]])
    np.testing.assert_array_equal(asked[0.2, False][0], [[0], [1]])  # NODE21 leaves the second ones out


def test_hostile_names_stay_text(tmp_path, truth):
    hostile = "<script>alert(1)</script>|a|`b`"
    settings = config(hostile)
    for name, noise in (("a", 1.0), ("b <i>|", 1.2)):
        settings = config(hostile if name == "a" else "vit")
        command = ("python", f"--workdir={hostile}")
        write_run(tmp_path / name, scores(truth[0], noise), truth, settings=settings, command=command)
        (tmp_path / name / "metrics.jsonl").write_text(
            '{"step": 1, "train/loss": 1.0}\n{"step": 2, "train/loss": 0.5}\n'
        )
    write_result(tmp_path / "c", [Metric("auroc/macro", 0.9, 0.8, 1, 5)], dataset=hostile, protocol=f"{hostile} (x)")
    comparison.write([tmp_path], tmp_path / "out")
    parsed = Parsed((tmp_path / "out" / "report.html").read_text())
    names = {name for name, _ in parsed.tags}
    assert "script" not in names and "i" not in names and parsed.open == [] and hostile in parsed.text
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in parsed.tags)
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert not any("<script>" in line for line in lines if not line.startswith("python"))
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("| ") and "18 + pooled" in line}
    assert widths <= {5, 6, 7}


def test_one_run_is_a_report_with_its_command_and_figures(tmp_path, truth):
    write_run(tmp_path / "only", scores(truth[0], 1.0), truth, command=("python", "--workdir=a b"))
    figures.roc(tmp_path / "only" / "roc_test.png", scores(truth[0], 1.0), truth[0], CLASSES)
    assert command_line.main([str(tmp_path / "only"), f"--out={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "python '--workdir=a b'" in text and "### only" in text and "difference from the best" not in text
    copy = tmp_path / "out" / "figures" / "run1_roc_test.png"
    assert f"figures/{copy.name}" in text and copy.read_bytes() == (tmp_path / "only" / "roc_test.png").read_bytes()


def test_incomplete_and_foreign_folders_are_named_and_skipped(tmp_path, capsys):
    write_result(tmp_path / "runs" / "good", [Metric("auroc/macro", 0.9, 0.8, 1.0, 50)])
    (tmp_path / "runs" / "unfinished" / "checkpoints").mkdir(parents=True)
    for name, content in (("foreign", '{"accuracy": 1}'), ("torn", '{"run": '), ("list", "[]")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "results.json").write_text(content)
    changed = json.loads((tmp_path / "runs" / "good" / "results.json").read_text())
    changed["results"][0]["metrics"][0]["value"] = "high"
    (tmp_path / "runs" / "changed").mkdir()
    (tmp_path / "runs" / "changed" / "results.json").write_text(json.dumps(changed))
    assert command_line.main([str(tmp_path / "runs"), str(tmp_path / "absent"), f"--out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6 and all(line.startswith("mediax: ") for line in said)
    expected = (
        "unfinished: found no results.json",
        "foreign",
        "torn",
        "list",
        "metrics[0].value: found 'high'",
        "absent",
    )
    for words in expected:
        assert any(words in line for line in said), words
    assert len(rows_of(tmp_path / "out")) == 1
    assert "## Left out" in (tmp_path / "out" / "report.md").read_text()


def test_damaged_predictions_are_named_and_the_run_still_counts(tmp_path, truth):
    write_run(tmp_path / "a", scores(truth[0], 1.0), truth)
    path = tmp_path / "a" / "predictions" / "test_findings.npz"
    path.write_bytes(path.read_bytes()[:200])
    (problem,) = comparison.write([tmp_path / "a"], tmp_path / "out")
    assert str(path) in problem and "--mode=evaluate" in problem and len(rows_of(tmp_path / "out")) == 1


def test_no_run_at_all_is_an_input_error(tmp_path, capsys):
    with pytest.raises(InputError, match="no finished run to report on"):
        comparison.write([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert command_line.main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 2
    with pytest.raises(SystemExit) as stopped:
        command_line.main([f"--out={tmp_path / 'out'}"])
    assert stopped.value.code == 2
