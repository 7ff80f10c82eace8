"""The metrics equal scikit-learn, by value and in each resample; their intervals are those of patients, not of rows."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from mediax import metrics
from mediax.errors import InputError

CLASSES = ["Edema", "Effusion", "Fracture"]


def example(rows=300, classes=3, seed=0, unknown=0.2, decimals=None):
    """Labels that follow the scores weakly, with unknown entries; rounding the scores makes ties."""
    generator = np.random.default_rng(seed)
    scores = generator.random((rows, classes))
    labels = (generator.random((rows, classes)) < 0.2 + 0.5 * scores).astype(float)
    labels[generator.random((rows, classes)) < unknown] = np.nan
    groups = generator.integers(rows // 3 + 1, size=rows)
    return (scores if decimals is None else scores.round(decimals)), labels, groups


def one_hot(rows=300, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(classes, size=rows)
    logits = generator.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return scores, np.eye(classes)[truth], generator.integers(rows // 3, size=rows)


def calibration_error(label, score, weight, bins=15):
    error = 0.0
    for b in range(bins):
        inside = (score > b / bins) & (score <= (b + 1) / bins)
        if b == 0:
            inside |= score == 0
        if weight[inside].sum():
            gap = np.average(label[inside], weights=weight[inside]) - np.average(score[inside], weights=weight[inside])
            error += abs(gap) * weight[inside].sum() / weight.sum()
    return error


def per_class_reference(label, score, weight, threshold=0.5, call=None):
    """scikit-learn's figures of one class, in the order of PER_CLASS."""
    known = ~np.isnan(label) & (weight > 0)
    call = (score >= threshold if call is None else call)[known]
    label, score, weight = label[known], score[known], weight[known]
    weighted = {"sample_weight": weight}
    (tn, fp), (fn, tp) = reference.confusion_matrix(label, call, labels=[0, 1], **weighted)
    return [
        reference.roc_auc_score(label, score, **weighted),
        reference.average_precision_score(label, score, **weighted),
        reference.accuracy_score(label, call, **weighted),
        reference.f1_score(label, call, **weighted),
        reference.precision_score(label, call, zero_division=0, **weighted),
        tp / (tp + fn),
        tn / (tn + fp),
        reference.brier_score_loss(label, score, **weighted),
        calibration_error(label, score, weight),
    ]


def overall_reference(truth, predicted, weight):
    weighted = {"sample_weight": weight}
    return [
        reference.accuracy_score(truth, predicted, **weighted),
        reference.balanced_accuracy_score(truth, predicted, **weighted),
        reference.cohen_kappa_score(truth, predicted, **weighted),
        reference.cohen_kappa_score(truth, predicted, weights="quadratic", **weighted),
    ]


def named(results):
    return {result.name: result for result in results}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_values_equal_sklearn(decimals):
    scores, labels, groups = example(decimals=decimals)
    thresholds = [0.3, 0.5, 0.7]
    results = named(metrics.classification(scores, labels, CLASSES, groups, thresholds=thresholds, resamples=0))
    expected = [per_class_reference(labels[:, k], scores[:, k], np.ones(300), thresholds[k]) for k in range(3)]
    for m, metric in enumerate(metrics.PER_CLASS):
        for k, name in enumerate(CLASSES):
            close(results[f"{metric}/{name}"].value, expected[k][m])
            assert results[f"{metric}/{name}"].n == (~np.isnan(labels[:, k])).sum()
        close(results[f"{metric}/macro"].value, np.mean([row[m] for row in expected]))
    assert len(results) == len(metrics.PER_CLASS) * 4
    assert all(result.note == "" and math.isnan(result.low) for result in results.values())


@pytest.mark.parametrize("decimals", [None, 1])
def test_each_resample_equals_sklearn_with_sample_weight(decimals):
    scores, labels, groups = example(decimals=decimals)
    split = metrics.checked_split(scores, labels, CLASSES, groups, None)
    thresholds = np.array([0.3, 0.5, 0.7])
    evaluate = metrics.per_class_evaluator(split, thresholds)
    weights = next(metrics.multiplicities(split.patients.max() + 1, 8, seed=3, chunk=8))
    assert weights.max() > 1 and weights.min() == 0
    figures = evaluate(weights)
    for r, multiplicity in enumerate(weights):
        row_weight = multiplicity[split.patients]
        for k in range(3):
            close(figures[r, k], per_class_reference(labels[:, k], scores[:, k], row_weight, thresholds[k]))


