"""Every cell of the table: each config in each variant, on its phantom, stopped on the way, resumed and scored.

Of what each has for the real data, the shapes are checked: networks, image sizes and transforms, without running them.
"""

import itertools
import json
import signal
from functools import partial

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from launch import minijsrt
from mediax import evaluate, experiment, protocols, run, train
from mediax.batch import device_fields
from mediax.preemption import Preempted, Preemption

STEPS, STOP = 3, 2  # of a run, and after how many of them it is told to stop
COUNT = 40  # images or patients of a phantom, at most
CACHE = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
CELLS = [(path, variant) for path in experiment.config_files() for variant in experiment.variants(path)]


def _cells(fast):
    """Every cell; all but the first of each config are slow, or all of them."""
    for path, variant in CELLS:
        first = fast and variant == experiment.variants(path)[0]
        marks = [pytest.mark.configs] + ([] if first else [pytest.mark.slow])
        yield pytest.param(path, variant, id=f"{path.stem}:{variant}", marks=marks)


def few_images(phantom):
    """The arguments of phantoms, with no more images than a test needs."""

    def fewer(name, value):
        counts = name != "size" and (value is None or type(value) is int)
        return min(value or COUNT, COUNT) if counts else value

    return {
        dataset: {name: fewer(name, value) for name, value in options.items()} for dataset, options in phantom.items()
    }


def phantom_config(path, variant):
    """The phantom's config with few steps on few images, all else as it is."""
    config = experiment.load_config(f"{path}:{variant},phantom" if variant else f"{path}:phantom").to_dict()
    for spec in (*config["streams"].values(), *config["evaluations"].values()):
        spec["batch_size"] = 4
    for stream in config["streams"].values():
        for task in stream["tasks"].values():
            if task.get("dimensions", 0) > COUNT // 2:  # so few images do not span more
                task["dimensions"] = COUNT // 2
    every = {"log_every": 1, "evaluate_every": STEPS, "checkpoint_every": STEPS}
    few = {"steps": STEPS, "resamples": 10, "cpu_devices": 1, "phantom": few_images(config["phantom"])}
    return config | every | few


