"""The embedding task: the contrastive loss against references, positives, views, sharding, and what is searched."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx
from PIL import Image
from references import compare
from sheets import samples_of
from sklearn import metrics as reference

from mediax import data, experiment, figures, images, optimizer, predict, retrieval, sharding, train
from mediax import run as run_module
from mediax.errors import InputError
from mediax.experiment import complete
from mediax.heads.projection import Head
from mediax.model import Model, part
from mediax.samples import PLACES
from mediax.tasks.embedding import PER_IMAGE, Task, contrastive_losses

NAN = np.nan
GOLDEN = compare.load("embedding")
CASES = sorted({name.partition("/")[0] for name in GOLDEN})
RNG = np.random.default_rng(0)


def unit(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def make_task(**options):
    return Task(**({"name": "chest/embedding", "classes": ("Edema", "Fracture")} | options))


def outputs_of(own, other, temperature=0.1):
    return {"embedding": jnp.asarray(own), "second_view": jnp.asarray(other), "temperature": jnp.float32(temperature)}


def make_batch(rows, valid=None, **fields):
    return {"valid": jnp.asarray(np.ones(rows, bool) if valid is None else valid)} | {
        name: jnp.asarray(value) for name, value in fields.items()
    }


# The loss.


@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_its_gradient_are_the_references(case):
    golden = {name.partition("/")[2]: array for name, array in GOLDEN.items() if name.startswith(f"{case}/")}
    task, batch = make_task(positives="patient"), make_batch(len(golden["groups"]), patient=golden["groups"])

    def loss(views):
        views = views / jnp.linalg.norm(views, axis=-1, keepdims=True)
        outputs = outputs_of(views[::2], views[1::2], golden["temperature"])
        return task.loss(outputs, batch, task.count(batch))[0]

    value, gradient = jax.value_and_grad(loss)(jnp.float32(golden["views"]))
    assert value == pytest.approx(float(golden["loss"]), rel=1e-5)
    np.testing.assert_allclose(gradient, golden["gradient"], atol=1e-5 * np.abs(golden["gradient"]).max())
    if "nt_xent" in golden:
        assert value == pytest.approx(float(golden["nt_xent"]), rel=1e-5)


def by_the_formula(views, groups, temperature):
    """The mean over anchors of equation 2 of arXiv:2004.11362, written out."""
    total = []
    for i in range(len(views)):
        others = [a for a in range(len(views)) if a != i]
        exponentials = {a: np.exp(views[i] @ views[a] / temperature) for a in others}
        positives = [a for a in others if groups[a] == groups[i]]
        total.append(np.mean([-np.log(exponentials[p] / sum(exponentials.values())) for p in positives]))
    return np.mean(total)


def test_padding_is_in_no_comparison_and_has_no_gradient():
    own, other = (unit(RNG.normal(size=(5, 4))) for _ in range(2))
    valid, task = np.array([1, 1, 0, 1, 0], bool), make_task()
    batch = make_batch(5, valid)
    count = task.count(batch)
    gradient = jax.grad(lambda x: task.loss(outputs_of(x, other), batch, count)[0])(jnp.float32(own))
    views = np.stack([own[valid], other[valid]], 1).reshape(6, 4)
    assert count == 6
    value = task.loss(outputs_of(own, other), batch, count)[0]
    assert value == pytest.approx(by_the_formula(views, np.repeat(np.arange(3), 2), 0.1), rel=1e-5)
    assert not gradient[~valid].any() and gradient[valid].any(axis=1).all()
    nothing = make_batch(5, np.zeros(5, bool))
    loss, gradient = jax.value_and_grad(lambda x: task.loss(outputs_of(x, other), nothing, 0.0)[0])(jnp.float32(own))
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize(
    ("positives", "fields", "groups"),
    [
        ("view", {"patient": [7, 7, 3, 3]}, [0, 1, 2, 3]),
        ("patient", {"patient": [7, 7, 3, 9]}, [0, 0, 1, 2]),
        ("labels", {"labels": np.float32([[1, 0], [1, 0], [1, 1], [1, 0]])}, [0, 0, 1, 0]),
        ("labels", {"labels": np.float32([[1, NAN], [1, NAN], [1, 1], [1, 1]])}, [0, 1, 2, 2]),
    ],
)
def test_positives(positives, fields, groups):
    own, other = (unit(RNG.normal(size=(4, 3))).astype(np.float32) for _ in range(2))
    task, batch = make_task(positives=positives), make_batch(4, **fields)
    value = task.loss(outputs_of(own, other, 0.3), batch, task.count(batch))[0]
    views = np.stack([own, other], 1).reshape(8, 3).astype(np.float64)
    assert value == pytest.approx(by_the_formula(views, np.repeat(groups, 2), 0.3), rel=1e-5)


def test_both_views_are_anchors():
    own, other = (unit(RNG.normal(size=(4, 3))).astype(np.float32) for _ in range(2))
    task, batch = make_task(), make_batch(4)
    one, two = (task.loss(outputs_of(*views), batch, 8.0)[0] for views in ((own, other), (other, own)))
    assert one == pytest.approx(float(two), rel=1e-6)


def test_losses_stay_finite_at_the_ends():
    same = jnp.ones((6, 4)) / 2
    for temperature in (0.01, 100.0):
        losses, gradient = jax.value_and_grad(
            lambda x, t=temperature: contrastive_losses(x, jnp.eye(6, dtype=bool)[::-1], jnp.ones(6, bool), t).sum()
        )(same)
        assert losses == pytest.approx(6 * np.log(5), rel=1e-4) and np.isfinite(gradient).all()


# The head.


def test_the_projection_has_length_one_and_the_temperature_learns():
    pyramid = {4: jnp.ones((3, 8, 8, 5)), 8: jnp.asarray(RNG.normal(size=(3, 4, 4, 6)), jnp.bfloat16)}
    head = Head({4: 5, 8: 6}, size=7, hidden=(9,), temperature=0.2, learn_temperature=True, rngs=nnx.Rngs(0))
    outputs = head(pyramid, train=False, rngs=None)
    assert outputs["embedding"].shape == (3, 7) and outputs["embedding"].dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(outputs["embedding"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(outputs["features"], pyramid[8].astype(jnp.float32).mean((1, 2)), rtol=1e-5)
    assert outputs["temperature"] == pytest.approx(0.2) and head.log_temperature[...].shape == ()
    head.log_temperature.set_value(jnp.float32(-20))
    assert head(pyramid, train=False, rngs=None)["temperature"] == pytest.approx(0.01)
    fixed = Head({8: 6}, normalize=False, hidden=(), rngs=nnx.Rngs(0))
    assert len(jax.tree.leaves(nnx.state(fixed, nnx.Param))) == 2
    collapsed = jax.grad(lambda x: fixed({8: x}, train=True, rngs=None)["embedding"].sum())(jnp.zeros((2, 4, 4, 6)))
    assert np.isfinite(collapsed).all()
    for wrong in ({"temperature": 0}, {"size": 0}, {"hidden": (0,)}):
        with pytest.raises(InputError, match=r"projection head: .*expected widths of at least 1 and a temperature"):
            Head({8: 6}, rngs=nnx.Rngs(0), **wrong)


# Two views, in the data and in the network.

VIEW = ({"name": "random_intensity", "brightness": 0.3},)


def contrastive(**changes):
    """The toy with an embedding in place of its classification, and two views of each image."""
    base = toy.training(batch_norm=True, **changes)
    task = Task(name="a/embedding", head={"name": "projection", "size": 8, "hidden": (8,)})
    parts = {"backbone": base.model.parts["backbone"]}
    parts |= {name: part(build) for name, build in task.parts({2: 4}).items()}

    def batches(position):
        return data.training_batches(
            toy.Source(), toy.read, transform=VIEW, second_view=VIEW, batch_size=16, seed=1, position=position
        )

    return replace(
        base,
        model=Model(parts, (0.5,), (0.25,)),
        streams={"a": train.Stream("a", {"embedding": task}, batches, 16)},
        schedule=lambda step: train.Turn("a", tuple(parts)),
        optimizer=optimizer.build(tuple(parts), steps=base.steps, name="sgd", peak=1e-2),
    )


def run(training, steps):
    """The last state and the last logs, on the host."""
    key, init_key = jax.random.split(jax.random.key(0))
    shapes = jax.eval_shape(partial(train.init_state, training), init_key)
    shardings = sharding.state_sharding(training.mesh, shapes, training.sharding)
    state = jax.jit(partial(train.init_state, training), out_shardings=shardings)(init_key)
    step_function, batches = train.make_train_step(training, shardings), training.streams["a"].batches(0)
    for step in range(steps):
        batch = sharding.to_device(next(batches), training.mesh)
        state, logs = step_function(state, batch, key, turn=training.schedule(step))
    return jax.device_get(state), jax.device_get(logs)


def test_views_are_drawn_anew_and_know_their_patients():
    batch = next(contrastive().streams["a"].batches(0))
    assert batch["second_view"].shape == batch["image"].shape and batch["second_view"].dtype == np.float32
    difference = (batch["image"] - batch["second_view"]).reshape(16, -1)
    assert (np.ptp(difference, axis=1) < 0.31).all() and (np.abs(difference).mean(axis=1) > 1e-3).mean() > 0.8
    again = next(contrastive().streams["a"].batches(0))
    assert all(np.array_equal(batch[name], again[name], equal_nan=True) for name in batch if name != "valid")
    rows = data.evaluation_batches(toy.Source(), toy.read, second_view=VIEW, batch_size=16)
    patients = np.concatenate([one["patient"] for one in rows])
    assert len(np.unique(patients)) == 32 and (patients[::2] == patients[1::2]).all() and patients.dtype == np.int32
    assert "second_view" not in next(data.evaluation_batches(toy.Source(), toy.read, batch_size=16))


def test_the_other_view_goes_through_the_same_network():
    training = contrastive()
    params, batch_stats = training.model.init(jax.random.key(0))
    tasks, batch = training.streams["a"].tasks, next(training.streams["a"].batches(0))
    forward = partial(training.model.forward, tasks, params, batch_stats, key=jax.random.key(1))
    both = forward(batch)[0]["embedding"]
    alone = forward({"image": batch["second_view"], "valid": batch["valid"]})[0]["embedding"]
    np.testing.assert_allclose(both["second_view"], alone["embedding"], atol=1e-5)
    assert "second_view" not in alone and np.abs(both["second_view"] - both["embedding"]).max() > 1e-3


def test_it_learns():
    assert run(contrastive(steps=60), 60)[1]["loss"] < run(contrastive(steps=60), 1)[1]["loss"] - 0.1


DEVICES = """
import sys; sys.path[:0] = sys.argv[3:]
import jax, numpy as np, test_embedding
assert jax.device_count() == int(sys.argv[1])
state, logs = test_embedding.run(test_embedding.contrastive(steps=4), 4)
np.savez(sys.argv[2], *jax.tree.leaves(state.params), loss=logs["loss"])
"""


@pytest.mark.slow
def test_the_comparisons_are_those_of_the_global_batch(tmp_path):
    tests = Path(__file__).parent
    for devices in (1, 8):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, "-c", DEVICES, str(devices), tmp_path / f"{devices}.npz", tests, tests.parent]
        subprocess.run(list(map(str, command)), env=environment, check=True)
    one, eight = (np.load(tmp_path / f"{devices}.npz") for devices in (1, 8))
    assert max(np.abs(one[name] - eight[name]).max() for name in one) < 1e-5


# The metrics.


def split(images=40, dimensions=6, noise=0.3, seed=0):
    """Embeddings near one centre for each patient of two images, views near them, labels by the sign of a feature."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(images // 2), 2)
    centres = rng.normal(size=(images // 2, dimensions))[patients]
    own, other = (unit(centres + noise * rng.normal(size=centres.shape)).astype(np.float32) for _ in range(2))
    labels = np.stack([own[:, 0] > 0, own[:, 1] > 0.2], 1).astype(np.float32)
    labels[::7, 1] = NAN
    predictions = {"features": (10 * own).astype(np.float32), "embedding": own, "second_view": other}
    return predictions, {"labels": labels}, patients


def values_of(task, predictions, targets, patients, **options):
    found = task.metrics(predictions, targets, calibration={}, groups=patients, **({"resamples": 0} | options))
    return {metric.name: metric.value for metric in found}


def test_retrieval_equals_scikit_learns_average_precision():
    predictions, targets, patients = split()
    found = values_of(make_task(), predictions, targets, patients)
    similarity = predictions["embedding"].astype(float) @ predictions["second_view"].T.astype(float)
    precision = [reference.average_precision_score(np.arange(40) == i, similarity[i]) for i in range(40)]
    assert found["view_map"] == pytest.approx(np.mean(precision), rel=1e-6)
    assert found["view_recall@1"] == pytest.approx((similarity.argmax(1) == np.arange(40)).mean())
    among = predictions["embedding"].astype(float) @ predictions["embedding"].T.astype(float)
    precision, hits = [], []
    for i in range(40):
        others = np.arange(40) != i
        right = (patients == patients[i])[others]
        precision.append(reference.average_precision_score(right, among[i, others]))
        hits.append(right[among[i, others].argmax()])
    assert found["patient_map"] == pytest.approx(np.mean(precision), rel=1e-6)
    assert found["patient_recall@1"] == pytest.approx(np.mean(hits))


def test_alignment_and_uniformity_equal_their_formulas():
    predictions, targets, patients = split()
    found = values_of(make_task(), predictions, targets, patients)
    own, other = predictions["embedding"].astype(float), predictions["second_view"].astype(float)
    assert found["alignment"] == pytest.approx((np.linalg.norm(own - other, axis=1) ** 2).mean(), rel=1e-5)
    squares = (np.linalg.norm(own[:, None] - own, axis=2) ** 2)[np.triu_indices(40, 1)]
    assert found["uniformity"] == pytest.approx(np.log(np.exp(-2 * squares).mean()), rel=1e-5)


def test_neighbours_of_other_patients_vote():
    predictions, targets, patients = split()
    found = values_of(make_task(neighbours=5), predictions, targets, patients)
    directions, labels = unit(predictions["features"].astype(float)), targets["labels"]
    scores = np.empty((40, 2))
    for i in range(40):
        others = np.flatnonzero(patients != patients[i])
        nearest = others[np.argsort(-(directions[others] @ directions[i]))[:5]]
        scores[i] = np.nanmean(labels[nearest], axis=0)
    for k, name in enumerate(("Edema", "Fracture")):
        known = ~np.isnan(labels[:, k])
        expected = reference.roc_auc_score(labels[known, k], scores[known, k])
        assert found[f"knn_auroc/{name}"] == pytest.approx(expected, rel=1e-6)
    assert found["knn_auroc/Edema"] > 0.8
    all_of_them = values_of(make_task(neighbours=40), predictions, targets, patients)
    assert all_of_them == values_of(make_task(neighbours=6), predictions, targets, patients)  # the root of 40
    only = values_of(make_task(neighbours=5), predictions, targets, patients, classes=("Fracture",))
    assert only["knn_auroc/macro"] == found["knn_auroc/Fracture"] and "knn_auroc/Edema" not in only


def test_one_point_finds_nothing_and_chance_is_chance():
    task, (predictions, targets, patients) = make_task(), split(images=400)
    point = {name: np.ones_like(array) / np.sqrt(array.shape[1]) for name, array in predictions.items()}
    found = values_of(task, point, targets, patients)
    assert found["view_recall@1"] == found["patient_recall@1"] == 0
    assert (found["alignment"], found["uniformity"]) == pytest.approx((0, 0), abs=1e-12)
    chance = values_of(task, task.trivial(predictions, {}), targets, patients)
    assert chance["view_recall@1"] < 0.02 and chance["patient_recall@1"] < 0.02
    assert chance["alignment"] == pytest.approx(2, abs=0.15) and abs(chance["knn_auroc/Edema"] - 0.5) < 0.1


def test_intervals_hold_the_value_and_what_is_undefined_says_why():
    task, (predictions, targets, patients) = make_task(), split(noise=1.0)
    for metric in task.metrics(predictions, targets, calibration={}, groups=patients, resamples=200):
        assert metric.low <= metric.value <= metric.high and metric.draws.shape == (200,), metric.name
    alone = task.metrics(predictions, {}, calibration={}, groups=None, resamples=20)
    assert [metric.name for metric in alone] == list(PER_IMAGE)  # no labels, no vote
    found = {metric.name: metric for metric in alone}
    assert np.isnan(found["patient_map"].value) and "no patient has two images" in found["patient_map"].note


def test_pictures_and_findings(tmp_path, sheets):
    task, (predictions, targets, _) = make_task(), split()
    for folder, truth in (("with", targets), ("without", {})):
        (tmp_path / folder).mkdir()
        task.draw(tmp_path / folder, "test", predictions, truth, calibration={})
        samples = samples_of(task, RNG.random((40, 8, 8, 1)), predictions, truth, {})
        task.draw_samples(tmp_path / folder, "test", samples, {})
        for kind in ("projection", "samples"):
            assert min(Image.open(tmp_path / folder / f"{kind}_test.png").size) > 200
    assert [sum(map(len, sheet.values())) for sheet in sheets] == [PLACES, PLACES]
    assert set(sheets[1]) == {"others at random"}
    scores = task.findings(predictions, {}, 3, (8, 8)).scores
    assert list(scores) == [f"embedding_{i}" for i in range(6)]
    np.testing.assert_allclose(list(scores.values()), predictions["embedding"][3])


def test_an_image_is_judged_and_drawn_by_its_nearest_others_in_the_split():
    task, (predictions, targets, _) = make_task(), split()
    similarity = predictions["embedding"] @ predictions["embedding"].T
    np.fill_diagonal(similarity, -2)
    nearest = np.argsort(-similarity, axis=1)[:, :3]
    labels = targets["labels"]
    unlike = np.abs(labels[nearest] - labels[:, None])
    known = np.isfinite(unlike).any((1, 2))
    found = task.errors(predictions, targets, {})
    expected = [np.nanmean([np.nanmean(one) for one in row if np.isfinite(one).any()]) for row in unlike[known]]
    np.testing.assert_array_equal(np.isfinite(found), known)
    np.testing.assert_allclose(found[known], expected, rtol=1e-6)
    assert task.companions(predictions, np.array([30, 4])).tolist() == nearest[[30, 4]].ravel().tolist()


def test_a_patients_own_images_are_not_among_the_nearest(tmp_path, monkeypatch):
    """Of two patients the second has one image: nothing else is left for the first one's."""
    task = make_task()
    vectors = retrieval.unit(RNG.standard_normal((4, 6)))
    labels, patients = np.float32([[0, 0], [0, 0], [0, 0], [1, 0]]), np.array(["a", "a", "a", "b"])
    predictions, targets = {"embedding": vectors}, {"labels": labels}
    np.testing.assert_allclose(task.errors(predictions, targets, {}, patients), [0.5] * 4)
    np.testing.assert_allclose(task.errors(predictions, targets, {}, patients, classes=task.classes[1:]), [0] * 4)
    assert task.companions(predictions, np.array([0, 1]), patients).tolist() == [3, 3]
    drawn = {}
    monkeypatch.setattr(figures, "samples", lambda path, images, **options: drawn.update(options))
    samples = samples_of(task, RNG.random((4, 8, 8, 1)), predictions, targets, {}, patients)
    task.draw_samples(tmp_path, "test", samples, {})
    assert drawn["captions"][0] == f"unlike 0.50, {vectors[0] @ vectors[3]:.2f}"
    assert drawn["captions"][3].count(",") == 3


# A run: pretraining, then another one that starts from its backbone.


def config_of(task, **changes):
    config = {
        "steps": 2,
        "evaluate_every": 2,
        "resamples": 10,
        "phantom": {"medmnist": {"train": 24, "validation": 10, "test": 6}},
        "backbone": {
            "name": "resnet",
            "mean": [0.4],
            "options": {"variant": "18", "depths": (1, 1), "width": 0.1},
        },
        "streams": {"lungs": {"dataset": "medmnist", "batch_size": 8, "tasks": {task: {}}}},
        "evaluations": {"validation": {"during_training": True}},
        "best": {"metric": "validation/loss", "mode": "min"},
    }
    return complete(config | changes)


def pretraining_config(**changes):
    config = config_of("embedding", **changes)
    config["streams"]["lungs"] |= {"transform": VIEW, "second_view": VIEW}
    config["streams"]["lungs"]["tasks"] = {"embedding": {"head": {"name": "projection", "hidden": (8,), "size": 4}}}
    return config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folders of a finished pretraining run."""
    folder = tmp_path_factory.mktemp("pretraining")
    folders = experiment.Folders(manual=None, data=folder / "data", work=folder / "run")
    run_module.run(pretraining_config(ema_decay=0.5), folders, mode="train", arguments=[])
    return folders


def test_a_run_leaves_its_figures(pretrained):
    for kind in ("projection", "samples"):
        assert (pretrained.work / f"{kind}_validation.png").is_file()
    results = (pretrained.work / "results.md").read_text()
    assert "view_recall@1" in results and "knn_auroc/Pneumonia" in results and "projection_validation.png" in results
    saved = np.load(pretrained.work / "predictions" / "validation_embedding.npz")
    assert saved["prediction/embedding"].shape == (10, 4) and "view_map" in saved["metric"]


def test_a_file_is_told_by_its_embedding(pretrained, tmp_path):
    (tmp_path / "lung.png").write_bytes(images.encode(RNG.integers(0, 255, (28, 28, 1), np.uint8)))
    assert predict.predict(predict.Network(pretrained.work), [tmp_path / "lung.png"], tmp_path / "out") == 0
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    vector = [float(row[f"embedding_{i}"]) for i in range(4)]
    assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-4)


def test_another_run_starts_from_its_backbone(pretrained, tmp_path):
    config = config_of("classification")
    config["backbone"] |= {"mean": (), "pretrained": str(pretrained.work)}
    folders = replace(pretrained, work=tmp_path / "run")
    training = experiment.compose(config, folders)
    assert training.model.mean == (0.4,) and training.config["backbone"]["mean"] == [0.4]
    params, batch_stats = training.warm_start(*training.model.init(jax.random.key(0)))
    before, _ = run_module.best_state(
        experiment.compose(pretraining_config(ema_decay=0.5), pretrained), pretrained.work
    )
    averaged = before.evaluated()
    for found, expected in zip((params, batch_stats), averaged):
        assert jax.tree.all(jax.tree.map(np.array_equal, found["backbone"], expected["backbone"]))
    assert toy.worst(averaged[0]["backbone"], before.params["backbone"]) > 0  # the averages are not the last params
    # What is saved stands on its own: the first run may go.
    saved = training.config | {"backbone": training.config["backbone"] | {"pretrained": "/gone"}}
    composed, _ = experiment.compose_for_files(saved, folders.work)
    assert composed.model.mean == (0.4,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"variant": "18", "depths": (1, 1), "width": 0.2}}, r"do not fit backbone: .* in the file, .* in"),
        ({"options": {"variant": "18", "depths": (1, 2), "width": 0.1}}, r"do not fit backbone: .* \(missing\)"),
        ({"name": "convnext", "options": {}}, "backbone.name is 'convnext': the run .* has 'resnet'"),
        ({"channels": 3}, "backbone.channels is 3: the run .* that it starts from has 1"),
    ],
)
def test_a_run_with_another_backbone_is_refused(pretrained, tmp_path, changes, words):
    config = config_of("classification")
    config["backbone"] |= {"mean": (), "pretrained": str(pretrained.work)} | changes
    with pytest.raises(InputError, match=words):
        training = experiment.compose(config, replace(pretrained, work=tmp_path))
        training.warm_start(*training.model.init(jax.random.key(0)))


def test_a_folder_without_a_run_is_refused(pretrained, tmp_path):
    config = config_of("classification")
    config["backbone"]["pretrained"] = str(tmp_path)
    with pytest.raises(InputError, match=r"backbone.pretrained: .* holds no checkpoints/best; expected the --workdir"):
        experiment.compose(config, experiment.Folders(manual=None, data=pretrained.data, work=tmp_path / "new"))


# What fits together.


def test_streams_may_share_one_space(pretrained):
    config = pretraining_config()
    stream = config["streams"].pop("lungs")
    shared = {"embedding": {"shared": "embedding", "head": {"name": "projection", "size": 4}}}
    config["streams"] = {"chest": stream | {"tasks": shared}, "eyes": stream | {"tasks": shared}}
    config["evaluations"]["validation"]["stream"] = "chest"
    training = experiment.compose(config, pretrained)
    assert list(training.model.parts) == ["backbone", "head/embedding"]
    assert {training.schedule(step) for step in range(2)} == {
        train.Turn(name, ("backbone", "head/embedding")) for name in ("chest", "eyes")
    }
    config["streams"]["eyes"]["tasks"] = {
        "embedding": {"shared": "embedding", "head": {"name": "projection", "size": 5}}
    }
    with pytest.raises(InputError, match="share the part 'head/embedding' and build it differently"):
        experiment.compose(config, pretrained)


def test_slices_of_a_batch_are_refused(pretrained):
    with pytest.raises(InputError, match="accumulate is 2: the task 'embedding' of stream 'lungs' compares the rows"):
        experiment.compose(pretraining_config(accumulate=2), pretrained)


def test_errors_name_the_task():
    for options, words in (
        ({"positives": "patients"}, "positives of task 'chest/embedding': no .*did you mean 'patient'"),
        ({"neighbours": 0}, "neighbours of task 'chest/embedding' is 0"),
        ({"head": {"name": "projection", "sise": 1}}, "did you mean 'size'"),
    ):
        with pytest.raises(InputError, match=words):
            make_task(**options)
    own = unit(RNG.normal(size=(4, 3)))
    with pytest.raises(InputError, match=r"'chest/embedding' compares two views .*second_view"):
        make_task().loss({"embedding": own, "temperature": 0.1}, make_batch(4), 8.0)
    with pytest.raises(InputError, match="positives are rows of the same labels, the batch has none"):
        make_task(positives="labels").loss(outputs_of(own, own), make_batch(4), 8.0)