def test_each_exclusive_resample_equals_sklearn_with_sample_weight():
    scores, labels, groups = one_hot()
    split = metrics.checked_split(scores, labels, None, groups, None)
    weights = next(metrics.multiplicities(split.patients.max() + 1, 8, seed=3, chunk=8))
    figures = metrics.overall_evaluator(split)(weights)
    for r, multiplicity in enumerate(weights):
        expected = overall_reference(labels.argmax(axis=1), scores.argmax(axis=1), multiplicity[split.patients])
        close(figures[r], expected)


def test_exclusive_values_equal_sklearn_and_leave_out_unknown_rows():
    scores, labels, groups = one_hot()
    truth, predicted = labels.argmax(axis=1), scores.argmax(axis=1)
    labels[:50] = np.nan
    results = named(metrics.classification(scores, labels, list("0123"), groups, exclusive=True, resamples=50))
    found = [results[metric] for metric in metrics.OVERALL]
    close([metric.value for metric in found], overall_reference(truth[50:], predicted[50:], np.ones(250)))
    assert all(metric.n == 250 and metric.low < metric.value < metric.high for metric in found)


def test_exclusive_classes_are_called_by_the_highest_score():
    scores, labels, groups = one_hot()
    labels[:40] = np.nan
    assert (scores.max(axis=1) < 0.5).sum() > 20  # where a threshold of 0.5 would call nothing
    calls = np.eye(4, dtype=bool)[scores.argmax(axis=1)]
    results = named(metrics.classification(scores, labels, list("0123"), groups, exclusive=True, resamples=0))
    expected = [per_class_reference(labels[:, k], scores[:, k], np.ones(300), call=calls[:, k]) for k in range(4)]
    for m, metric in enumerate(metrics.PER_CLASS):
        close([results[f"{metric}/{k}"].value for k in range(4)], [row[m] for row in expected])
    close(results["sensitivity/macro"].value, results["balanced_accuracy"].value)


def test_two_exclusive_classes_have_one_auroc():
    scores, labels, _ = one_hot(classes=2)
    results = named(metrics.classification(scores, labels, ["benign", "malignant"], exclusive=True, resamples=0))
    close(results["auroc/benign"].value, results["auroc/malignant"].value)


def test_absent_class_is_left_out_of_balanced_accuracy():
    scores, labels, _ = one_hot(classes=4)
    present = labels[:, 3] == 0
    scores, labels = scores[present], labels[present]
    results = named(metrics.classification(scores, labels, list("abcd"), exclusive=True, resamples=0))
    with warnings.catch_warnings(action="ignore"):  # scikit-learn warns of the predicted class without a row
        expected = overall_reference(labels.argmax(axis=1), scores.argmax(axis=1), np.ones(len(labels)))
    close([results[metric].value for metric in metrics.OVERALL], expected)
    assert results["balanced_accuracy"].note == "left out: d (no rows in this split)"


def test_kappa_of_one_class_is_undefined():
    results = named(metrics.classification([[0.9, 0.1]] * 3, [[1, 0]] * 3, ["a", "b"], exclusive=True, resamples=9))
    assert results["top1_accuracy"].value == 1
    for metric in ("cohen_kappa", "quadratic_weighted_kappa"):
        assert math.isnan(results[metric].value) and "one and the same class" in results[metric].note


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.integers(0, 3)), min_size=1, max_size=25))
def test_any_ties_and_weights_equal_sklearn(entries):
    score, label, weight = np.array(entries, float).T
    score /= 15  # on the edges of the calibration bins
    if not {0, 1} <= set(label[weight > 0]):
        return
    split = metrics.checked_split(score[:, None], label[:, None], None, None, None)
    figures = metrics.per_class_evaluator(split, np.array([0.4]))(weight[None])[0, 0]
    close(figures, per_class_reference(label, score, weight, 0.4))


def test_calibration_bins_include_their_upper_edge():
    scores = np.array([[0.0], [1 / 15], [1.0]])
    labels = np.array([[0.0], [0.0], [1.0]])
    error = named(metrics.classification(scores, labels, ["a"], resamples=0))["ece/a"].value
    # 0 and 1/15 share the first bin: their mean gap, on two of three rows.
    close(error, (1 / 30) * 2 / 3)


