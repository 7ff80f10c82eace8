"""The composition root: defaults and their errors, every config of the repository, and what is composed from one."""

import contextlib
import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mediax import batch, builder, catalog, data, experiment, inference, protocols, train
from mediax.checkpoint import Checkpoints
from mediax.datasets import node21
from mediax.errors import InputError
from mediax.experiment import DEFAULTS, EVALUATION, STREAM, balanced_weights, complete, load_config, open_override
from mediax.layers import CPU_REMAT_OPTIONS

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
NAN = np.nan


# Configs.


def test_an_empty_config_is_the_defaults():
    assert complete({}) == DEFAULTS


def test_streams_and_evaluations_get_their_own_defaults():
    config = complete({"streams": {"a": {"dataset": "medmnist"}, "b": {}}, "evaluations": {"test": {"split": "test"}}})
    assert config["streams"] == {"a": STREAM | {"dataset": "medmnist"}, "b": STREAM}
    assert config["evaluations"] == {"test": EVALUATION | {"split": "test"}}


def test_given_values_replace_defaults_and_their_neighbours_stay():
    config = complete({"steps": 5, "optimizer": {"peak": 0.5}})
    assert config == DEFAULTS | {"steps": 5, "optimizer": DEFAULTS["optimizer"] | {"peak": 0.5}}


def test_whole_numbers_become_floats_and_lists_tuples():
    config = complete({"clip_norm": 2, "optimizer": {"peak": 1}, "backbone": {"mean": [0.5]}})
    values = config["clip_norm"], config["optimizer"]["peak"], config["backbone"]["mean"]
    assert values == (2.0, 1.0, (0.5,)) and [type(value) for value in values] == [float, float, tuple]


def test_open_dicts_take_any_key():
    given = {
        "backbone": {"options": {"variant": "18"}},
        "schedule": {"options": {"steps": 3}},
        "optimizer": {"options": {"b1": 0.8}, "per_part": {"head/*": {"peak": 1.0}}},
        "streams": {"a": {"build": {"flag": "x"}, "read": {"y": 1}, "tasks": {"classification": {"threshold": 0.1}}}},
        "phantom": {"medmnist": {"train": 8}},
    }
    config = complete(given)
    assert config["backbone"]["options"] == {"variant": "18"} and config["phantom"] == {"medmnist": {"train": 8}}
    assert config["optimizer"]["per_part"] == {"head/*": {"peak": 1.0}}
    assert config["streams"]["a"]["tasks"] == {"classification": {"threshold": 0.1}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stepz": 1}, "config field stepz: unknown; did you mean 'steps'"),
        ({"optimizer": {"peek": 1.0}}, "optimizer.peek: unknown; did you mean 'peak'"),
        ({"streams": {"a": {"batchsize": 1}}}, "streams.a.batchsize: unknown; did you mean 'batch_size'"),
        ({"evaluations": {"test": {"splitt": ""}}}, "evaluations.test.splitt: unknown; did you mean 'split'"),
        ({"steps": "many"}, "config field steps is 'many': expected int, as in 1000"),
        ({"steps": 10.0}, "steps is 10.0: expected int"),
        ({"steps": True}, "steps is True: expected int"),
        ({"clip_norm": True}, "clip_norm is True: expected float"),
        ({"clip_norm": "1"}, "clip_norm is '1': expected float"),
        ({"remat": 1}, "remat is 1: expected bool"),
        ({"precision": None}, "precision is None: expected str"),
        ({"optimizer": "adamw"}, "optimizer is 'adamw': expected a dict"),
        ({"phantom": True}, "phantom is True: expected a dict"),
        ({"schedule": {"frozen": "backbone"}}, r"schedule.frozen is 'backbone': expected tuple, as in \(\)"),
        ({"streams": {"a": {"batch_size": 8.0}}}, "streams.a.batch_size is 8.0: expected int"),
        ({"streams": {"a": 3}}, "config field streams.a is 3: expected a dict"),
        ({"evaluations": {"test": "test"}}, "evaluations.test is 'test': expected a dict"),
    ],
)
def test_what_is_misspelt_or_of_a_wrong_type_is_named(given, words):
    with pytest.raises(InputError, match=words):
        complete(given)