def real_config(path, variant):
    """The config for the real data, with its networks, sizes and transforms, on the phantom's images."""
    config = experiment.load_config(f"{path}:{variant}").to_dict()
    for spec in (*config["streams"].values(), *config["evaluations"].values()):
        spec["batch_size"] = 2
    few = {"workers": 0, "cpu_devices": 1, "phantom": phantom_config(path, variant)["phantom"]}
    return config | few


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Where phantoms and built sets lie, which the cells of one dataset share; what is compiled is kept there, too."""
    folder = tmp_path_factory.mktemp("configs")
    before = {name: jax.config.values[name] for name in ("jax_disable_most_optimizations", *CACHE)}
    kept = before[CACHE[0]] or str(folder / "compiled")
    _configure({"jax_disable_most_optimizations": True, **dict(zip(CACHE, (kept, 0.0)))})
    yield folder
    _configure(before)


def _configure(values):
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def told_to_stop(monkeypatch):
    """Sends this process SIGTERM, once, when a step is done."""
    reached, sent = Preemption.reached, []

    def after_a_step(self, step):
        if step == STOP and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGTERM)
        return reached(self, step)

    monkeypatch.setattr(Preemption, "reached", after_a_step)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("path", "variant"), [*_cells(fast=True)])
def test_a_cell_trains_stops_resumes_and_is_scored(path, variant, data, told_to_stop, tmp_path):
    config = phantom_config(path, variant)
    folders = experiment.Folders(manual=None, data=data, work=tmp_path)
    with pytest.raises(Preempted, match=f"stopped after step {STOP} of {STEPS}"):
        run.run(config, folders, mode="train", arguments=[])
    assert not (tmp_path / "results.json").exists()
    run.run(config, folders, mode="train", arguments=[])
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [row["step"] for row in log if any(name.startswith("train/") for name in row)]
    assert trained == list(range(1, STEPS + 1))
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {result["evaluation"] for result in results} == config["evaluations"].keys()
    for result in results:
        assert result["phantom"] and result["metrics"] and (tmp_path / "results.md").exists()
        protocol = protocols.get(config["evaluations"][result["evaluation"]]["protocol"])
        assert result["protocol"].startswith(f"{protocol.name} ({protocol.description}")
        figures = {metric["name"]: metric for metric in result["metrics"]}
        assert set(protocol.headline) <= figures.keys()
        assert all("trivial" in metric for metric in figures.values())
    jax.clear_caches()


@pytest.mark.parametrize(("path", "variant"), [*_cells(fast=False)])
def test_the_networks_for_the_real_data_fit_their_images(path, variant, data):
    training = experiment.compose(real_config(path, variant), experiment.Folders(manual=None, data=data, work=data))
    key = jax.random.key(0)
    state = jax.eval_shape(partial(train.init_state, training), key)
    for turn in {training.schedule(step) for step in range(10)}:
        batch = next(training.streams[turn.stream].batches(0))
        after, logs = jax.eval_shape(partial(train.train_step, training, turn=turn), state, batch, key)
        assert jax.tree.map(lambda array: array.shape, after) == jax.tree.map(lambda array: array.shape, state)
        assert logs["loss"].shape == ()
    for evaluation in training.evaluations.values():
        step = evaluate.make_predict_step(training.model, evaluation.tasks, training.mesh)
        found = jax.eval_shape(step, *state.evaluated(), device_fields(next(evaluation.batches())))
        assert found.keys() == evaluation.tasks.keys()
        assert all(array.shape[0] == 2 for task in found.values() for array in task["predictions"].values())


# What there is to be: of each config's file datasets x {model: (backbone, head)}, and its task.
MATRIX = {
    "chest_classification": (
        "classification",
        ("chestxray14", "chexpert", "mimic_cxr"),
        {name: (name, "pooled") for name in ("swin", "internimage", "convnext")} | {"dinov2": ("vit", "pooled")},
    ),
    "chest_detection": (
        "detection",
        ("node21", "tbx11k", "vinbigdata"),
        {name: ("resnet", name) for name in ("mask_rcnn", "deformable_detr", "dino")} | {"dino_swin": ("swin", "dino")},
    ),
    "chest_segmentation": (
        "segmentation",
        ("chestxdet", "siim_acr", "chexmask"),
        {
            "unet": ("resnet", "unet"),
            "unet_plus_plus": ("resnet", "unet_plus_plus"),
            "upernet": ("swin", "upernet"),
            "swin_unet": ("swin", "unet"),
        },
    ),
}
FUNDUS = {
    "eyepacs": "ordinal",
    "drive": "segmentation",
    "drishti_gs": "segmentation",
    "fire": "registration",
    "stare": "segmentation",
    "hrf": "segmentation",
    "drions_db": "segmentation",
    "chase_db1": "segmentation",
}
# Of the exercises the first, to convert files, is done by launch/minijsrt.py, the other eight are variants.
EXERCISES = {
    "directions": ("minijsrt_directions", "classification"),
    "gender": ("minijsrt_gender", "classification"),
    "age": ("minijsrt_age", "regression"),
    "lung": ("minijsrt_lung", "segmentation"),
    "organs": ("minijsrt_organs", "segmentation"),
    "boxes": ("minijsrt_organs", "box_regression"),
    "anomaly": ("minijsrt_anomaly", "anomaly"),
    "clusters": ("minijsrt_directions", "anomaly"),
}
LOADED = {
    (path.stem, variant): experiment.complete(experiment.load_config(f"{path}:{variant}").to_dict())
    for path, variant in CELLS
}


def learnt(config):
    """What a config learns and is scored on: {(dataset, task)}, the name of a task being that of its file."""
    tasks = {spec.get("name", name) for stream in config["streams"].values() for name, spec in stream["tasks"].items()}
    specs = (*config["streams"].values(), *config["evaluations"].values())
    return {(spec["dataset"], task) for spec in specs if spec["dataset"] for task in tasks}


@pytest.mark.parametrize("file", MATRIX)
def test_every_dataset_is_there_with_every_model(file):
    task, datasets, models = MATRIX[file]
    for dataset in datasets:
        for model, networks in models.items():
            config = LOADED[file, f"{dataset},{model}"]
            (stream,) = config["streams"].values()
            (spec,) = stream["tasks"].values()
            assert learnt(config) == {(dataset, task)}
            assert (config["backbone"]["name"], spec["head"]["name"]) == networks


def test_every_fundus_dataset_is_there_with_its_task():
    everything = set().union(*map(learnt, LOADED.values()))
    assert FUNDUS.items() <= everything


def test_every_exercise_of_minijsrt_is_there(tmp_path):
    assert {variant: learnt(config) for (file, variant), config in LOADED.items() if file == "minijsrt"} == {
        name: {dataset_and_task} for name, dataset_and_task in EXERCISES.items()
    }
    assert set(minijsrt.EXERCISES) == EXERCISES.keys() and len(minijsrt.EXERCISES) + 1 == 9
    commands = minijsrt.practice(tmp_path, tmp_path)
    assert commands and all("mediax.convert" in command for command in commands.values())


@pytest.mark.parametrize("ending", ["", "phantom"])
def test_a_pretrained_backbone_is_that_of_the_config_that_takes_it_over(ending):
    pretraining, fine_tuning = (
        experiment.load_config(f"{experiment.ROOT}/configs/{name}.py:{variant}")
        for name, variant in (("chest_pretraining", f"chest,{ending}".strip(",")), ("chexpert_convnext", ending))
    )
    assert pretraining.backbone.options.to_dict() == fine_tuning.backbone.options.to_dict()
    assert pretraining.backbone.name == fine_tuning.backbone.name


@pytest.mark.parametrize("path", experiment.config_files(), ids=lambda path: path.stem)
def test_no_two_variants_of_a_config_are_the_same(path):
    """Compared are complete configs, so that a variant that sets what is the default anyway is none."""
    names = experiment.variants(path)
    assert names and len(set(names)) == len(names)
    for configs in (
        [LOADED[path.stem, name] for name in names],
        [experiment.load_config(f"{path}:{name},phantom".replace(":,", ":")).to_dict() for name in names],
    ):
        assert all(first != second for first, second in itertools.combinations(configs, 2))