def test_class_without_positives_is_undefined_and_not_in_the_macro():
    scores, labels, groups = example(unknown=0)
    labels[:, 1] = 0
    results = named(metrics.classification(scores, labels, CLASSES, groups, resamples=20))
    for metric in ("auroc", "average_precision", "f1", "precision", "sensitivity"):
        found = results[f"{metric}/Effusion"]
        assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)
        assert found.note == "no positives in this split: undefined, left out of the macro mean"
        macro = results[f"{metric}/macro"]
        close(macro.value, (results[f"{metric}/Edema"].value + results[f"{metric}/Fracture"].value) / 2)
        assert macro.note == "left out: Effusion (no positives in this split)"
    for metric in ("accuracy", "specificity", "brier", "ece"):
        assert results[f"{metric}/Effusion"].low <= results[f"{metric}/Effusion"].value
        assert results[f"{metric}/macro"].note == ""


def test_class_without_negatives_has_no_auroc_but_an_average_precision_of_one():
    scores, labels, _ = example(classes=1, unknown=0)
    results = named(metrics.classification(scores, np.ones_like(labels), ["a"], resamples=0))
    assert math.isnan(results["auroc/a"].value) and results["auroc/a"].note.startswith("no negatives")
    assert math.isnan(results["specificity/a"].value)
    assert results["average_precision/a"].value == 1


def test_equal_scores():
    _, labels, _ = example(classes=1, unknown=0)
    results = named(metrics.classification(np.full_like(labels, 0.5), labels, ["a"], resamples=20))
    assert results["auroc/a"].value == results["auroc/a"].low == results["auroc/a"].high == 0.5
    close(results["average_precision/a"].value, labels.mean())
    close(results["sensitivity/a"].value, 1)
    close(results["specificity/a"].value, 0)


def test_one_row_has_a_value_and_no_interval():
    results = named(metrics.classification([[0.75]], [[1]], ["a"], ["p"]))
    assert results["accuracy/a"].value == 1
    assert results["brier/a"].value == 0.0625
    assert math.isnan(results["accuracy/a"].low) and results["accuracy/a"].note == "a single patient: no interval"
    assert math.isnan(results["auroc/a"].value) and results["auroc/a"].note.startswith("no negatives")


def test_class_known_for_one_patient_has_no_interval():
    scores, labels, groups = example(unknown=0)
    labels[groups != groups[0], 0] = np.nan
    found = named(metrics.classification(scores, labels, CLASSES, groups, resamples=50))["brier/Edema"]
    assert found.value > 0 and math.isnan(found.low) and found.note == "a single patient: no interval"


def test_unknown_class_and_empty_split():
    scores, labels, groups = example(unknown=0)
    labels[:, 2] = np.nan
    results = named(metrics.classification(scores, labels, CLASSES, groups, resamples=5))
    for metric in metrics.PER_CLASS:
        assert math.isnan(results[f"{metric}/Fracture"].value) and results[f"{metric}/Fracture"].n == 0
        assert results[f"{metric}/macro"].note == "left out: Fracture (no known label in this split)"
    with warnings.catch_warnings(action="error"):
        empty = metrics.classification(np.zeros((0, 3)), np.zeros((0, 3)), CLASSES, [], exclusive=True)
    assert len(empty) == len(metrics.PER_CLASS) * 4 + 4
    assert all(math.isnan(found.value) and found.n == 0 and "no known label" in found.note for found in empty)


def test_threshold_not_chosen_leaves_threshold_metrics_undefined():
    scores, labels, _ = example()
    results = named(metrics.classification(scores, labels, CLASSES, thresholds=[0.5, np.nan, 0.5], resamples=0))
    for metric in metrics.PER_CLASS:
        assert math.isnan(results[f"{metric}/Effusion"].value) == (metric in metrics.NEEDS_THRESHOLD)
    assert results["f1/macro"].note == "left out: Effusion (no threshold for this class)"


def test_score_at_the_threshold_is_present():
    results = named(metrics.classification([[0.5], [0.4]], [[1], [0]], ["a"], resamples=0))
    assert results["accuracy/a"].value == 1


def test_intervals_are_percentiles_of_resampled_sklearn_figures():
    scores, labels, groups = example(rows=60, unknown=0)
    names = np.array([f"patient{g}" for g in groups])
    results = named(metrics.classification(scores, labels, CLASSES, names, resamples=40, seed=5))
    order = list(dict.fromkeys(names))
    weights = next(metrics.multiplicities(len(order), 40, seed=5, chunk=40))
    row_weights = weights[:, [order.index(name) for name in names]]
    draws = np.array(
        [[per_class_reference(labels[:, k], scores[:, k], weight) for k in range(3)] for weight in row_weights]
    )
    for m, metric in enumerate(metrics.PER_CLASS):
        for found, figures in (
            (results[f"{metric}/Edema"], draws[:, 0, m]),
            (results[f"{metric}/macro"], draws[:, :, m].mean(axis=1)),
        ):
            close([found.low, found.high], np.percentile(figures, [2.5, 97.5]))