@pytest.mark.parametrize("variant", ["", ":phantom"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_complete(path, variant):
    config = load_config(f"{path}{variant}").to_dict()
    assert complete(config) == config and config.keys() == DEFAULTS.keys()
    assert all(stream.keys() == STREAM.keys() for stream in config["streams"].values())
    assert all(evaluation.keys() == EVALUATION.keys() for evaluation in config["evaluations"].values())
    assert all(protocols.get(evaluation["protocol"]) for evaluation in config["evaluations"].values())
    selecting = config["best"]["metric"].split("/")[0]
    assert config["streams"] and config["evaluations"][selecting]["during_training"]
    assert bool(config["phantom"]) == bool(variant)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_refuses_another_variant(path):
    with pytest.raises(InputError, match=r"no variant 'fantom'.* [Vv]alid: .*phantom"):
        load_config(f"{path}:fantom")


def test_a_variant_is_one_that_the_file_names_with_phantom_or_without(tmp_path):
    file = tmp_path / "cells.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "VARIANTS = ('small,plain', 'large,plain')\n"
        "def get_config(variant):\n"
        "    *names, last = variant.split(',')\n"
        "    return ConfigDict({'steps': len(names), 'phantom': {'medmnist': {}} if last == 'phantom' else {}})\n"
    )
    assert experiment.variants(file) == ("small,plain", "large,plain")
    for variant, steps in (("", 1), ("phantom", 2), ("large,plain", 1), ("large,plain,phantom", 2)):
        config = load_config(f"{file}:{variant}")
        assert config.steps == steps and bool(config.phantom) == variant.endswith("phantom")
    words = r"has no variant 'larg,plain,phantom'; did you mean 'large,plain'\? .* Each takes ',phantom' too"
    with pytest.raises(InputError, match=words):
        load_config(f"{file}:larg,plain,phantom")
    for variant in ("small", "small,plain,fantom", "plain,phantom", "phantom,small,plain"):
        with pytest.raises(InputError, match=f"has no variant '{variant}'"):
            load_config(f"{file}:{variant}")
    assert experiment.variants(CONFIGS[0].with_name("chexpert_convnext.py")) == ("",)


def test_a_config_file_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file .*did you mean 'configs/pneumoniamnist_resnet.py'"):
        load_config("configs/pneumoniamnist_resnt.py")
    broken = tmp_path / "broken.py"
    for text, words in (("steps = ", "SyntaxError"), ("x = 1", "get_config"), ("import no_such_module", "no_such_mod")):
        broken.write_text(text)
        with pytest.raises(InputError, match=f"broken.py cannot be loaded: .*{words}"):
            load_config(str(broken))
    broken.write_text("def get_config():\n    return {'steps': 1}")
    with pytest.raises(InputError, match=r"get_config of .*broken.py returned dict, expected a ConfigDict"):
        load_config(str(broken))


def test_overrides_name_fields_that_exist():
    config = load_config(str(CONFIGS[0]))
    before = config.to_dict()
    stream, evaluation = next(iter(config.streams)), next(iter(config.evaluations))
    for path in (
        "steps",
        "optimizer.peak",
        "optimizer.per_part",
        "backbone.options.no_such_option",
        f"streams.{stream}.batch_size",
        f"streams.{stream}.build.anything",
        f"evaluations.{evaluation}.protocol",
    ):
        open_override(config, path)
    assert config.to_dict() == before


def test_an_override_begins_the_open_dicts_that_are_missing():
    config = ml_collections.ConfigDict(complete({"streams": {"chests": {"tasks": {"boxes": {"name": "detection"}}}}}))
    for path in (
        "phantom.node21.count",
        "streams.chests.tasks.boxes.loss_weights.box",
        "optimizer.per_part['head/*'].peak",
        "optimizer.per_part.backbone.peak",
    ):
        open_override(config, path)
    after = config.to_dict()
    assert after["phantom"] == {"node21": {}}
    assert after["streams"]["chests"]["tasks"] == {"boxes": {"name": "detection", "loss_weights": {}}}
    assert after["optimizer"]["per_part"] == {"head/*": {}, "backbone": {}}
    with pytest.raises(InputError, match=r"tasks.boxes.name is 'detection' and has no fields"):
        open_override(config, "streams.chests.tasks.boxes.name.x")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("stepz", r"--config.stepz: the config has no field 'stepz'; did you mean 'steps'"),
        ("optimizer.peek", r"--config.optimizer.peek: optimizer has no field 'peek'; did you mean 'peak'"),
        ("streams.chest.batch_size", "streams has no field 'chest'; did you mean 'chests'"),
        ("streams.chests.batchsize", "streams.chests has no field 'batchsize'; did you mean 'batch_size'"),
        ("streams.chests.transform[0].size", r"streams.chests.transform is \(\) and has no fields"),
        ("optimizer.per_part.head/*.peak", r"written as in optimizer.per_part\['head/\*'\].peak"),
    ],
)
def test_an_override_of_nothing_is_an_error(path, words):
    with pytest.raises(InputError, match=words):
        open_override(ml_collections.ConfigDict(complete({"streams": {"chests": {}}})), path)


