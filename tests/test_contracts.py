"""The contracts of the four folders: each file in them is checked the moment it exists."""

import dataclasses
import hashlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mediax import builder, catalog, experiment, images, vocabulary
from mediax.batch import FIELDS, HOST_FIELDS, check, device_fields, pad_boxes, stack
from mediax.errors import InputError

DATASETS, BACKBONES, HEADS, TASKS = map(catalog.names, catalog.FOLDERS)
PICTURES = [name for name, field in FIELDS.items() if field.shape[1:3] == ("H", "W")]


def _digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module", params=DATASETS)
def dataset(request, tmp_path_factory):
    """Gives (module, raw tree, built folder) of a dataset, built with its first config from its phantom."""
    module = catalog.load("datasets", request.param)
    folder = tmp_path_factory.mktemp(request.param)
    module.phantom(folder / "raw" / request.param, seed=1)
    return module, folder / "raw", builder.prepare(module, data_dir=folder / "built", manual_dir=folder / "raw")


def test_dataset_says_what_it_is(dataset):
    module = dataset[0]
    name = module.__name__.rpartition(".")[2]
    assert module.__doc__ and module.Builder.name == name
    assert all(getattr(module.SOURCE, field.name) for field in dataclasses.fields(module.SOURCE))
    assert set(module.classes()) <= set(module.CLASSES)
    for name in ("CLASSES", "BOX_CLASSES", "MASK_CLASSES"):
        labels = getattr(module, name, ())
        assert [vocabulary.canonical(label) for label in labels] == list(labels)


def test_dataset_reads_into_the_schema(dataset):
    module, _, built = dataset
    patients = {}
    for split in builder.tfds.builder_from_directory(str(built)).info.splits:
        records = builder.Records(built, split)
        examples = [module.read(records[index]) for index in range(len(records))]
        for example in examples:
            assert example["image"].dtype in (np.uint8, np.uint16, np.float32) and example["image"].ndim == 3
            for name in PICTURES:
                assert name not in example or example[name].shape[:2] == example["image"].shape[:2] or name == "moving"
            assert {"id", "patient_id"} <= set(example)
            sized = {name: value[:2, :2] if name in PICTURES else value for name, value in example.items()}
            if "box_masks" in example:
                assert example["box_masks"].shape[1:] == example["image"].shape[:2]
                sized["box_masks"] = example["box_masks"][:, :2, :2]
            sized = pad_boxes(sized, len(example.get("boxes", ()))) | {"valid": True}
            batch = stack([sized, sized])
            check(batch)
            assert set(batch) <= {*FIELDS, *HOST_FIELDS} and set(device_fields(batch)) <= set(FIELDS)
            if "labels" in example:
                known = example["labels"][~np.isnan(example["labels"])]
                assert len(example["labels"]) == len(module.classes()) and ((known >= 0) & (known <= 1)).all()
            assert patients.setdefault(example["patient_id"], split) == split
    assert patients or not module.Builder.DISJOINT_PATIENTS


def test_dataset_builds_the_same_bytes_twice(dataset, tmp_path):
    module, raw, built = dataset
    again = builder.prepare(module, data_dir=tmp_path, manual_dir=raw)
    assert _digest(again) == _digest(built)


def test_dataset_without_data_says_what_is_missing(dataset, tmp_path, monkeypatch):
    module = dataset[0]
    monkeypatch.setattr(builder, "reachable", lambda *arguments, **options: False)
    with pytest.raises(InputError) as caught:
        builder.prepare(module, data_dir=tmp_path / "built", manual_dir=tmp_path)
    message = str(caught.value)
    for said in (module.SOURCE.homepage, module.SOURCE.licence, module.SOURCE.download_size, str(tmp_path), ":phantom"):
        assert said in message


def _build(module, raw, data_dir, monkeypatch, **values):
    """The records of the first images of each split, built with the first config but for `values`, by split and id."""
    with monkeypatch.context() as patched:
        every = module.Builder.annotated
        first = lambda self: {split: rows[:2] for split, rows in every(self).items()}  # noqa: E731
        patched.setattr(module.Builder, "annotated", first)
        config = dataclasses.replace(module.Builder.BUILDER_CONFIGS[0], name="", **values)
        built = builder.prepare(module, data_dir=data_dir, manual_dir=raw, builder_config=config)
    splits = builder.tfds.builder_from_directory(str(built)).info.splits
    return {(split, record["id"]): record for split in splits for record in builder.Records(built, split)}


def _same_place(name, native, built, fit):
    """Whether an annotation of a built image, taken back, is that of the file, to half a pixel; it may be cut."""
    sides = np.array([fit.height, fit.width])
    if name.endswith("masks") or name == "field_of_view":
        # No pixel of the file is lost where the built image is the larger one, so nothing but the cut may differ.
        shown = fit.mask_back(np.ones((fit.size, fit.size), bool))
        back = fit.mask_back(images.decode(built)[..., 0])
        return np.array_equal(back, np.where(shown, images.decode(native)[..., 0], 0))
    if name == "boxes":
        low, high = fit.boxes_back(np.float32([[0, 0, 1, 1]])).reshape(2, 2)
        expected = np.clip((native.reshape(-1, 2) * sides), low, high).reshape(-1, 4)
        return np.allclose(fit.boxes_back(built), expected, rtol=0, atol=0.5)
    return np.allclose(fit.points_back(built), native * sides, rtol=0, atol=0.5, equal_nan=True)