def test_multiplicities_draw_as_many_patients_as_there_are():
    weights = np.concatenate(list(metrics.multiplicities(50, 400, seed=0, chunk=30)))
    assert weights.shape == (400, 50)
    np.testing.assert_array_equal(weights.sum(axis=1), 50)
    # A multinomial count of 50 draws on 50 patients has mean 1 and variance 1 - 1/50.
    assert abs(weights.var() - 0.98) < 0.05
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.25


def test_draws_depend_on_the_seed_alone(monkeypatch):
    scores, labels, groups = example()
    first = metrics.classification(scores, labels, CLASSES, groups, resamples=30, seed=1)
    assert first != metrics.classification(scores, labels, CLASSES, groups, resamples=30, seed=2)
    monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", 7 * len(scores))
    assert first == metrics.classification(scores, labels, CLASSES, groups, resamples=30, seed=1)


def test_undefined_resamples_are_counted():
    scores, labels, _ = example(rows=40, unknown=0)
    labels[:, 0] = 0
    labels[7, 0] = 1  # one positive: about 1/e of the draws miss it
    results = named(metrics.classification(scores, labels, CLASSES, resamples=200))
    edema, macro = results["auroc/Edema"], results["auroc/macro"]
    count = int(edema.note.split(" of 200 resamples undefined")[0])
    assert 40 < count < 110 and edema.low <= edema.value <= edema.high
    assert macro.note.startswith(f"{count} of 200 resamples average fewer classes")
    values = np.where(labels == 1, scores, np.nan)[..., None]  # of cases with the class alone, as for Dice
    values[:, 1] = np.nan
    means = named(metrics.case_means(values, CLASSES, ["dice"], resamples=200))
    note = f"left out: {CLASSES[1]}; {count} of 200 resamples average fewer classes"
    assert means["dice/macro"].note.startswith(note)


def test_padding_rows_are_ignored():
    scores, labels, groups = example()
    padded_scores = np.concatenate([scores[:10], np.full((2, 3), np.nan), scores[10:]])
    padded_labels = np.concatenate([labels[:10], np.full((2, 3), 0.3), labels[10:]])
    padded_groups = [*groups[:10].tolist(), None, None, *groups[10:].tolist()]
    valid = np.ones(302, bool)
    valid[10:12] = False
    found = metrics.classification(padded_scores, padded_labels, CLASSES, padded_groups, valid=valid, resamples=20)
    assert found == metrics.classification(scores, labels, CLASSES, groups, resamples=20)


def brute_force(score, label, objective):
    """The highest threshold of the best objective, one candidate at a time."""
    candidates = [metrics.NEVER, *sorted(set(score), reverse=True)]
    return max(candidates, key=lambda threshold: (round(objective(label, score >= threshold), 12), threshold))


def youden(label, call):
    return call[label == 1].mean() - call[label == 0].mean()


def f1(label, call):
    return reference.f1_score(label, call, zero_division=0)


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize(
    "choose, objective",
    [
        (metrics.youden_thresholds, youden),
        (metrics.f1_thresholds, f1),
        (metrics.accuracy_thresholds, reference.accuracy_score),
    ],
)
def test_thresholds_equal_brute_force(choose, objective, decimals):
    scores, labels, _ = example(rows=60, seed=4, decimals=decimals)
    found = choose(scores, labels)
    for k in range(3):
        known = ~np.isnan(labels[:, k])
        assert found[k] == brute_force(scores[known, k], labels[known, k], objective)


def test_thresholds_at_the_limits():
    scores = np.array([[0.2, 0.2, 0.2, 0.9], [0.4, 0.4, 0.4, 0.1]], np.float32)
    labels = np.array([[0, 1, np.nan, 1], [0, 1, np.nan, 0]])
    unknown = math.nan
    np.testing.assert_array_equal(metrics.youden_thresholds(scores, labels), [unknown, unknown, unknown, scores[0, 3]])
    np.testing.assert_array_equal(metrics.f1_thresholds(scores, labels), [unknown, scores[0, 1], unknown, scores[0, 3]])
    expected = [metrics.NEVER, scores[0, 1], unknown, scores[0, 3]]
    np.testing.assert_array_equal(metrics.accuracy_thresholds(scores, labels), expected)
    assert np.float32(metrics.NEVER) > 1