# Class weights.


def test_balanced_weights_give_both_states_of_a_class_the_same_sum():
    labels = np.float32([[1, 0, NAN, 0.5], [0, 0, NAN, 1], [0, 0, NAN, 0], [NAN, 0, NAN, 0.5]])
    # Three known, one present; four known, never present; never known; soft labels, two of four present in sum.
    expected = [[3 / (2 * 2), 3 / (2 * 1)], [4 / (2 * 4), 4 / (2 * 1)], [0, 0], [1, 1]]
    np.testing.assert_allclose(balanced_weights(labels), expected)
    labels = (np.random.default_rng(0).random((200, 3)) < [0.1, 0.5, 0.8]).astype(np.float32)
    absent, present = np.transpose(balanced_weights(labels))
    np.testing.assert_allclose((labels * present).sum(0), ((1 - labels) * absent).sum(0))
    np.testing.assert_allclose((labels * present + (1 - labels) * absent).mean(0), 1)


def test_balanced_weights_of_exclusive_classes_give_every_class_the_same_sum():
    labels = np.float32([[1, 0, 0]] * 6 + [[0, 1, 0]] * 3 + [[0, 0, 1]] + [[NAN] * 3])
    present = np.transpose(balanced_weights(labels, exclusive=True))[1]
    np.testing.assert_allclose(present, [10 / (3 * 6), 10 / (3 * 3), 10 / (3 * 1)])
    np.testing.assert_allclose(np.nansum(labels * present), 10)
    # A class that is never present has no row to weigh.
    assert np.isfinite(balanced_weights(labels[:9], exclusive=True)).all()


# Composition.