@pytest.mark.parametrize("aspect", images.ASPECTS)
def test_dataset_annotations_keep_their_places(dataset, aspect, tmp_path, monkeypatch):
    module, raw, _ = dataset
    size = 256  # more than the sides of the phantoms
    native = _build(module, raw, tmp_path, monkeypatch, size=None, aspect="stretch", encoding="png")
    fitted = _build(module, raw, tmp_path, monkeypatch, size=size, aspect=aspect, encoding="png")
    assert native.keys() == fitted.keys()
    for key, record in native.items():
        height, width = record["original_size"]
        assert images.decode(record["image"]).shape[:2] == (height, width)
        assert images.decode(fitted[key]["image"]).shape[:2] == (size, size) and max(height, width) <= size
        assert np.array_equal(fitted[key]["original_size"], record["original_size"])
        fit = images.Fit(height, width, size, aspect)
        for name, value in record.items():
            if name in ("boxes", "polygons", "field_of_view") or name.endswith(("masks", "keypoints")):
                assert _same_place(name, value, fitted[key][name], fit), (key, name)
            if name == "spacing_mm":
                assert np.allclose(fitted[key][name] * fit.scaled() / (height, width), value, rtol=1e-3, equal_nan=True)


def test_dataset_splits_are_disjoint_by_patient(dataset, tmp_path):
    module, raw, _ = dataset
    default = module.Builder.BUILDER_CONFIGS[0]
    counts = []
    for config in module.Builder.BUILDER_CONFIGS:
        if config.size != default.size:
            continue  # the same rows
        make = module.Builder(data_dir=tmp_path, manual_dir=raw, config=config)
        try:
            splits = make.annotated()
        except InputError:
            assert config is not default  # a release that the phantom did not write
            continue
        patients = [{row.patient_id for row in rows} for rows in splits.values()]
        counts.append(sum(map(len, patients)) - len(set().union(*patients)))
    assert counts and not any(counts)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name):
    module = catalog.load("backbones", name)
    assert module.__doc__ and len(module.MEAN) == len(module.STD) == 3 and set(module.PUBLISHED) <= set(module.VARIANTS)
    check_layers(module, next(iter(module.VARIANTS)))
    image = jnp.zeros((2, 64, 96, 3))
    colour = nnx.eval_shape(lambda: module.Backbone(in_channels=3, rngs=nnx.Rngs(0)))
    pyramid = nnx.eval_shape(lambda m: m(image, train=False, rngs=None), colour)
    assert {stride: features.shape for stride, features in pyramid.items()} == {
        stride: (2, 64 // stride, 96 // stride, channels) for stride, channels in colour.channels.items()
    }
    with pytest.raises(InputError):
        module.Backbone(variant="no such variant", rngs=nnx.Rngs(0))
    with pytest.raises(InputError):
        module.translate({"no.such.weight": np.zeros(1)})
    if module.PUBLISHED or hasattr(module, "adapt_input"):
        check_adapt_input(module, colour)


def check_adapt_input(module, colour):
    """Weights for colour stay bit by bit at their own normalisation, and take any other without a new tensor."""
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(colour, (nnx.Param, nnx.BatchStat)))}
    generator = np.random.default_rng(0)
    weights = {path: generator.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    own = module.adapt_input(weights, mean=module.MEAN, std=module.STD)
    assert own.keys() == weights.keys()
    assert all(own[path].dtype == np.float32 and own[path].tobytes() == weights[path].tobytes() for path in own)
    for mean, std in (((0.5,), (0.25,)), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))):
        adapted = module.adapt_input(weights, mean=mean, std=std)
        changed = {path[:-1] for path in adapted if adapted[path] is not weights[path]}
        assert adapted.keys() == weights.keys() and len(changed) <= 2  # the stem and what takes its constant


@pytest.mark.slow  # the largest have thousands of arrays
@pytest.mark.parametrize("name", BACKBONES)
def test_every_variant_knows_its_layers(name):
    module = catalog.load("backbones", name)
    for variant in module.VARIANTS:
        check_layers(module, variant)


def check_layers(module, variant):
    """Every parameter has its layer, and every layer a parameter."""
    backbone = nnx.eval_shape(lambda: module.Backbone(variant=variant, in_channels=1, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(backbone, nnx.Param))
    paths = [tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert {backbone.layer_of(path) for path in paths} == set(range(backbone.num_layers)), variant


@pytest.mark.parametrize("name", HEADS)
def test_head(name):
    module = catalog.load("heads", name)
    assert module.__doc__ and module.Head.__doc__
    assert list(inspect.signature(module.Head.__init__).parameters)[-1] == "rngs"
    assert {"train", "rngs"} <= set(inspect.signature(module.Head.__call__).parameters)


@pytest.mark.parametrize("name", TASKS)
def test_task(name):
    module = catalog.load("tasks", name)
    assert module.__doc__ and dataclasses.is_dataclass(module.Task)
    for method in experiment.TASK_METHODS:
        assert getattr(module.Task, method).__doc__, f"{name}.Task.{method} has no docstring"


@pytest.mark.parametrize("folder", catalog.FOLDERS)
def test_a_typo_lists_the_valid_names(folder):
    valid = catalog.names(folder)[0]
    with pytest.raises(InputError, match=f"did you mean '{valid}'"):
        catalog.load(folder, valid + "x")