def test_the_two_sided_p_value_is_never_zero_and_counts_zeros_on_both_sides():
    assert metrics.two_sided_p_value(np.ones(999)) == metrics.two_sided_p_value(-np.ones(999)) == 2 / 1000
    assert metrics.two_sided_p_value(np.array([0.0, 0.0, *[1.0] * 17, np.nan])) == 2 * 3 / 20
    assert metrics.two_sided_p_value(np.zeros(19)) == 1


def patients_with_repeated_rows(seed, patients=40, repeats=6):
    """Scores share a patient's effect and labels are the patient's, so its rows say little more than one."""
    generator = np.random.default_rng(seed)
    label = np.repeat(np.arange(patients) % 2, repeats).astype(float)
    effect = np.repeat(generator.normal(size=patients), repeats)
    logit = label + effect + 0.3 * generator.normal(size=len(label))
    return 1 / (1 + np.exp(-logit[:, None])), label[:, None], np.repeat(np.arange(patients), repeats)


def test_patient_interval_is_wider_and_covers_where_the_row_interval_does_not():
    # The logits differ by one and have variance 1 + 0.3**2 in each class.
    truth = 0.5 * (1 + math.erf(1 / math.sqrt(2 * 1.09) / math.sqrt(2)))
    covered = np.zeros(2)
    for seed in range(100):
        scores, labels, groups = patients_with_repeated_rows(seed)
        by_patient, by_row = (
            named(metrics.classification(scores, labels, ["a"], g, resamples=200, seed=seed))["auroc/a"]
            for g in (groups, None)
        )
        assert by_patient.high - by_patient.low > 1.5 * (by_row.high - by_row.low)
        covered += [by_patient.low <= truth <= by_patient.high, by_row.low <= truth <= by_row.high]
    assert covered[0] >= 88 and covered[1] <= 75


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": (4, 1, np.nan)}, "scores, class 'Effusion', row 4: found nan"),
        ({"scores": (4, 1, np.inf)}, "scores, class 'Effusion', row 4: found inf"),
        ({"scores": (2, 0, 3.5)}, "scores, class 'Edema', row 2: found 3.5"),
        ({"labels": (5, 2, 0.7)}, "labels, class 'Fracture', row 5: found 0.7"),
        ({"labels": (5, 2, -1)}, "labels, class 'Fracture', row 5: found -1"),
    ],
)
def test_bad_entry_is_named(change, message):
    scores, labels, groups = example(rows=9)
    arrays = {"scores": scores, "labels": labels}
    for name, (row, k, value) in change.items():
        arrays[name][row, k] = value
    with pytest.raises(InputError, match=message):
        metrics.classification(**arrays, classes=CLASSES, groups=groups)


def test_bad_row_is_named_by_its_place_among_padding():
    scores, labels, _ = example(rows=9)
    scores[6, 0] = np.nan
    with pytest.raises(InputError, match="row 6"):
        metrics.classification(scores, labels, CLASSES, valid=np.arange(9) > 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"classes": ["a", "b"]}, "expected 3 different names"),
        ({"classes": ["a", "a", "b"]}, "expected 3 different names"),
        ({"classes": ["a", "b", "macro"]}, "none of them 'macro'"),
        ({"groups": ["p"] * 8}, "found 8 patient ids, expected one for each of 9 rows"),
        ({"groups": ["p"] * 8 + [None]}, "groups, row 8: found no patient id"),
        ({"groups": [math.nan] + ["p"] * 8}, "groups, row 0: found no patient id"),
        ({"thresholds": [0.5]}, "thresholds: found shape"),
        ({"valid": np.ones(8, bool)}, r"valid: found bool\[8\]"),
        ({"valid": np.ones(9)}, r"expected bool\[9\]"),
        ({"exclusive": True}, "labels, row 0"),
        ({"labels": np.zeros((9, 2))}, r"found shape \(9, 3\) with labels \(9, 2\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    scores, labels, _ = example(rows=9, unknown=0)
    labels[0] = 1
    arguments = {"scores": scores, "labels": labels, "classes": CLASSES} | arguments
    with pytest.raises(InputError, match=message):
        metrics.classification(**arguments)


def test_exclusive_needs_two_classes():
    with pytest.raises(InputError, match="two or more"):
        metrics.classification([[0.5]], [[1]], ["a"], exclusive=True)