GIVEN = {
    "steps": 10,
    "phantom": {"medmnist": {"train": 24, "validation": 10, "test": 6}},
    "backbone": {"name": "resnet", "options": {"variant": "18", "depths": (1, 1), "width": 0.1}},
    "streams": {
        "pneumonia": {
            "dataset": "medmnist",
            "build": {"flag": "pneumoniamnist"},
            "batch_size": 8,
            "tasks": {"classification": {"class_weights": "balanced"}, "second": {"name": "classification"}},
        },
        "shuffled": {
            "dataset": "medmnist",
            "batch_size": 4,
            "permute_labels": True,
            "tasks": {"classification": {}},
        },
    },
    "evaluations": {
        "validation": {"stream": "pneumonia", "during_training": True},
        "official": {"stream": "pneumonia", "protocol": "medmnist", "calibrate_on": "test"},
        "test": {"stream": "pneumonia", "split": "test", "batch_size": 4, "protocol": "medmnist"},
        "control": {"stream": "shuffled", "during_training": True},
    },
    "schedule": {"name": "cyclic", "frozen": ("head/*/second",)},
    "optimizer": {"peak": 0.25, "schedule": "constant", "per_part": {"head/*": {"peak": 1.0}}, "layer_decay": 0.5},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    return experiment.Folders(manual=None, data=folder / "data", work=folder / "run")


@pytest.fixture(scope="module")
def training(folders):
    return experiment.compose(ml_collections.ConfigDict(complete(GIVEN)), folders)


def _changed(path, value):
    """A complete config with the field at the dotted `path` set to `value`."""
    config = copy.deepcopy(complete(GIVEN))
    *outer, last = path.split(".")
    here = config
    for name in outer:
        here = here[name]
    here[last] = value
    return config


def test_streams_and_evaluations_are_opened(training):
    assert {name: stream.batch_size for name, stream in training.streams.items()} == {"pneumonia": 8, "shuffled": 4}
    evaluations = training.evaluations
    assert {name: (evaluation.size, evaluation.calibrate_on) for name, evaluation in evaluations.items()} == {
        "validation": (10, "validation"),
        "official": (10, "test"),
        "test": (6, "validation"),
        "control": (10, "control"),  # the selecting evaluation is another stream's
    }
    assert {name for name, evaluation in evaluations.items() if evaluation.during_training} == {"validation", "control"}
    assert all(evaluation.phantom for evaluation in evaluations.values())
    assert evaluations["test"].protocol.name == "medmnist"
    # Only the protocol differs: the model's outputs are the same.
    assert evaluations["validation"].rows == evaluations["official"].rows
    assert len({evaluation.rows for evaluation in evaluations.values()}) == 3
    for name, rows in (("pneumonia", 8), ("shuffled", 4)):
        first = next(training.streams[name].batches(0))
        batch.check(first)
        assert first["image"].shape == (rows, 28, 28, 1) and first["labels"].shape == (rows, 1)
    seen = [name for rows in training.evaluations["test"].batches() for name in rows["id"][rows["valid"]]]
    assert len(set(seen)) == len(seen) == 6


def test_parts_schedule_and_optimizer_share_their_names(training):
    heads = ["head/pneumonia/classification", "head/pneumonia/second", "head/shuffled/classification"]
    assert list(training.model.parts) == ["backbone", *heads] == list(training.optimizer)
    assert [training.schedule(step).stream for step in range(3)] == ["pneumonia", "shuffled", "pneumonia"]
    assert training.schedule(0).live == ("backbone", "head/pneumonia/classification")
    assert training.schedule(1).live == ("backbone", "head/shuffled/classification")
    assert training.learning_rate(5) == 0.25
    assert (training.model.mean, training.model.std) == ((0.5,), (0.25,))
    state = jax.eval_shape(partial(train.init_state, training), jax.random.key(0))
    assert state.params.keys() == state.opt_state.keys() == training.model.parts.keys()
    assert state.params["head/shuffled/classification"]["linear"]["kernel"].shape[1] == 1


def test_learning_rates_follow_the_part_and_the_layer(training):
    rates = {}
    for part in ("head/pneumonia/classification", "backbone"):
        shapes, _ = jax.eval_shape(training.model.parts[part].init, jax.random.key(0))
        params = jax.tree.map(lambda shape: np.zeros(shape.shape, np.float32), shapes)
        chain = training.optimizer[part]
        # Adam's first step on a gradient of one is the learning rate itself.
        first_step = jax.jit(
            lambda p, chain=chain: chain.update(jax.tree.map(jax.lax.exp, p), chain.init(p), p, step=0)
        )
        updates, _ = first_step(params)
        rates[part] = np.array([-float(leaf.reshape(-1)[0]) for leaf in jax.tree.leaves(updates)])
    np.testing.assert_allclose(rates["head/pneumonia/classification"], 1.0, rtol=1e-4)
    layers_above = np.log2(0.25 / rates["backbone"])
    np.testing.assert_allclose(layers_above, layers_above.round(), atol=1e-3)
    assert set(layers_above.round()) == set(range(1, int(layers_above.round().max()) + 1)) != {1}


def test_balanced_weights_are_those_of_the_training_split(training):
    batches = training.streams["pneumonia"].batches(0)
    labels = np.concatenate([next(batches)["labels"] for _ in range(3)])  # one epoch of 24
    weights = training.streams["pneumonia"].tasks["classification"].class_weights
    np.testing.assert_allclose(weights, balanced_weights(labels))
    assert training.streams["pneumonia"].tasks["second"].class_weights == ()


def test_tasks_know_the_classes_of_their_dataset(training):
    tasks = training.streams["pneumonia"].tasks
    assert [(task.name, task.classes) for task in tasks.values()] == [
        ("pneumonia/classification", ("Pneumonia",)),
        ("pneumonia/second", ("Pneumonia",)),
    ]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("streams", {}, "streams is empty: expected at least one stream"),
        ("streams.pneumonia.tasks", {}, "streams.pneumonia.tasks is empty: expected at least one task"),
        ("accumulate", 3, r"streams.pneumonia.batch_size is 8: expected a multiple of .* 3 slices"),
        ("evaluations.test.stream", "shufled", "evaluations.test.stream: no stream 'shufled'; did you mean 'shuffled'"),
        ("evaluations.test.calibrate_on", "tests", "test.calibrate_on: no evaluation 'tests'; did you mean 'test'"),
        ("evaluations.test.protocol", "medmnst", "no protocol 'medmnst'; did you mean 'medmnist'"),
        ("evaluations.test.flips", ("up",), "evaluations.test.flips: no flip 'up'; .*horizontal"),
        ("evaluations.test.window", (8, 8), "evaluations.test.window: .* 'classification' have no pixels"),
        (
            "best.metric",
            "test/loss",
            "best.metric: no evaluation 'test' runs during training; Valid: control, validation",
        ),
        ("best.metric", "validaton/loss", "no evaluation 'validaton' runs .*; did you mean 'validation'"),
        (
            "best.metric",
            "validation",
            r"best.metric: 'validation' has no figure ''; Valid: classification/..., loss, sec",
        ),
        ("best.metric", "validation/classification", "no figure 'classification'; .*classification/"),
        (
            "best.metric",
            "validation/clasification/auroc/macro",
            r"no figure 'clas.*'; .*Valid: classification/\.\.\., loss",
        ),
        ("best.metric", "validation/los", "'validation' has no figure 'los'; did you mean 'loss'"),
        ("best.mode", "maximum", "config field best.mode: no 'maximum'; did you mean 'max'"),
        ("streams.shuffled.read", {"clases": "all"}, "read.clases of dataset 'medmnist': Valid: none"),
        ("streams.shuffled.tasks", {"classify": {}}, "tasks has no 'classify': did you mean 'classification'"),
        ("streams.shuffled.tasks", {"classification": {"weights": 1}}, "shuffled.tasks.classification: no option 'wei"),
        ("streams.shuffled.tasks", {"classification": {"threshold": "f2"}}, "no rule 'f2'; did you mean 'f1'"),
        ("streams.shuffled.dataset", "medmist", "datasets has no 'medmist': did you mean 'medmnist'"),
        ("backbone.name", "resnt", "backbones has no 'resnt': did you mean 'resnet'"),
        ("backbone.options", {"widht": 1}, "backbone.options of 'resnet': no option 'widht'; did you mean 'width'"),
        ("backbone.mean", (0.5, 0.5, 0.5), "backbone.mean and backbone.std: expected 1 numbers each"),
        ("precision", "float16", "config field precision: no 'float16'"),
        ("schedule.name", "cycle", "did you mean 'cyclic'"),
        ("schedule.frozen", ("head/pneumo/*",), "no part matches the pattern 'head/pneumo/"),
        ("optimizer.name", "adam", "did you mean 'adamw'"),
        ("optimizer.per_part", {"neck/*": {}}, "per_part: nothing matches 'neck/"),
        ("steps", 0, "config field steps is 0: expected at least 1"),
        ("streams.shuffled.batch_size", 0, "streams.shuffled.batch_size is 0: expected at least 1"),
        ("evaluations.test.batch_size", -4, "evaluations.test.batch_size is -4: expected at least 1"),
        ("ema_decay", 1.0, "config field ema_decay is 1.0: expected less than 1"),
        ("optimizer.peak", -1.0, "optimizer.peak is -1.0: expected at least 0"),
        ("optimizer.peak", NAN, "optimizer.peak is nan: expected at least 0"),
        ("optimizer.final_fraction", -0.1, "optimizer.final_fraction is -0.1: expected at least 0"),
        ("optimizer.per_part", {"head/*": {"peak": -1.0}}, r"per_part.head/\*.peak is -1.0: expected at least 0"),
        ("optimizer.per_part", {"head/*": {"peak": "x"}}, r"per_part.head/\*.peak is 'x': expected a number"),
        ("optimizer.per_part", {"head/*": 1.0}, r"per_part\['head/\*'\] is 1.0: expected a dict"),
        ("backbone.std", (0.0,), r"backbone.std is \(0.0,\): .*expected more than 0"),
        ("optimizer.weight_decay", -0.1, "optimizer.weight_decay is -0.1: expected at least 0"),
        ("evaluations.test.calibrate_on", "control", "calibrate_on: 'control' is of .* cannot come from it"),
        (
            "evaluations.official",
            EVALUATION | {"stream": "pneumonia", "protocol": "study"},
            "official.calibrate_on: no evaluation of its tasks during training is of .* 'study'",
        ),
        (
            "evaluations.control.protocol",
            "study",
            "control.protocol: 'study' needs study_id, which this dataset's examples lack",
        ),
        ("evaluations.test.protocol", "eyepacs/kappa", "'eyepacs/kappa' is for the task 'ordinal', 'classification'"),
        (
            "streams.shuffled.tasks",
            {"classification": {"exclusive": True, "threshold": "f1"}},
            "threshold of task 'shuffled/classification' is 'f1': exclusive classes have no thresholds",
        ),
        ("evaluations.validation.split", "tset", "The evaluation 'validation' cannot do without it: config field best"),
        (
            "streams.shuffled.tasks",
            {"classification": {"label_smoothing": None}},
            "shuffled.tasks.classification: an option has a value of the wrong type: ",
        ),
        ("evaluations.test.protocol", "chexpert/images", r"test.protocol: .* needs the classes \['Atelectasis', "),
        (
            "streams.shuffled.tasks",
            {"classification": {"classes": ("Mass",)}},
            r"evaluations.control: its dataset has the classes \['Pneumonia'\], .* predicts \['Mass'\]",
        ),
        ("evaluations.test.split", "test[:50%", r"'test\[:50%': no slice of train, validation, test; expected"),
        ("evaluations.test.split", "test[:150%]", r"'test\[:150%\]': no slice of"),
        ("evaluations.test.split", "tset", "has no split 'tset'.*evaluations.test.optional=True"),
        (
            "streams.shuffled.tasks",
            {"segmentation": {}},
            "shuffled.tasks.segmentation: needs structures, and the dataset 'medmnist' has none",
        ),
        (
            "streams.shuffled.tasks",
            {"classification": {"head": {"name": "pooled", "pretrained": "gone.pth"}}},
            "gone.pth: no such file",
        ),
        ("schedule.options", {"name": "x"}, "schedule.options of 'cyclic': no option 'name'"),
        ("optimizer.options", {"peak": 1.0}, "optimizer.options of 'adamw': no option 'peak'; .*Valid: b1, b2, eps"),
        (
            "streams.shuffled.tasks",
            {"classification": {"head": {"name": "pooled", "classes": 4}}},
            "head of task 'shuffled/classification': no option 'classes'; .*Valid: dropout, normalize, pooling",
        ),
        (
            "streams.shuffled.transform",
            ("foo",),
            r"streams.shuffled.transform: transforms\[0\]: 'foo' found, .*valid nam",
        ),
        (
            "streams.shuffled.batch_transform",
            ({"name": "mixpu"},),
            "shuffled.batch_transform: .*unknown transf.* mixup",
        ),
        ("evaluations.test.transform", ({"name": "rezise"},), "evaluations.test.transform: .* 'rezise'; valid: resize"),
        ("streams.shuffled.max_boxes", 0, "streams.shuffled.max_boxes is 0: expected at least 1"),
        ("streams.shuffled.tasks", {"classification": 3}, "shuffled.tasks.classification is 3: expected a dict"),
        ("phantom", {"medmnist": 3}, "phantom.medmnist is 3: expected a dict"),
        ("phantom", {"medmnst": {}}, "datasets has no 'medmnst': did you mean 'medmnist'"),
        ("phantom", {"medmnist": {"root": "/x"}}, "phantom.medmnist: no option 'root'; .*Valid: seed, test, train"),
        ("phantom", {"medmnist": {"trian": 3}}, "phantom.medmnist: no option 'trian'; did you mean 'train'"),
    ],
)
def test_what_a_config_gets_wrong_is_named(folders, training, path, value, words):
    with pytest.raises(InputError, match=words):
        experiment.compose(_changed(path, value), folders)


