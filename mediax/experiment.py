"""The composition root: a config becomes parts, tasks, streams, schedule, optimizer. Only this file reads its keys."""

import contextlib
import copy
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from flax import nnx
from ml_collections.config_flags import config_path

from mediax import (
    builder,
    catalog,
    data,
    inference,
    laterality,
    metrics,
    optimizer,
    phantoms,
    pretrained,
    protocols,
    schedule,
    sharding,
    transforms,
)
from mediax.batch import MAX_BOXES, Batch
from mediax.checkpoint import Checkpoints
from mediax.errors import InputError
from mediax.evaluate import Evaluation
from mediax.files import expanded, naming_file, whole_folder
from mediax.layers import CPU_REMAT_OPTIONS
from mediax.model import Model, Part, Tree, part
from mediax.train import Stream, Training

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ROOT = Path(__file__).resolve().parent.parent

# Every key that a config may have, with its default. The dicts of OPEN_FIELDS take any key.
STREAM = {
    "dataset": "",  # a file of mediax/datasets/
    "build": {},  # the builder config: what is stored (image size, views, ...)
    "read": {},  # how a record is read: options of the dataset's read()
    "split": "train",
    "batch_size": 32,
    "weight": 1.0,  # share of the steps, for the proportional schedule
    "transform": (),  # random transforms of one example
    "second_view": (),  # random transforms of another view of the image (contrastive learning); none: no such view
    "batch_transform": (),  # random transforms of a batch (mixup)
    "max_boxes": MAX_BOXES,  # of an image; all are padded to as many, evaluations too
    "tasks": {},  # task name -> {"name": a file of mediax/tasks/, options}
    "permute_labels": False,  # deals the labels out anew: the control run that must learn nothing
}
EVALUATION = {
    "stream": "",  # whose tasks are evaluated (default: the only stream)
    "tasks": (),  # which of them (default: all)
    "dataset": "",  # default: the stream's
    "build": {},  # default: the stream's
    "read": {},  # default: the stream's
    "split": "validation",
    "batch_size": 0,  # default: the stream's
    "transform": (),
    "flips": (),  # mirrored copies seen too: horizontal, vertical, both; outputs are averaged, found boxes merged
    "shift": 0,  # pixels by which eight more copies that it sees are moved; outputs of whole images are averaged
    "window": (),  # (height, width): larger images are seen in overlapping windows (default: as a whole)
    "overlap": 0.5,  # fraction of a window's sides that neighbours share at least
    "protocol": "image",
    "calibrate_on": "",  # the evaluation that fixes the thresholds (default: the one that selects the best step)
    "during_training": False,
    "optional": False,  # left out, with a warning, where the data was built without its split
}
DEFAULTS = {
    "seed": 0,
    "steps": 1000,
    "log_every": 10,
    "evaluate_every": 100,
    "checkpoint_every": 100,
    "backbone": {
        "name": "",  # a file of mediax/backbones/
        "channels": 1,  # of the image
        "mean": (),  # normalisation per channel (default: the published weights' own, or 0.5)
        "std": (),
        "pretrained": "",  # published weights, .safetensors or .pth, or the folder of a run: its best backbone
        "options": {},  # arguments of the Backbone (variant, drop_path, ...)
    },
    "streams": {},
    "evaluations": {},
    # mode: "max" or "min" (default: as the metric's name says)
    "best": {"metric": "validation/classification/auroc/macro", "mode": "", "patience": 0},
    "schedule": {"name": "cyclic", "frozen": (), "options": {}},
    "optimizer": {
        "name": "adamw",
        "peak": 1e-3,
        "schedule": "cosine",
        "warmup_steps": 0,
        "start_fraction": 0.0,
        "final_fraction": 0.0,
        "weight_decay": 0.05,
        "layer_decay": 1.0,
        "per_part": {},
        "options": {},  # of the rule: b1, b2, momentum, nesterov, ...
    },
    "clip_norm": 1.0,
    "ema_decay": 0.0,
    "accumulate": 1,  # slices of a batch whose gradients are added up
    "precision": "float32",
    "remat": False,
    "sharding": "replicated",
    "workers": 0,  # processes that read ahead
    "cpu_devices": 1,  # devices that a CPU without accelerator stands for: batches are split over them
    "resamples": 1000,  # bootstrap draws of a confidence interval
    "phantom": {},  # dataset -> arguments of its phantom(): train on made-up images of the same layout
}
MINIMUM = {  # of the numbers of a config that are not free
    "steps": 1,
    "log_every": 1,
    "evaluate_every": 1,
    "checkpoint_every": 1,
    "accumulate": 1,
    "batch_size": 1,
    "channels": 1,
    "cpu_devices": 1,
    "max_boxes": 1,
    "workers": 0,
    "resamples": 0,
    "patience": 0,
    "warmup_steps": 0,
    "clip_norm": 0.0,
    "ema_decay": 0.0,
    "peak": 0.0,
    "start_fraction": 0.0,
    "final_fraction": 0.0,
    "weight_decay": 0.0,
    "layer_decay": 0.0,
    "weight": 0.0,
}
BELOW = {"ema_decay": 1.0}
EXAMPLES = 4  # of a dataset, that tasks may look at before training
NAMES = ("classes", "box_classes", "structures")  # fields of tasks that name what their dataset annotates
TASK_METHODS = (
    *("parts", "apply", "count", "loss", "predict", "targets"),
    *("calibrate", "trivial", "metrics", "errors", "draw_samples"),
)
OPEN_FIELDS = ("build", "read", "tasks", "options", "per_part", "phantom")


def load_config(path: str) -> ml_collections.ConfigDict:
    """Loads `FILE.py[:variant]`, checks every key, and fills in the defaults.

    Raises InputError for a missing file, an unknown variant, and a misspelt key, naming the nearest valid one.
    """
    file, _, variant = path.partition(":")
    if not os.path.isfile(file):
        valid = [str(config.relative_to(ROOT)) for config in config_files()]
        raise InputError(f"--config: no file {file!r}; {catalog.suggestion(file, valid)}")
    try:
        module = _module(file)
        variant = _full_variant(file, getattr(module, "VARIANTS", ()), variant)
        given = module.get_config(variant) if variant else module.get_config()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--config: {file} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(given, ml_collections.ConfigDict):
        raise InputError(f"--config: get_config of {file} returned {type(given).__name__}, expected a ConfigDict")
    return ml_collections.ConfigDict(complete(given.to_dict()))


