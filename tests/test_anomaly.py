"""The anomaly task: what the autoencoder learns from, what the mixture is fitted to, metrics against scikit-learn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sheets import samples_of
from skimage.metrics import structural_similarity
from sklearn import metrics as reference
from sklearn.mixture import GaussianMixture

from mediax.errors import InputError
from mediax.samples import PLACES
from mediax.tasks.anomaly import (
    Task,
    best_matching,
    clustering,
    component_log_densities,
    detection,
    mutual_information,
)

NAN = np.nan
HEAD = {"name": "autoencoder", "size": (16, 16), "code": 6}
RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 16, 16, 1)).astype(np.float32)
REBUILT = RNG.random((5, 16, 16, 1)).astype(np.float32)
LABELS = np.float32([[0], [1], [NAN], [0], [0]])
LEARNED = [0, 2, 3]  # neither the anomaly nor the padding


def make_task(**options):
    return Task(**({"name": "chest/anomaly", "classes": ("Anomaly",), "head": HEAD} | options))


def make_batch():
    return {"image": jnp.asarray(IMAGES), "labels": jnp.asarray(LABELS), "valid": jnp.asarray([1, 1, 1, 1, 0], bool)}


def predictions_of(code, error=None):
    error = np.zeros(len(code)) if error is None else error
    return {"code": np.asarray(code, np.float32), "error": np.asarray(error, np.float32)}


def split(rows=200, seed=0, far=0):
    """Codes of normal images, the last `far` of them anomalous: far from the others along one axis."""
    rng = np.random.default_rng(seed)
    code = rng.normal(0, [3, 1, 1, 0.1, 1, 1], (rows, 6))
    code[rows - far :, 3] += 2
    labels = (np.arange(rows) >= rows - far).astype(np.float32)[:, None]
    return predictions_of(code, rng.random(rows)), {"labels": labels}


@pytest.mark.parametrize("criterion", ["mse", "cross_entropy"])
def test_the_loss_is_the_mean_over_images_that_are_not_anomalous(criterion):
    task, batch = make_task(criterion=criterion), make_batch()
    x, y = REBUILT.astype(np.float64), IMAGES.astype(np.float64)
    pixels = (x - y) ** 2 if criterion == "mse" else -(y * np.log(x) + (1 - y) * np.log(1 - x))
    count = task.count(batch)

    def loss(rebuilt):
        return task.loss({"image": rebuilt}, batch, count)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(REBUILT))
    assert count == 3 and value == pytest.approx(pixels[LEARNED].mean(), rel=1e-5)
    assert not gradient[np.array([1, 4])].any() and gradient[np.array(LEARNED)].any()
    assert np.isfinite(jax.grad(loss)(jnp.asarray(IMAGES > 0.5, jnp.float32))).all()  # pixels of exactly 0 and 1


def test_predictions_are_the_code_and_the_error_of_each_image():
    outputs = {"code": jnp.ones((5, 6)), "image": jnp.asarray(REBUILT)}
    predictions = make_task().predict(outputs, make_batch())
    np.testing.assert_allclose(predictions["error"], ((REBUILT - IMAGES) ** 2).mean((1, 2, 3)), rtol=1e-5)
    assert predictions["code"].shape == (5, 6)
    assert "dissimilarity" not in predictions


def test_dissimilarity_is_what_the_images_lack_in_similarity_cell_by_cell():
    outputs = {"code": jnp.ones((5, 6)), "image": jnp.asarray(REBUILT)}
    dissimilarity = make_task(features="dissimilarity", sigma=1.0, grid=2).predict(outputs, make_batch())[
        "dissimilarity"
    ]
    for found, image, rebuilt in zip(dissimilarity, IMAGES[..., 0], REBUILT[..., 0]):
        options = {"gaussian_weights": True, "sigma": 1.0, "use_sample_covariance": False, "data_range": 1.0}
        whole = structural_similarity(image, rebuilt, full=True, **options)[1][4:-4, 4:-4]  # windows inside the image
        cells = [1 - whole[y : y + 4, x : x + 4].mean() for y in (0, 4) for x in (0, 4)]
        np.testing.assert_allclose(found, cells, atol=1e-4)


def test_the_mixture_models_the_features_that_it_is_told_to():
    rng = np.random.default_rng(0)
    normal, unlike = rng.normal(0.1, 0.01, (200, 4)), rng.normal((0.1, 0.2, 0.1, 0.1), 0.01, (20, 4))
    predictions = predictions_of(rng.normal(size=(220, 6))) | {
        "dissimilarity": np.float32(np.concatenate([normal, unlike]))
    }
    targets = {"labels": np.float32([[0]] * 200 + [[1]] * 20)}
    found = {}
    for features in ("code", "dissimilarity"):
        task = make_task(features=features, sigma=1.0, grid=2)
        calibration = json.loads(json.dumps(task.calibrate(predictions, targets)))
        found[features] = {
            m.name: m.value for m in task.metrics(predictions, targets, calibration=calibration, resamples=0)
        }
        trivial = task.trivial(predictions, calibration)
        assert trivial[features].shape == predictions[features].shape
        assert len(set(task.scores(trivial, calibration))) == 1
        called = task.findings(predictions, calibration, 219, (16, 16)).decisions["Anomaly"]
        assert called or features == "code"
    assert found["dissimilarity"]["auroc"] == 1 and found["dissimilarity"]["sensitivity"] == 1
    assert found["code"]["auroc"] < 0.8


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("dimensions", [0, 4])
def test_the_mixture_read_back_from_json_is_scikit_learns(covariance, dimensions):
    predictions, targets = split()
    task = make_task(components=2, covariance=covariance, dimensions=dimensions)
    calibration = json.loads(json.dumps(task.calibrate(predictions, targets)))
    code = predictions["code"].astype(np.float64)
    if dimensions:
        projection = calibration["projection"]
        code = (code - projection["mean"]) @ np.array(projection["directions"]).T
        np.testing.assert_allclose(np.cov(code.T), np.eye(4), atol=1e-6)  # whitened
    mixture = GaussianMixture(2, covariance_type=covariance, n_init=10, random_state=0).fit(code)
    np.testing.assert_allclose(task.scores(predictions, calibration), -mixture.score_samples(code), rtol=1e-6)
    np.testing.assert_array_equal(task.assign(predictions, calibration), mixture.predict(code))


def test_the_threshold_comes_from_the_calibrating_split_alone():
    task = make_task()
    training, test, other = split(seed=1), split(rows=60, seed=2, far=30), split(rows=60, seed=3, far=5)
    calibration = task.calibrate(*training)
    before = json.dumps(calibration)
    for predictions, targets in (test, other):
        task.metrics(predictions, targets, calibration=calibration, resamples=0)
    assert json.dumps(calibration) == before == json.dumps(task.calibrate(*training))
    share = (task.scores(split(rows=2000, seed=4)[0], calibration) >= calibration["threshold"]).mean()
    assert share == pytest.approx(0.05, abs=0.03)  # unseen normal images stay below it, as `quantile` says
    found = {m.name: m.value for m in task.metrics(*test, calibration=calibration, resamples=0)}
    assert found["auroc"] > 0.99 and found["sensitivity"] > 0.95


def test_unseen_scores_are_of_mixtures_without_the_patient():
    """Of images in pairs that are alike the threshold is that of the single ones, not that of images seen before."""
    task, (predictions, targets) = make_task(), split(rows=60)
    twice = {name: np.repeat(array, 2, axis=0) for name, array in predictions.items()}
    labels = {"labels": np.repeat(targets["labels"], 2, axis=0)}
    patients = np.repeat([f"patient {place * 7 % 60}" for place in range(60)], 2)
    alone, together = task.calibrate(predictions, targets), task.calibrate(twice, labels, patients)
    assert together["threshold"] == pytest.approx(alone["threshold"], rel=0.02)
    assert task.calibrate(twice, labels)["threshold"] < together["threshold"]
    few = np.repeat([f"patient {place % 9}" for place in range(60)], 2)
    with pytest.raises(InputError, match="120 images of 9 patients to fit the mixture to, expected at least 10 of 10"):
        task.calibrate(twice, labels, few)


def test_the_reconstruction_needs_no_mixture():
    predictions, targets = split(rows=3)
    calibration = make_task(score="reconstruction").calibrate(predictions, targets)
    assert calibration.keys() == {"threshold", "mean_features", "mean_error"}
    with pytest.raises(InputError, match="no normal image"):
        make_task().calibrate(predictions, {"labels": np.ones((3, 1))})


def test_anomalous_images_of_the_training_split_do_not_enter():
    predictions, targets = split(rows=120, far=20)
    alone = {name: array[:100] for name, array in predictions.items()}, {"labels": targets["labels"][:100]}
    task = make_task(score="reconstruction")
    assert task.calibrate(predictions, targets) == task.calibrate(*alone)
    unknown = {"labels": np.full_like(targets["labels"], NAN)}
    assert task.calibrate(predictions, unknown) != task.calibrate(*alone)


def test_the_error_of_the_reconstruction_as_a_score():
    task, (predictions, targets) = make_task(score="reconstruction", quantile=0.9), split()
    calibration = task.calibrate(predictions, targets)
    assert calibration["threshold"] == pytest.approx(np.quantile(predictions["error"].astype(float), 0.9))
    np.testing.assert_array_equal(task.scores(predictions, calibration), predictions["error"])


@pytest.mark.parametrize("seed", range(3))
def test_detection_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 60).astype(float), rng.normal(1e3, 5, 60).round()  # with ties
    scores += 4 * labels
    labels[::9] = NAN
    known = ~np.isnan(labels)
    true, called = labels[known], scores[known] >= 1003
    found = {m.name: m for m in detection(scores, labels, 1003.0, np.arange(60), resamples=60)}
    assert found["auroc"].value == pytest.approx(reference.roc_auc_score(true, scores[known]))
    assert found["average_precision"].value == pytest.approx(reference.average_precision_score(true, scores[known]))
    assert found["accuracy"].value == pytest.approx(np.mean(called == true))
    assert found["sensitivity"].value == pytest.approx(reference.recall_score(true, called))
    assert found["specificity"].value == pytest.approx(reference.recall_score(true, called, pos_label=0))
    assert all(m.low <= m.value <= m.high and m.n == known.sum() for m in found.values())


def test_undefined_figures_say_why():
    normal = {m.name: m for m in detection(np.arange(4.0), np.zeros(4), 2.0, np.arange(4), resamples=9)}
    assert np.isnan(normal["auroc"].value) and normal["auroc"].note == "no anomaly in this split: undefined"
    assert normal["specificity"].value == 0.5 and normal["accuracy"].value == 0.5
    unknown = detection(np.arange(4.0), np.full(4, NAN), 2.0, np.arange(4), resamples=9)
    assert all(np.isnan(m.value) and "no known label" in m.note for m in unknown)
    single = detection(np.arange(4.0), np.float64([0, 0, 1, 1]), 2.0, np.zeros(4, int), resamples=9)
    assert all("a single patient" in m.note for m in single)


def test_clustering_equals_a_full_search_and_scikit_learn():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 80)
    assigned = np.where(rng.random(80) < 0.7, np.array([2, 0, 1])[true], rng.integers(0, 3, 80))
    labels = np.eye(3)[true]
    labels[::10] = NAN
    known = ~np.isnan(labels[:, 0])
    found = {m.name: m for m in clustering(assigned, labels, 3, np.arange(80), resamples=50)}
    from itertools import permutations

    best = max(np.mean(np.array(p)[assigned[known]] == true[known]) for p in permutations(range(3)))
    assert found["accuracy"].value == pytest.approx(best)
    nmi = reference.normalized_mutual_info_score(true[known], assigned[known])
    assert found["nmi"].value == pytest.approx(nmi)
    assert all(m.low <= m.value <= m.high and m.n == 72 for m in found.values())


@pytest.mark.parametrize(
    ("assigned", "true"), [([0, 0, 0], [1, 1, 1]), ([0, 0, 0], [0, 1, 2]), ([0, 1, 2], [1, 1, 1]), ([2, 0], [1, 2])]
)
def test_degenerate_clusters_are_what_scikit_learn_says(assigned, true):
    found = clustering(np.array(assigned), np.eye(3)[true], 3, np.arange(len(true)), resamples=0)
    assert found[1].value == pytest.approx(reference.normalized_mutual_info_score(true, assigned))
    assert found[0].value == pytest.approx(1 / len(true) if len(set(true)) != len(set(assigned)) else 1)


def test_no_two_clusters_are_matched_with_one_class():
    np.testing.assert_array_equal(best_matching(np.array([[9, 1], [8, 2], [0, 7]])), [0, -1, 1])
    assert np.isnan(mutual_information(np.zeros((2, 2))))


def test_clusters_find_the_groups_of_codes():
    rng = np.random.default_rng(0)
    groups, names = rng.integers(0, 3, 150), ("Up", "Left", "Right")
    predictions = predictions_of(np.eye(6)[groups] * 5 + rng.normal(size=(150, 6)))
    targets = {"labels": np.eye(3)[groups]}
    task = make_task(classes=names, clusters=True, components=3, dimensions=3)
    blind = {"labels": np.full((150, 3), NAN)}
    calibration = task.calibrate(predictions, blind)
    assert "threshold" not in calibration and calibration == task.calibrate(predictions, targets)
    found = {m.name: m.value for m in task.metrics(predictions, targets, calibration=calibration, resamples=0)}
    assert found["accuracy"] > 0.95 and found["nmi"] > 0.8
    trivial = task.metrics(task.trivial(predictions, calibration), targets, calibration=calibration, resamples=0)
    assert trivial[0].value == pytest.approx(np.bincount(groups).max() / 150) and trivial[1].value == 0


def test_the_trivial_predictor_gives_one_score():
    training, (predictions, targets) = split(), split(rows=40, far=20)
    for score in ("likelihood", "reconstruction"):
        task = make_task(score=score)
        calibration = task.calibrate(*training)
        trivial = task.trivial(predictions | {"image": IMAGES}, calibration)
        assert trivial["code"].shape == (40, 6) and trivial["error"].dtype == np.float32
        found = {m.name: m.value for m in task.metrics(trivial, targets, calibration=calibration, resamples=0)}
        assert found["auroc"] == 0.5


def test_the_density_of_one_dimension_is_the_formula():
    mixture = {"weights": [0.25], "means": [[1.0]], "covariances": [[[4.0]]]}
    expected = np.log(0.25) - 0.5 * np.log(2 * np.pi * 4) - (np.array([3.0, 1.0]) - 1) ** 2 / 8
    np.testing.assert_allclose(component_log_densities(np.array([[3.0], [1.0]]), mixture)[:, 0], expected)


def test_head_pictures_and_findings(tmp_path, sheets):
    ((name, build),) = make_task().parts({2: 3, 4: 5}).items()
    assert name == "head/chest/anomaly" and build(nnx.Rngs(0)).code.kernel.shape == (4 * 4 * 5, 6)
    predictions, targets = split(rows=30, far=10)
    images = np.zeros((30, 16, 16, 1), np.float32)
    pictures = predictions | {"image": images}
    task = make_task()
    calibration = task.calibrate(*split())
    task.draw(tmp_path, "a", predictions, targets, calibration=calibration)
    task.draw_samples(tmp_path, "a", samples_of(task, images, pictures, targets, calibration), calibration)
    groups = make_task(classes=("Up", "Down"), clusters=True, components=3)
    labels = {"labels": np.eye(2)[np.arange(30) % 2]}
    clusters = groups.calibrate(predictions, labels)
    groups.draw(tmp_path, "b", predictions, labels, calibration=clusters)
    groups.draw_samples(tmp_path, "b", samples_of(groups, images, pictures, labels, clusters), clusters)
    for sheet in sheets:
        shown = [row for rows in sheet.values() for row in rows]
        assert len(shown) == len(set(shown)) == PLACES and len(sheet["best"]) == PLACES // 4
    for name in ("roc_a", "scores_a", "samples_a", "confusion_b", "samples_b"):
        assert min(Image.open(tmp_path / f"{name}.png").size) > 150
    assert task.findings(pictures, calibration, 29, (16, 16)).decisions == {"Anomaly": True}
    assert groups.findings(pictures, calibration, 0, (16, 16)).scores == {"cluster": 1.0}


def test_the_worst_are_furthest_on_the_wrong_side_of_the_threshold():
    task = make_task(score="reconstruction")
    targets = {"labels": np.float32([[0], [0], [1], [1], [np.nan]])}
    predictions = {"error": np.float32([0.5, 1.5, 0.25, 2.0, 9.0])}
    found = task.errors(predictions, targets, {"threshold": 1.0})
    np.testing.assert_allclose(found, [-0.5, 0.5, 0.75, -1.0, np.nan])


def test_errors_name_the_task():
    for options, words in (
        ({"criterion": "mze"}, "criterion of task 'chest/anomaly': no criterion 'mze'; did you mean 'mse'"),
        ({"covariance": "round"}, "no covariance 'round'"),
        ({"quantile": 0}, "quantile of task 'chest/anomaly' is 0"),
        ({"sigma": 0}, "grid and sigma of task 'chest/anomaly' are 5 and 0: expected"),
        ({"sigma": NAN}, "are 5 and nan: expected"),
        ({"grid": 2.5}, "are 2.5 and 1.5: expected a whole number of cells"),
        ({"dimensions": 2.0}, "are 1 and 2.0: expected whole numbers"),
        ({"features": "cods"}, "no features 'cods'; did you mean 'code'"),
        (
            {"features": "dissimilarity", "sigma": 2.3},
            "grid and sigma of task 'chest/anomaly': .* of 17 pixels and a grid",
        ),
        ({"features": "dissimilarity", "dimensions": 26}, "is 26: expected at most the 25 cells of the grid"),
        ({"components": True}, "components and dimensions of task 'chest/anomaly' are True and 0"),
        ({"components": 0}, "components and dimensions of task 'chest/anomaly' are 0 and 0"),
        ({"classes": ("a", "b")}, "expected one class, or the option clusters"),
        ({"clusters": True}, "expected two or more classes with clusters"),
        ({"head": {"name": "autoencoder"}}, "head of task 'chest/anomaly' lacks size"),
    ):
        with pytest.raises(InputError, match=words):
            make_task(**options)
    with pytest.raises(InputError, match="3 images of 3 patients to fit the mixture to, expected at least 10 of 10"):
        make_task().calibrate(*split(rows=3))
    # Nine tenths of the images have to span the directions, and two more.
    with pytest.raises(InputError, match="19 images of 19 patients to fit the mixture to, expected at least 20"):
        make_task(dimensions=16).calibrate(*split(rows=19))
    few = predictions_of(np.zeros((29, 6))) | {"dissimilarity": np.float32(RNG.random((29, 25)))}
    with pytest.raises(InputError, match="29 images of 29 patients to fit the mixture to, expected at least 30"):
        make_task(features="dissimilarity").calibrate(few, {"labels": np.zeros((29, 1))})
    make_task(features="dissimilarity", covariance="diag").calibrate(few, {"labels": np.zeros((29, 1))})
    outputs = {"code": jnp.zeros((2, 6))}
    with pytest.raises(InputError, match="dimensions of task 'chest/anomaly' is 9: expected at most the 6 numbers of"):
        make_task(dimensions=9).apply(lambda *_: outputs, {}, {})
    assert make_task(dimensions=6).apply(lambda *_: outputs, {}, {}) is outputs
    with pytest.raises(InputError, match="the batch has no labels"):
        make_task().count({"valid": np.ones(2, bool)})