def test_a_task_that_lacks_a_method_is_named(folders, training, monkeypatch):
    monkeypatch.delattr(catalog.load("tasks", "classification").Task, "errors")
    with pytest.raises(InputError, match=r"mediax/tasks/classification\.py: Task lacks errors; see 'Add a task'"):
        experiment.compose(ml_collections.ConfigDict(complete(GIVEN)), folders)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("validation/loss", "min"),
        ("validation/classification/auroc/macro", "max"),
        ("validation/age/mae/macro", "min"),
        ("mae/registration/auc", "max"),
    ],
)
def test_better_is_what_the_metric_says(metric, mode):
    assert experiment._best_mode({"metric": metric, "mode": ""}) == mode
    assert experiment._best_mode({"metric": metric, "mode": "max"}) == "max"


def test_an_optional_evaluation_without_its_split_is_left_out(folders, training, caplog):
    config = _changed("evaluations.control.optional", True)
    config["evaluations"]["control"] |= {"split": "absent"}
    assert experiment.compose(config, folders).evaluations.keys() == training.evaluations.keys() - {"control"}
    assert "evaluations.control is left out" in caplog.text
    config = _changed("evaluations.test.optional", True)
    config["evaluations"]["test"] |= {"split": "absent"}
    with pytest.raises(InputError, match="'official' takes its thresholds from it, and its split is absent"):
        experiment.compose(config, folders)