def config_files() -> list[Path]:
    """Lists the configs of this repository."""
    return sorted((ROOT / "configs").glob("*.py"))


def variants(file: str | Path) -> tuple[str, ...]:
    """Names the variants of a config file, the default first; a file without VARIANTS has one, the empty name.

    `phantom` comes on top: `FILE.py:phantom`, `FILE.py:VARIANT,phantom`.
    """
    return getattr(_module(file), "VARIANTS", ("",))


def _module(file: str | Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _full_variant(file: str, valid: tuple[str, ...], variant: str) -> str:
    """Gives one of `valid`, the first if none is named, with `,phantom` or without; unchanged if nothing is valid."""
    if not valid:
        return variant
    words = variant.split(",")
    phantom = words[-1:] == ["phantom"]
    chosen = ",".join(words[:-1] if phantom else words) or valid[0]
    if chosen not in valid:
        hint = catalog.suggestion(chosen, valid)
        raise InputError(f"--config: {file} has no variant {variant!r}; {hint} Each takes ',phantom' too.")
    return ",".join(filter(None, (chosen, "phantom" if phantom else "")))


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """Merges a config into the defaults, stream by stream; raises InputError naming an unknown key or a wrong type."""
    config = _merge(DEFAULTS, given, "")
    for field in ("streams", "evaluations"):
        for name, value in config[field].items():
            if not isinstance(value, Mapping):
                raise InputError(f"config field {field}.{name} is {value!r}: expected a dict")
    config["streams"] = {name: _merge(STREAM, stream, f"streams.{name}.") for name, stream in config["streams"].items()}
    config["evaluations"] = {
        name: _merge(EVALUATION, evaluation, f"evaluations.{name}.")
        for name, evaluation in config["evaluations"].items()
    }
    return config


def _merge(defaults: Mapping[str, Any], given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    merged = copy.deepcopy(dict(defaults))
    for name, value in given.items():
        if name not in defaults:
            raise InputError(f"config field {prefix}{name}: unknown; {catalog.suggestion(name, defaults)}")
        default = defaults[name]
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise InputError(f"config field {prefix}{name} is {value!r}: expected a dict")
            is_open = name in (*OPEN_FIELDS, "streams", "evaluations")
            merged[name] = dict(value) if is_open else _merge(default, value, f"{prefix}{name}.")
            continue
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if type(value) is not type(default):
            raise InputError(
                f"config field {prefix}{name} is {value!r}: expected {type(default).__name__}, as in {default!r}"
            )
        merged[name] = value
    return merged


def open_override(config: ml_collections.ConfigDict, path: str) -> None:
    """Raises InputError if the dotted `path` of a command-line override names no field.

    Open dicts take any key: below one, dicts that the config does not have are begun, empty, for the override to fill.
    """
    try:
        names = config_path.split(path)
    except ValueError:
        raise InputError(
            f"--config.{path}: expected names between dots; a key that is no name is written as in "
            "optimizer.per_part['head/*'].peak, all of it in double quotes"
        ) from None
    here, walked, is_open = config, "", False
    for place, name in enumerate(names, 1):
        if not isinstance(here, ml_collections.ConfigDict):
            raise InputError(f"--config.{path}: {walked} is {here!r} and has no fields of its own")
        if name not in here:
            if not is_open:
                hint = catalog.suggestion(name, here)
                raise InputError(f"--config.{path}: {walked or 'the config'} has no field {name!r}; {hint}")
            if place == len(names):
                return
            here[name] = ml_collections.ConfigDict()
        is_open = is_open or name in OPEN_FIELDS
        here, walked = here[name], f"{walked}.{name}" if walked else name


@dataclass(frozen=True)
class Folders:
    """Where raw data, built data and the run lie."""

    manual: Path | None
    data: Path
    work: Path


def split_cpu(config: Mapping[str, Any]) -> None:
    """Lets a CPU stand for several devices, which keeps all cores busy where images are too small to be split.

    To be called before anything asks jax for its devices. Accelerators are not affected.
    """
    if config["cpu_devices"] > 1:
        jax.config.update("jax_num_cpu_devices", config["cpu_devices"])


def _check_ranges(config: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in config.items():
        if name in OPEN_FIELDS and name != "per_part":
            continue
        if isinstance(value, Mapping):
            _check_ranges(value, f"{prefix}{name}.")
        elif name in MINIMUM and not isinstance(value, Real):
            raise InputError(f"config field {prefix}{name} is {value!r}: expected a number")
        # An evaluation's batch size of 0 is its stream's; NaN is not at least anything.
        elif name in MINIMUM and not value >= MINIMUM[name] and not (prefix.startswith("evaluations.") and value == 0):
            raise InputError(f"config field {prefix}{name} is {value}: expected at least {MINIMUM[name]}")
        elif name in BELOW and value >= BELOW[name]:
            raise InputError(f"config field {prefix}{name} is {value}: expected less than {BELOW[name]}")


def _check_transforms(config: Mapping[str, Any]) -> None:
    """Builds every pipeline once: those of evaluations are needed late, and those of streams in other processes."""
    fields = {"transform": transforms.build, "second_view": transforms.build, "batch_transform": transforms.build_batch}
    for kind in ("streams", "evaluations"):
        for name, spec in config[kind].items():
            for field in fields.keys() & spec.keys():
                try:
                    fields[field](spec[field])
                except InputError as error:
                    raise InputError(f"config field {kind}.{name}.{field}: {error}") from None


def _check_rules(config: Mapping[str, Any]) -> None:
    for field, rules in (("schedule", schedule.SCHEDULES), ("optimizer", optimizer.RULES)):
        rule = rules[_one_of(f"{field}.name", config[field]["name"], tuple(rules))]
        catalog.check_options(f"{field}.options of {config[field]['name']!r}", rule, config[field]["options"])


def _check_best(config: Mapping[str, Any]) -> None:
    """Raises InputError unless best.metric is "<evaluation>/loss" or "<evaluation>/<task>/<figure>"."""
    selecting, _, figure = config["best"]["metric"].partition("/")
    during = [name for name, spec in config["evaluations"].items() if spec["during_training"]]
    if selecting not in during:
        hint = catalog.suggestion(selecting, during)
        raise InputError(f"config field best.metric: no evaluation {selecting!r} runs during training; {hint}")
    valid = ["loss", *(f"{task}/..." for task in _tasks_of(selecting, config))]
    if figure != "loss" and not ("/" in figure and f"{figure.partition('/')[0]}/..." in valid):
        raise InputError(
            f"config field best.metric: {selecting!r} has no figure {figure!r}; {catalog.suggestion(figure, valid)}"
        )


def compose(config: Mapping[str, Any], folders: Folders) -> Training:
    """Builds everything that training and evaluation need; raises InputError for whatever the config gets wrong."""
    config = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    _check_ranges(config)
    _check_transforms(config)
    _check_rules(config)
    if not config["streams"]:
        raise InputError("config field streams is empty: expected at least one stream of training data")
    config = _warm_start_checked(_with_plain_path(config), folders.work)
    mesh = sharding.mesh()
    _check_divisible(config, mesh.size)
    _check_accumulated(config)
    sources = Sources(config, folders)
    backbone = _backbone(config)
    computation = _computation(config)
    tasks = {name: _tasks(name, stream, sources, computation) for name, stream in config["streams"].items()}
    _check_best(config)
    streams = {name: _stream(name, stream, tasks[name], config, sources) for name, stream in config["streams"].items()}
    evaluations = _evaluations(config, tasks, sources)
    if not _has_begun(folders.work):
        _check_boxes(config, tasks, evaluations, sources)
    return _training(config, backbone, tasks, mesh, streams, evaluations)


def _with_plain_path(config: dict[str, Any]) -> dict[str, Any]:
    """Writes where the backbone starts from without `~` and a last slash, so that it is resumed with either."""
    spec = config["backbone"]
    if not spec["pretrained"]:
        return config
    return config | {"backbone": spec | {"pretrained": str(expanded(spec["pretrained"]))}}


@dataclass(frozen=True)
class Reading:
    """How a file becomes an image that `tasks` know: loaded and fitted as `builder` does, then transformed."""

    builder: builder.Builder
    transform: tuple[Mapping[str, Any], ...]
    tasks: Mapping[str, Any]
    evaluation: str  # whose images these would be, and whose thresholds hold
    views: inference.Views = inference.WHOLE


def compose_for_files(
    config: Mapping[str, Any], workdir: Path, evaluation: str = ""
) -> tuple[Training, dict[str, Reading]]:
    """Builds from the config of a finished run what predicting on files needs, without any dataset: Reading by stream.

    The Training has neither streams nor evaluations; it restores the run's state. Files are read as images of the
    evaluation that is named, else of the stream's first one: those of images come before those of studies, whose
    thresholds are for several images together, then those of most tasks, then "test". Raises InputError if there is
    none.
    """
    given, config = config, complete(config)
    sources = Sources(config, Folders(None, workdir, workdir))
    backbone = _backbone(config)
    computation = _computation(config)
    tasks = {
        name: _tasks(name, stream | {"tasks": _unweighted(stream["tasks"])}, sources, computation)
        for name, stream in config["streams"].items()
    }
    training = _training(config, backbone, tasks, sharding.mesh(), {}, {})
    readings = {}
    for name in _evaluation_of_streams(config, evaluation):
        stream = _stream_of(name, config["evaluations"][name], config)
        dataset, build, _ = _data_of(config["evaluations"][name], config["streams"][stream])
        readings[stream] = Reading(
            builder=catalog.load("datasets", dataset).Builder(config=build or None, data_dir=workdir),
            transform=config["evaluations"][name]["transform"],
            tasks={task: tasks[stream][task] for task in _tasks_of(name, config)},
            evaluation=name,
            views=_views(config["evaluations"][name]),
        )
    # As it was given, for comparison with what the checkpoint says.
    return dataclasses.replace(training, config=given), readings


def _unweighted(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks without the class weights, which only a loss needs, and which may ask for the labels of a dataset."""
    return {name: {key: value for key, value in spec.items() if key != "class_weights"} for name, spec in tasks.items()}


def _evaluation_of_streams(config: Mapping[str, Any], chosen: str) -> list[str]:
    """Names one evaluation of each stream that has any: the chosen one alone, else the first of images, as "test"."""
    specs = config["evaluations"]
    if chosen and chosen not in specs:
        raise InputError(f"the run has no evaluation {chosen!r}; {catalog.suggestion(chosen, specs)}")
    if chosen:
        return [chosen]

    def rank(name: str) -> tuple:
        of_images = protocols.get(specs[name]["protocol"]).case == "image"
        return not of_images, specs[name]["optional"], -len(_tasks_of(name, config)), name != "test"

    first: dict[str, str] = {}
    for name in sorted(specs, key=rank):
        first.setdefault(_stream_of(name, specs[name], config), name)
    if not first:
        raise InputError("config field evaluations is empty: expected one, as whose images files are read")
    return list(first.values())


def _data_of(
    evaluation: Mapping[str, Any], stream: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """The dataset, its build and its read that an evaluation has: its own, or its stream's."""
    return tuple(evaluation[field] or stream[field] for field in ("dataset", "build", "read"))


def _training(
    config: Mapping[str, Any],
    backbone: "_Backbone",
    tasks: Mapping[str, Mapping[str, Any]],
    mesh: jax.sharding.Mesh,
    streams: Mapping[str, Stream],
    evaluations: Mapping[str, Evaluation],
) -> Training:
    model = _model(config, backbone, tasks)
    parts = {
        name: ["backbone", *(part for task in of.values() for part in task.parts(backbone.channels))]
        for name, of in tasks.items()
    }
    chain = dict(config["optimizer"])
    return Training(
        model=model,
        streams=streams,
        evaluations=evaluations,
        schedule=schedule.build(
            config["schedule"]["name"],
            parts,
            {name: stream["weight"] for name, stream in config["streams"].items()},
            config["schedule"]["frozen"],
            **config["schedule"]["options"],
        ),
        optimizer=optimizer.build(
            tuple(model.parts),
            steps=config["steps"],
            depth=partial(_depth, backbone.module),
            **{name: value for name, value in chain.items() if name != "options"},
            **chain["options"],
        ),
        learning_rate=optimizer.learning_rate(
            chain["schedule"],
            peak=chain["peak"],
            steps=config["steps"],
            warmup_steps=chain["warmup_steps"],
            start_fraction=chain["start_fraction"],
            final_fraction=chain["final_fraction"],
        ),
        warm_start=partial(_warm_start, config, backbone),
        mesh=mesh,
        sharding=config["sharding"],
        seed=config["seed"],
        best_metric=config["best"]["metric"],
        best_mode=_best_mode(config["best"]),
        patience=config["best"]["patience"],
        config=json.loads(json.dumps(config)),
        **{
            name: config[name]
            for name in (
                "steps",
                "log_every",
                "evaluate_every",
                "checkpoint_every",
                "ema_decay",
                "accumulate",
                "clip_norm",
                "resamples",
            )
        },
        compiler_options=CPU_REMAT_OPTIONS if config["remat"] and jax.default_backend() == "cpu" else {},
    )


class Sources:
    """Builds each dataset once and opens its splits; with `phantom`, on images made up in the same layout."""

    def __init__(self, config: Mapping[str, Any], folders: Folders):
        self.phantom, self.folders = config["phantom"], folders
        for dataset, options in self.phantom.items():
            if not isinstance(options, Mapping):
                raise InputError(f"config field phantom.{dataset} is {options!r}: expected a dict")
            catalog.check_options(f"phantom.{dataset}", catalog.load("datasets", dataset).phantom, options)

    def open(self, dataset: str, build: Mapping[str, Any], split: str):
        """Opens a split as a random-access source of raw records, building the dataset if that was not done yet."""
        manual, built = self.folders.manual, self.folders.data
        if dataset in self.phantom:
            manual = built = self._phantom_tree(dataset)
        source = builder.source(
            catalog.load("datasets", dataset),
            split=split,
            builder_config=build or None,
            manual_dir=manual,
            data_dir=built,
        )
        if len(source) == 0:
            raise InputError(f"dataset {dataset!r}: the split {split!r} is empty")
        return source

    def classes(self, dataset: str, build: Mapping[str, Any], read: Mapping[str, Any]) -> tuple[str, ...]:
        """Names the classes of the labels, in their order."""
        module = catalog.load("datasets", dataset)
        return module.classes(builder.choose_config(module.Builder, build or None), **read)

    def names(
        self, dataset: str, build: Mapping[str, Any], read: Mapping[str, Any], fields: Collection[str]
    ) -> dict[str, tuple[str, ...]]:
        """Gives those of a task's `fields` that are names of what the dataset annotates, where it does."""
        module = catalog.load("datasets", dataset)
        constants = {"box_classes": "BOX_CLASSES", "structures": "MASK_CLASSES"}
        names = {
            field: getattr(module, constant)
            for field, constant in constants.items()
            if field in fields and hasattr(module, constant)
        }
        return names | ({"classes": self.classes(dataset, build, read)} if "classes" in fields else {})

    def read(self, dataset: str, options: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Gives the function from a record to an example, with the options of the dataset's `read`."""
        module = catalog.load("datasets", dataset)
        valid = list(inspect.signature(module.read).parameters)[1:]
        for name in options:
            if name not in valid:
                raise InputError(f"config field read.{name} of dataset {dataset!r}: {catalog.suggestion(name, valid)}")
        return partial(module.read, **options)

    def _phantom_tree(self, dataset: str) -> Path:
        module, options = catalog.load("datasets", dataset), self.phantom[dataset]
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        for path in (Path(module.__file__), *sorted(Path(phantoms.__file__).parent.glob("*.py"))):
            digest.update(path.read_bytes())  # other code draws other images
        tree = self.folders.data / "mediax_phantoms" / f"{dataset}-{digest.hexdigest()[:8]}"
        with builder.locked(tree.parent):  # other processes of the job, or of a sweep, wait for the first
            if not tree.exists():
                logging.info("making up the phantom of %s, in the layout of the real one: %s", dataset, tree)
                with naming_file(tree), whole_folder(tree) as incomplete:
                    module.phantom(incomplete, **options)
        return tree


@dataclass(frozen=True)
class _Backbone:
    module: nnx.Module  # shapes only
    channels: Mapping[int, int]
    build: Callable[[nnx.Rngs], nnx.Module]
    source: Any  # the file in mediax/backbones/
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _backbone(config: Mapping[str, Any]) -> _Backbone:
    spec = config["backbone"]
    source = catalog.load("backbones", spec["name"])
    arguments = _computation(config) | {"in_channels": spec["channels"]}
    catalog.check_options(f"backbone.options of {spec['name']!r}", source.Backbone, spec["options"])

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return source.Backbone(**arguments, **spec["options"], rngs=rngs)

    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    mean, std = _normalisation(config, source)
    if not len(mean) == len(std) == spec["channels"]:
        raise InputError(f"config fields backbone.mean and backbone.std: expected {spec['channels']} numbers each")
    if not all(deviation > 0 for deviation in std):
        raise InputError(f"config field backbone.std is {std}: images are divided by it, expected more than 0")
    return _Backbone(module, module.channels, build, source, mean, std)


def _computation(config: Mapping[str, Any]) -> dict[str, Any]:
    """How backbones and heads compute: the arguments that all of them take."""
    if config["precision"] not in PRECISIONS:
        hint = catalog.suggestion(config["precision"], PRECISIONS)
        raise InputError(f"config field precision: no {config['precision']!r}; {hint}")
    return {"dtype": PRECISIONS[config["precision"]], "remat": config["remat"]}


def _normalisation(config: Mapping[str, Any], source: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation by channel: given, or those of the weights that are read, or 0.5 and 0.25."""
    spec = config["backbone"]
    own = spec["channels"] == len(source.MEAN) and (spec["pretrained"] or any(_pretrained_heads(config)))
    mean = spec["mean"] or (source.MEAN if own else (0.5,) * spec["channels"])
    std = spec["std"] or (source.STD if own else (0.25,) * spec["channels"])
    return tuple(mean), tuple(std)


def _model(config: Mapping[str, Any], backbone: _Backbone, tasks: Mapping[str, Mapping[str, Any]]) -> Model:
    parts = {"backbone": part(backbone.build)}
    for of_stream in tasks.values():
        for task in of_stream.values():
            for name, build in task.parts(backbone.channels).items():
                added = part(build)
                if name in parts:
                    _check_shared(name, parts[name], added)
                parts[name] = added
    # The coarsest stride, unless a backbone takes care of its border itself.
    multiple = getattr(backbone.module, "multiple", max(backbone.channels))
    return Model(parts, backbone.mean, backbone.std, multiple)


def _check_shared(name: str, first: Part, second: Part) -> None:
    """Raises InputError if two tasks that share a part build it differently."""
    shapes = [jax.eval_shape(each.init, jax.random.key(0)) for each in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError(f"two tasks share the part {name!r} and build it differently: give both the same head options")


def _tasks(
    stream_name: str, stream: Mapping[str, Any], sources: Sources, computation: Mapping[str, Any]
) -> dict[str, Any]:
    if not stream["tasks"]:
        raise InputError(f"config field streams.{stream_name}.tasks is empty: expected at least one task")
    tasks = {}
    for name, spec in stream["tasks"].items():
        if not isinstance(spec, Mapping):
            raise InputError(f"config field streams.{stream_name}.tasks.{name} is {spec!r}: expected a dict")
        options = dict(spec)
        file = options.pop("name", name)
        module = catalog.load("tasks", file)
        if missing := [method for method in TASK_METHODS if not hasattr(module.Task, method)]:
            raise InputError(f"mediax/tasks/{file}.py: Task lacks {', '.join(missing)}; see 'Add a task' in the README")
        fields = {field.name: field for field in dataclasses.fields(module.Task)}
        options = sources.names(stream["dataset"], stream["build"], stream["read"], fields) | options
        if options.get("class_weights") == "balanced":
            source = sources.open(stream["dataset"], stream["build"], stream["split"])
            labels = data.scan_labels(source, sources.read(stream["dataset"], stream["read"]))
            options["class_weights"] = balanced_weights(labels, exclusive=options.get("exclusive", False))
        if isinstance(options.get("head"), Mapping):  # its weights are not its option: see _warm_start
            options["head"] = {key: value for key, value in options["head"].items() if key != "pretrained"}
        catalog.check_options(f"streams.{stream_name}.tasks.{name}", module.Task, options)
        given = {"name": f"{stream_name}/{name}"} | {key: computation[key] for key in computation if key in fields}
        for field in fields.values():
            if field.default is field.default_factory is dataclasses.MISSING and field.name not in (*options, *given):
                raise InputError(
                    f"config field streams.{stream_name}.tasks.{name}: needs {field.name}, and the dataset "
                    f"{stream['dataset']!r} has none; choose a dataset that is annotated so, or another task"
                )
        try:
            tasks[name] = module.Task(**given, **options)
        except TypeError as error:
            raise InputError(
                f"config field streams.{stream_name}.tasks.{name}: an option has a value of the wrong type: {error}"
            ) from error
    return tasks


def balanced_weights(labels: np.ndarray, *, exclusive: bool = False) -> list[list[float]]:
    """Gives weights [K][absent, present], 1 on average over the known entries of labels f32[N,K].

    Under them both states of a class weigh equally; with `exclusive` classes, every class does.
    """
    known = ~np.isnan(labels)
    present = np.nansum(labels, axis=0)
    absent = known.sum(0) - present
    states = labels.shape[1] if exclusive else 2
    weights = [known.sum(0) / (states * np.maximum(count, 1.0)) for count in (absent, present)]
    return np.stack(weights, axis=1).tolist()


def _stream(
    name: str, spec: Mapping[str, Any], tasks: Mapping[str, Any], config: Mapping[str, Any], sources: Sources
) -> Stream:
    _check_flips(name, spec["transform"], tasks)
    source = sources.open(spec["dataset"], spec["build"], spec["split"])
    read = sources.read(spec["dataset"], spec["read"])
    _check_examples(source, read, tasks)
    seed = data.seed_of(config["seed"], name)
    if spec["permute_labels"]:
        source, read = data.PermutedLabels(source, read, seed), _identity
    batches = partial(
        _training_batches,
        source,
        read,
        transform=spec["transform"],
        batch_transform=spec["batch_transform"],
        batch_size=spec["batch_size"],
        max_boxes=spec["max_boxes"],
        second_view=spec["second_view"],
        seed=seed,
        workers=config["workers"],
        process=_process(),
    )
    return Stream(name, tasks, batches, spec["batch_size"])


def _check_flips(stream: str, steps: Iterable[Mapping[str, Any]], tasks: Mapping[str, Any]) -> None:
    """Raises InputError if a random flip would turn what a task tells apart as left and right, whose names stay."""
    flips = [step for step in steps if step.get("name") == "random_flip"]
    for option, opposites in zip(("vertical", "horizontal"), laterality.OPPOSITES):
        for task, one in tasks.items() if any(flip.get(option) for flip in flips) else ():
            if sides := laterality.exchanged_names(inference.names_of(one), opposites):
                raise InputError(
                    f"config field streams.{stream}.transform: random_flip mirrors {sides} of the task {task!r} "
                    f"({option}), but their names stay; leave it out"
                )


def _training_batches(source, read, position: int, **options):
    return data.training_batches(source, read, position=position, **options)


def _identity(example: Batch) -> Batch:
    return example


def _evaluations(
    config: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]], sources: Sources
) -> dict[str, Evaluation]:
    selecting = config["best"]["metric"].split("/")[0]
    specs = config["evaluations"]
    during = [name for name, spec in specs.items() if spec["during_training"]]
    evaluations = {}
    for name, spec in specs.items():
        stream_name = _stream_of(name, spec, config)
        stream = config["streams"][stream_name]
        dataset, build, read = _data_of(spec, stream)
        calibrate_on = _calibrating(name, config, during, selecting)
        protocol = protocols.get(spec["protocol"])
        try:
            source = sources.open(dataset, build, spec["split"])
        except builder.AbsentSplit as error:
            if name == selecting:
                raise InputError(
                    f"{error} The evaluation {name!r} cannot do without it: config field best.metric chooses the "
                    "checkpoint by it"
                ) from None
            if not spec["optional"]:
                raise InputError(f"{error} To do without: --config.evaluations.{name}.optional=True") from None
            logging.warning("config field evaluations.%s is left out: %s", name, error)
            continue
        read_record = sources.read(dataset, read)
        evaluated = {task: tasks[stream_name][task] for task in _tasks_of(name, config)}
        _check_names(name, sources.names(dataset, build, read, NAMES), evaluated)
        _check_protocol(name, protocol, evaluated, {task: stream["tasks"][task] for task in evaluated})
        if dataset == stream["dataset"]:
            trained = partial(sources.open, dataset, stream["build"], stream["split"])
            _check_patients(name, spec["split"], source, stream["split"], trained)
        _check_fields(name, protocol, read_record(source[0]))
        _check_examples(source, read_record, evaluated)
        views = _views(spec)
        inference.check(views, evaluated, f"evaluations.{name}")
        _warn_of_copies(name, views, calibrate_on, _views(specs[calibrate_on]))
        options = {
            "transform": spec["transform"],
            "batch_size": spec["batch_size"] or stream["batch_size"],
            "max_boxes": stream["max_boxes"],
            "second_view": stream["second_view"],
        }
        evaluations[name] = Evaluation(
            name=name,
            dataset=dataset,
            split=spec["split"],
            protocol=protocol,
            tasks=evaluated,
            batches=partial(data.evaluation_batches, source, read_record, **options, process=_process()),
            size=len(source),
            calibrate_on=calibrate_on,
            during_training=spec["during_training"],
            rows=json.dumps([stream_name, [*evaluated], dataset, build, read, spec["split"], options, vars(views)]),
            views=views,
            phantom=dataset in config["phantom"],
        )
    for name, evaluation in evaluations.items():
        if evaluation.calibrate_on not in evaluations:
            raise InputError(
                f"config field evaluations.{evaluation.calibrate_on}.optional: evaluation {name!r} takes its "
                "thresholds from it, and its split is absent"
            )
    return evaluations


def _check_boxes(
    config: Mapping[str, Any],
    tasks: Mapping[str, Mapping[str, Any]],
    evaluations: Collection[str],
    sources: Sources,
) -> None:
    """Raises InputError if an image to be trained or evaluated on has more boxes than its stream's `max_boxes`.

    It takes a pass over the records, undecoded, of streams with a task that finds boxes; it saves a run that would
    fail at the image, maybe at the end.
    """
    splits = [(name, *_data_of(spec, spec), spec["split"]) for name, spec in config["streams"].items()]
    for name in evaluations:
        spec = config["evaluations"][name]
        stream = _stream_of(name, spec, config)
        splits.append((stream, *_data_of(spec, config["streams"][stream]), spec["split"]))
    for name, dataset, build, read, split in {json.dumps(each): each for each in splits}.values():
        limit = config["streams"][name]["max_boxes"]
        if any(getattr(task, "box_classes", ()) for task in tasks[name].values()):
            most = data.scan_boxes(sources.open(dataset, build, split), sources.read(dataset, read)).max()
            if most > limit:
                raise InputError(
                    f"config field streams.{name}.max_boxes is {limit}: the split {split!r} of {dataset} has an image "
                    f"with {most} boxes, expected at least as many"
                )


def _check_patients(
    name: str, split: str, source: builder.Records, training: str, trained: Callable[[], builder.Records]
) -> None:
    """Raises InputError if a slice that is evaluated has patients of the training images: slices are of images.

    Whole splits were compared when they were built, and evaluating the very images of the training is no mistake.
    """
    if split == training or "[" not in split + training:
        return
    patients = [set(records.columns().get("patient_id", ())) for records in (source, trained())]
    if both := len(patients[0] & patients[1]):
        raise InputError(
            f"config field evaluations.{name}.split: {both} patients of {split!r} are in the training split "
            f"{training!r}, too, since a slice is one of images; choose splits that share no patient"
        )


def _views(spec: Mapping[str, Any]) -> inference.Views:
    return inference.Views(**{field.name: spec[field.name] for field in dataclasses.fields(inference.Views)})


def _warn_of_copies(name: str, views: inference.Views, calibrate_on: str, calibrating: inference.Views) -> None:
    """Warns of thresholds from the outputs of other copies; windows may differ, where a dataset's images are larger."""
    for field in ("flips", "shift"):
        own, other = getattr(views, field), getattr(calibrating, field)
        if own != other:
            logging.warning(
                "config field evaluations.%s.%s is %r, and %r in the evaluation %r that its thresholds come from: they "
                "are chosen on other outputs; set both alike",
                *(name, field, own, other, calibrate_on),
            )


def _stream_of(name: str, spec: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if not spec["stream"] and len(config["streams"]) > 1:
        raise InputError(
            f"config field evaluations.{name}.stream is empty: expected one of the streams, "
            f"{', '.join(config['streams'])}, whose tasks it evaluates"
        )
    stream = spec["stream"] or next(iter(config["streams"]))
    if stream not in config["streams"]:
        hint = catalog.suggestion(stream, config["streams"])
        raise InputError(f"config field evaluations.{name}.stream: no stream {stream!r}; {hint}")
    return stream


def _tasks_of(name: str, config: Mapping[str, Any]) -> list[str]:
    """Names the tasks that an evaluation scores: those it names, else all of its stream."""
    spec = config["evaluations"][name]
    valid = config["streams"][_stream_of(name, spec, config)]["tasks"]
    for task in spec["tasks"]:
        if task not in valid:
            raise InputError(
                f"config field evaluations.{name}.tasks: no task {task!r}; {catalog.suggestion(task, valid)}"
            )
    return list(spec["tasks"] or valid)


def _calibrating(name: str, config: Mapping[str, Any], during: list[str], selecting: str) -> str:
    """Names the evaluation that fixes the thresholds of another one: of the same tasks, on the same kind of case."""
    specs = config["evaluations"]

    def kind(other: str) -> tuple[str, str]:
        return _stream_of(other, specs[other], config), protocols.get(specs[other]["protocol"]).case

    chosen = specs[name]["calibrate_on"]
    if chosen and chosen not in specs:
        hint = catalog.suggestion(chosen, specs)
        raise InputError(f"config field evaluations.{name}.calibrate_on: no evaluation {chosen!r}; {hint}")
    if chosen and kind(chosen) != kind(name):
        raise InputError(
            f"config field evaluations.{name}.calibrate_on: {chosen!r} is of (stream, case) {kind(chosen)}, thresholds "
            f"for {kind(name)} cannot come from it"
        )

    def fits(other: str) -> bool:
        return kind(other) == kind(name) and set(_tasks_of(name, config)) <= set(_tasks_of(other, config))

    if chosen and not fits(chosen):
        raise InputError(
            f"config field evaluations.{name}.calibrate_on: {chosen!r} does not evaluate all of the tasks "
            f"{', '.join(_tasks_of(name, config))}"
        )
    fitting = [other for other in (selecting, *during) if fits(other)]
    if not chosen and not fitting:
        raise InputError(
            f"config field evaluations.{name}.calibrate_on: no evaluation of its tasks during training is of (stream, "
            f"case) {kind(name)}; add one on validation data, or name the one whose thresholds to take"
        )
    return chosen or fitting[0]


def _check_names(name: str, names: Mapping[str, tuple[str, ...]], tasks: Mapping[str, Any]) -> None:
    """Raises InputError if a task's classes, boxes or structures are others than those of the dataset evaluated on."""
    for task_name, task in tasks.items():
        for field, found in names.items():
            if hasattr(task, field) and tuple(own := getattr(task, field)) != tuple(found):
                raise InputError(
                    f"config field evaluations.{name}: its dataset has the {field} {list(found)}, task {task_name!r} "
                    f"predicts {list(own)}; choose the same with the options build or read, or another dataset"
                )


def _check_protocol(
    name: str, protocol: protocols.Protocol, tasks: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises InputError if a task has no such figures, lacks the protocol's classes, or scores no studies."""
    field = f"config field evaluations.{name}.protocol"
    for task_name, task in tasks.items():
        file = specs[task_name].get("name", task_name)
        if protocol.task not in ("", file):
            raise InputError(
                f"{field}: {protocol.name!r} is for the task {protocol.task!r}, {task_name!r} is of {file!r}; choose "
                f"another one, or name the tasks that it scores in evaluations.{name}.tasks"
            )
        if protocol.case == "study" and not getattr(catalog.load("tasks", file), "STUDIES", False):
            raise InputError(
                f"{field}: {protocol.name!r} scores studies, the task {file!r} scores images; choose the protocol "
                "'image'"
            )
        own = next((getattr(task, field) for field in NAMES if hasattr(task, field)), ())
        if missing := set(protocol.classes) - set(own):
            raise InputError(
                f"{field}: {protocol.name!r} needs the classes {sorted(missing)}, which task {task_name!r} lacks"
            )
        known = inspect.signature(task.metrics).parameters
        if foreign := [option for option in protocol.options if option not in known]:
            raise InputError(
                f"{field}: {protocol.name!r} is not for the task {task_name!r}, whose metrics know no {foreign[0]!r}; "
                f"name the tasks that it scores in evaluations.{name}.tasks"
            )


def _check_fields(name: str, protocol: protocols.Protocol, example: Mapping[str, Any]) -> None:
    needed = (*protocol.fields, *(("study_id",) if protocol.case == "study" else ()))
    if missing := [field for field in needed if field not in example]:
        raise InputError(
            f"config field evaluations.{name}.protocol: {protocol.name!r} needs {', '.join(missing)}, which this "
            "dataset's examples lack; choose another protocol, for instance 'image'"
        )


def _check_examples(source: builder.Records, read: Callable[..., Batch], tasks: Mapping[str, Any]) -> None:
    """Lets tasks that know what examples must be like look at the first ones; they raise InputError."""
    for task in tasks.values():
        if hasattr(task, "check_example"):
            for row in range(min(EXAMPLES, len(source))):
                task.check_example(read(source[row]))


def _process() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()


def _check_divisible(config: Mapping[str, Any], devices: int) -> None:
    for name, stream in config["streams"].items():
        if stream["batch_size"] % (devices * config["accumulate"]):
            raise InputError(
                f"config field streams.{name}.batch_size is {stream['batch_size']}: expected a multiple of "
                f"{devices} devices x {config['accumulate']} slices (accumulate)"
            )
    for name, evaluation in config["evaluations"].items():
        if evaluation["batch_size"] % devices:
            raise InputError(f"config field evaluations.{name}.batch_size: expected a multiple of {devices} devices")


def _check_accumulated(config: Mapping[str, Any]) -> None:
    for stream_name, stream in config["streams"].items():
        for task_name, spec in stream["tasks"].items():
            file = spec.get("name", task_name) if isinstance(spec, Mapping) else task_name
            if config["accumulate"] > 1 and getattr(catalog.load("tasks", file), "COUPLES_ROWS", False):
                raise InputError(
                    f"config field accumulate is {config['accumulate']}: the task {file!r} of stream {stream_name!r} "
                    "compares the rows of a batch with each other, so that the losses of slices do not add up to that "
                    "of the batch. Set it to 1; remat, bfloat16 and more devices save memory too"
                )


def _depth(backbone: nnx.Module, part_name: str, path: tuple[Any, ...]) -> float:
    """Counts the layers above a parameter: 0 in the heads, the most at the stem."""
    return float(backbone.num_layers - backbone.layer_of(path)) if part_name == "backbone" else 0.0


def _warm_start(config: Mapping[str, Any], backbone: _Backbone, params: Tree, batch_stats: Tree) -> tuple[Tree, Tree]:
    """Sets the parts that have published weights: the backbone from its own file, or from a head's, and heads."""
    tree = {"params": params, "batch_stats": batch_stats}
    set_backbone = partial(_set_part, name="backbone", optional=getattr(backbone.source, "OPTIONAL", ()))
    path = config["backbone"]["pretrained"]
    if path and _is_run(path):
        with contextlib.closing(Checkpoints(path, "best")) as checkpoints:
            tree = set_backbone(tree, weights=checkpoints.part("backbone"))
    elif path:
        tree = set_backbone(tree, weights=_backbone_weights(config, backbone, pretrained.read(path)))
    for name, file, path in _pretrained_heads(config):
        parts = catalog.load("heads", file).translate(pretrained.read(path))
        if parts["backbone"] and not config["backbone"]["pretrained"]:
            tree = set_backbone(tree, weights=_backbone_weights(config, backbone, parts["backbone"]))
        # A head for another number of classes keeps what fits.
        tree = _set_part(tree, name, parts["head"], complete=False)
    return tree["params"], tree["batch_stats"]


def _is_run(path: str) -> bool:
    """Whether a path of weights is the folder of a run; raises InputError for a folder without a checkpoint."""
    if not Path(path).is_dir():
        return False
    if not (Path(path) / "checkpoints" / "best").is_dir():
        raise InputError(
            f"config field backbone.pretrained: {path} holds no checkpoints/best; expected the --workdir of a run that "
            "was evaluated at least once, or a file of published weights"
        )
    return True


def _warm_start_checked(config: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """The config with the normalisation that belongs to the weights it starts from.

    Raises InputError if weights are absent; once the run has a checkpoint, nothing asks for them any more.
    """
    if not _has_begun(workdir):
        for path in (config["backbone"]["pretrained"], *(path for _, _, path in _pretrained_heads(config))):
            if path and not _is_run(path):
                pretrained.check_exists(path)
        return _normalised_as_its_run(config)
    spec = config["backbone"]
    if not spec["pretrained"]:
        return config
    with contextlib.closing(Checkpoints(workdir, "latest")) as checkpoints:
        saved = checkpoints.config()["backbone"]
    return config | {"backbone": spec | {field: spec[field] or tuple(saved[field]) for field in ("mean", "std")}}


def _has_begun(workdir: Path) -> bool:
    return any((workdir / "checkpoints" / "latest").glob("[0-9]*"))


def _normalised_as_its_run(config: dict[str, Any]) -> dict[str, Any]:
    """Writes into a config that starts from a run how that run normalised its images, where it does not say itself.

    So the config that is saved holds it, and reading the new run's checkpoint never needs the old one's. Raises
    InputError if the run has another backbone.
    """
    spec = config["backbone"]
    if not spec["pretrained"] or not _is_run(spec["pretrained"]):
        return config
    with contextlib.closing(Checkpoints(spec["pretrained"], "best")) as checkpoints:
        before = complete(checkpoints.config())
    for name in ("name", "channels"):
        if before["backbone"][name] != spec[name]:
            raise InputError(
                f"config field backbone.{name} is {spec[name]!r}: the run {spec['pretrained']} that it starts from has "
                f"{before['backbone'][name]!r}"
            )
    mean, std = _normalisation(before, catalog.load("backbones", spec["name"]))
    return config | {"backbone": spec | {"mean": spec["mean"] or mean, "std": spec["std"] or std}}


def _pretrained_heads(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields (part, file of mediax/heads/, path of its weights) of the heads that have published weights."""
    for stream_name, stream in config["streams"].items():
        for task_name, spec in stream["tasks"].items():
            head = spec.get("head", {}) if isinstance(spec, Mapping) else {}
            if isinstance(head, Mapping) and head.get("pretrained"):
                yield f"head/{stream_name}/{task_name}", head["name"], head["pretrained"]


def _backbone_weights(
    config: Mapping[str, Any], backbone: _Backbone, weights: dict[str, np.ndarray]
) -> dict[pretrained.Path, np.ndarray]:
    """The arrays of a file of published weights, for images as the config normalises them."""
    spec, source = config["backbone"], backbone.source
    arrays = source.translate(weights)["backbone"]
    if not hasattr(source, "adapt_input"):
        _check_published_normalisation(spec["name"], backbone)
        return arrays
    try:
        return source.adapt_input(arrays, mean=backbone.mean, std=backbone.std)
    except pretrained.UnknownNormalisation as unknown:
        # Then the config alone can know it.
        if unknown.channels == spec["channels"] and spec["mean"] and spec["std"]:
            return arrays
        raise


def _check_published_normalisation(name: str, backbone: _Backbone) -> None:
    published = tuple(backbone.source.MEAN), tuple(backbone.source.STD)
    if (backbone.mean, backbone.std) != published:
        raise InputError(
            f"config field backbone.pretrained: the weights of {name!r} expect images normalised by mean "
            f"{published[0]} and std {published[1]}, the config's are normalised by {backbone.mean} and "
            f"{backbone.std}: leave out backbone.mean and backbone.std with {len(published[0])} channels, or write "
            f"adapt_input in mediax/backbones/{name}.py"
        )


def _set_part(
    tree: dict[str, Tree], name: str, weights: dict[pretrained.Path, np.ndarray], **options: Any
) -> dict[str, Tree]:
    own = {kind: of_kind[name] for kind, of_kind in tree.items()}
    own, report = pretrained.warm_start(own, weights, part=name, **options)
    logging.info("%s", report)
    return {kind: of_kind | {name: own[kind]} for kind, of_kind in tree.items()}


def _best_mode(best: Mapping[str, Any]) -> str:
    """The config's mode, by default what the metric's name says: of validation/loss, of validation/TASK/mae."""
    if best["mode"]:
        return _one_of("best.mode", best["mode"], ("max", "min"))
    words = best["metric"].split("/")
    return "max" if metrics.sign("/".join(words[2:] or words[1:])) > 0 else "min"


def _one_of(field: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise InputError(f"config field {field}: no {value!r}; {catalog.suggestion(value, valid)}")
    return value