def test_slices_that_share_patients_are_refused(folders, training, monkeypatch):
    config = _changed("streams.pneumonia.split", "train[:50%]")
    config["evaluations"]["validation"] |= {"split": "train[50%:]"}
    experiment.compose(config, folders)  # an image a patient
    del config["evaluations"]["official"], config["evaluations"]["test"]
    monkeypatch.setattr(builder.Records, "columns", lambda records: {"patient_id": ["p1", "p2", records.split[:1]]})
    with pytest.raises(InputError, match=r"validation.split: 3 patients of 'train\[50%:\]' are in the training split"):
        experiment.compose(config, folders)
    config["evaluations"]["validation"] |= {"build": {"flag": "pneumoniamnist", "size": 64}}
    with pytest.raises(InputError, match=r"validation.split: 3 patients"):  # the same images, built otherwise
        experiment.compose(config, folders)
    config["evaluations"]["validation"] |= {"build": {}, "split": "train[:50%]"}
    experiment.compose(config, folders)  # the very images of the training


def test_a_protocol_finds_its_classes_and_fields_before_training():
    vessels = SimpleNamespace(structures=("Vessels",), metrics=lambda ratio=(): None)
    with pytest.raises(InputError, match=r"'drishti_gs' needs the classes \['Optic Cup', 'Optic Disc'\], which"):
        experiment._check_protocol(
            "test", protocols.get("drishti_gs"), {"vessels": vessels}, {"vessels": {"name": "segmentation"}}
        )
    with pytest.raises(InputError, match="'fire' needs category, which"):
        experiment._check_fields("test", protocols.get("fire"), {"image": None, "keypoints": None})
    experiment._check_fields("test", protocols.get("fire"), {"category": 0})


def test_flips_of_what_is_called_left_and_right_are_refused():
    lungs = SimpleNamespace(output_names=("Left Lung", "Right Lung", "Heart"))
    organs = SimpleNamespace(names=("Heart", "right lung", "left lung"))
    ways = SimpleNamespace(output_names=("Orientation Up", "Orientation Down"))
    flip = {"name": "random_flip", "horizontal": 0.5}
    for task, steps, words in (
        (
            lungs,
            [{"name": "resize", "size": 8}, flip],
            r"streams\.a\.transform: .*\['Left Lung', 'Right Lung'\] .*horiz",
        ),
        (organs, [flip], r"\['right lung', 'left lung'\] of the task 'x'"),
        (ways, [flip | {"vertical": 1}], r"\['Orientation Up', 'Orientation Down'\] of the task 'x' \(vertical\)"),
    ):
        with pytest.raises(InputError, match=words):
            experiment._check_flips("a", steps, {"x": task})
    experiment._check_flips("a", [flip | {"horizontal": 0.0, "vertical": 0.5}], {"x": lungs})
    heart = SimpleNamespace(box_classes=("Heart", "Left Ventricle"))
    experiment._check_flips("a", [flip], {"x": heart, "y": ways, "z": SimpleNamespace()})


def test_an_evaluation_names_what_the_task_finds(training):
    detection = SimpleNamespace(box_classes=("Aortic Enlargement", "Mass"))
    names = {"classes": (), "box_classes": ("Mass", "Nodule")}
    with pytest.raises(InputError, match=r"external: .* the box_classes \['Mass', 'Nodule'\], task 'boxes' predicts"):
        experiment._check_names("external", names, {"boxes": detection})
    experiment._check_names("external", {"box_classes": ("Aortic Enlargement", "Mass")}, {"boxes": detection})


def test_a_run_that_has_begun_needs_the_weights_no_more(tmp_path):
    config = complete({"backbone": {"name": "resnet", "pretrained": "gone.pth"}})
    with pytest.raises(InputError, match="gone"):
        experiment._warm_start_checked(config, tmp_path)
    saved = {"backbone": {"mean": [0.4], "std": [0.2]}}
    with contextlib.closing(Checkpoints(tmp_path, "latest")) as checkpoints:
        checkpoints.save(0, {"step": jnp.zeros(())}, {}, saved)
    found = experiment._warm_start_checked(config, tmp_path)["backbone"]
    assert (found["mean"], found["std"]) == ((0.4,), (0.2,))


def test_files_are_read_as_images_of_an_evaluation_of_images():
    config = complete(
        GIVEN
        | {
            "evaluations": {"test": {"stream": "pneumonia", "protocol": "study"}}
            | {"all": {"stream": "pneumonia"}, "some": {"stream": "pneumonia", "tasks": ("second",)}}
        }
    )
    assert experiment._evaluation_of_streams(config, "") == ["all"]
    assert experiment._evaluation_of_streams(config, "test") == ["test"]


@pytest.mark.parametrize(("task", "dataset"), [("segmentation", "drive"), ("detection", "node21")])
def test_heads_compute_as_the_config_says(tmp_path, task, dataset):
    given = {"streams": {"a": {"dataset": dataset, "tasks": {task: {}}}}, "precision": "bfloat16", "remat": True}
    given |= {"backbone": {"name": "resnet"}, "evaluations": {"test": {"split": "test"}}}
    training, readings = experiment.compose_for_files(given, tmp_path)
    assert (readings["a"].tasks[task].dtype, readings["a"].tasks[task].remat) == (jnp.bfloat16, True)
    assert training.compiler_options == CPU_REMAT_OPTIONS  # the tests run on a CPU
    assert not experiment.compose_for_files(given | {"remat": False}, tmp_path)[0].compiler_options


def test_views_are_those_of_the_evaluation_and_part_of_what_the_model_sees(folders, training):
    seen = experiment.compose(_changed("evaluations.validation.flips", ("horizontal",)), folders).evaluations
    assert seen["validation"].views == inference.Views(flips=("horizontal",))
    assert seen["official"].views == inference.WHOLE and seen["official"].rows == training.evaluations["official"].rows
    assert seen["validation"].rows != seen["official"].rows == training.evaluations["validation"].rows


def test_copies_that_the_thresholds_do_not_know_of_are_said(folders, monkeypatch):
    warned = []
    monkeypatch.setattr(experiment.logging, "warning", lambda message, *values: warned.append(message % values))
    both = {name: GIVEN["evaluations"][name] | {"flips": ("horizontal",)} for name in ("validation", "test")}
    experiment.compose(complete(GIVEN | {"evaluations": GIVEN["evaluations"] | both}), folders)
    assert not [line for line in warned if "flips" in line and ".test." in line]
    experiment.compose(_changed("evaluations.test.flips", ("horizontal",)), folders)
    (line,) = [line for line in warned if ".test." in line]
    assert "evaluations.test.flips is ('horizontal',), and () in the evaluation 'validation'" in line


def test_the_phantom_is_made_once_for_the_same_arguments(folders, training):
    trees = [path for path in (folders.data / "mediax_phantoms").iterdir() if path.is_dir()]
    assert [path.name.partition("-")[0] for path in trees] == ["medmnist"]
    assert (trees[0] / "pneumoniamnist.npz").is_file()


def test_too_many_boxes_for_a_stream_are_found_before_the_first_step(tmp_path):
    given = {"streams": {"a": {"dataset": "node21", "tasks": {"detection": {}}, "batch_size": 2}}}
    given |= {"backbone": {"name": "resnet"}, "phantom": {"node21": {"count": 12, "size": 64}}}
    given |= {"evaluations": {"test": {"split": "test", "during_training": True}}, "best": {"metric": "test/loss"}}
    folders = experiment.Folders(None, tmp_path / "data", tmp_path / "run")
    sources = experiment.Sources(complete(given), folders)
    records = {split: sources.open("node21", {}, split) for split in ("train", "test")}
    counts = {split: [len(record["boxes"]) for record in of_split] for split, of_split in records.items()}
    assert all(data.scan_boxes(records[split], node21.read).tolist() == counts[split] for split in records)
    least, most = counts["train"].index(0), max(counts["test"])
    given["streams"]["a"] |= {"split": f"train[{least}:{least + 1}]", "max_boxes": 1}  # what is trained on fits
    words = f"streams.a.max_boxes is 1: the split 'test' of node21 has an image with {most} boxes"
    with pytest.raises(InputError, match=words):
        experiment.compose(complete(given), folders)
    (folders.work / "checkpoints" / "latest" / "0").mkdir(parents=True)  # a run that has begun is not counted anew
    experiment.compose(complete(given), folders)
