"""A run starts from published weights: of a backbone, or of a whole network through its head."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from references import compare, seeded
from safetensors.numpy import save_file

from mediax import experiment
from mediax.backbones import densenet, resnet, swin, unet_encoder
from mediax.errors import InputError
from mediax.experiment import complete
from mediax.heads import unet


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A U-Net with a ResNet-18 under segmentation-models-pytorch's names, in a file, and by name."""
    shapes = json.loads(str(compare.load("unet_resnet_18")["shapes"]))
    tensors = {name: np.float32(array) for name, array in seeded.tensors(shapes).items()}
    path = tmp_path_factory.mktemp("weights") / "unet.safetensors"
    save_file(tensors, path)
    return path, tensors


@pytest.fixture(scope="module")
def compose(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")

    def compose(head, channels=3, pretrained="", name="resnet", options=None, **changes):
        config = {
            "phantom": {"minijsrt_lung": {"train": 6, "test": 2, "size": 32}},
            "backbone": {
                "name": name,
                "channels": channels,
                "options": options or {"variant": "18", "stem_level": True},
                "pretrained": pretrained,
                **changes,
            },
            "streams": {
                "lung": {"dataset": "minijsrt_lung", "batch_size": 2, "tasks": {"segmentation": {"head": head}}}
            },
            "evaluations": {"test": {"split": "test", "during_training": True}},
            "best": {"metric": "test/segmentation/dice/macro"},
        }
        folders = experiment.Folders(manual=None, data=folder / "data", work=folder / "run")
        return experiment.compose(complete(config), folders)

    return compose


def test_a_head_s_file_sets_the_backbone_and_what_of_the_head_fits(weights, compose):
    path, tensors = weights
    training = compose({"name": "unet", "pretrained": str(path)})
    params, batch_stats = training.warm_start(*training.model.init(jax.random.key(0)))
    parts = unet.translate(tensors)
    backbone = resnet.translate(parts["backbone"])["backbone"]
    found = compare.flat(params["backbone"]) | compare.flat(batch_stats["backbone"])
    assert found.keys() == backbone.keys() and all(np.array_equal(found[key], backbone[key]) for key in found)
    head = compare.flat(params["head/lung/segmentation"])
    # The file has two classes, the dataset one structure: the last layer keeps its initial values.
    same = {key for key in head if head[key].shape == parts["head"][key].shape}
    assert set(head) - same == {("output", "kernel"), ("output", "bias")}
    assert all(np.array_equal(head[key], parts["head"][key]) for key in same)
    assert training.model.mean == resnet.MEAN and training.model.std == resnet.STD


def test_one_grey_channel_takes_the_sum_of_three(weights, compose):
    path, tensors = weights
    training = compose({"name": "unet", "pretrained": str(path)}, channels=1)
    params, _ = training.warm_start(*training.model.init(jax.random.key(0)))
    assert params["backbone"]["stem"]["conv"]["kernel"].shape == (7, 7, 1, 64)
    kernel = tensors["encoder.conv1.weight"].transpose(2, 3, 1, 0)
    expected = (kernel * (0.25 / np.array(resnet.STD))[:, None]).sum(2, keepdims=True)
    np.testing.assert_allclose(params["backbone"]["stem"]["conv"]["kernel"], expected, rtol=1e-5)


def test_a_classifier_s_file_starts_a_backbone_whose_levels_have_norms(compose, tmp_path):
    tensors = seeded.tensors(json.loads(str(compare.load("swin_v1")["shapes"])))
    save_file(tensors, tmp_path / "swin.safetensors")
    options = {"width": 8, "depths": (2, 2), "heads": (2, 4), "windows": (4, 4), "level_norms": True}
    pretrained = str(tmp_path / "swin.safetensors")
    training = compose({"name": "upernet", "width": 8}, pretrained=pretrained, name="swin", options=options)
    params, _ = training.warm_start(*training.model.init(jax.random.key(0)))
    weights, found = swin.translate(tensors)["backbone"], compare.flat(params["backbone"])
    assert weights.keys() - found.keys() == {("norm", "scale"), ("norm", "bias")}
    assert {path[0] for path in found.keys() - weights.keys()} == {"level_norms"}
    assert all(np.array_equal(found[path], weights[path]) for path in found.keys() & weights.keys())
    for level in range(2):
        assert (found["level_norms", level, "scale"] == 1).all() and (found["level_norms", level, "bias"] == 0).all()


def test_the_backbone_s_own_file_goes_before_that_of_a_head(weights, compose, tmp_path):
    path, tensors = weights
    body = {name.removeprefix("encoder."): 2 * array for name, array in tensors.items() if name.startswith("encoder.")}
    save_file(body, tmp_path / "resnet18.safetensors")
    training = compose({"name": "unet", "pretrained": str(path)}, pretrained=str(tmp_path / "resnet18.safetensors"))
    params, _ = training.warm_start(*training.model.init(jax.random.key(0)))
    expected = 2 * tensors["encoder.bn1.weight"]
    np.testing.assert_array_equal(params["backbone"]["stem"]["norm"]["scale"], expected)


@pytest.fixture(scope="module")
def grey(weights, tmp_path_factory):
    """The same ResNet-18 with one input channel, as timm's in_chans=1 and smp's in_channels=1 train it."""
    tensors = {
        name.removeprefix("encoder."): array for name, array in weights[1].items() if name.startswith("encoder.")
    }
    tensors["conv1.weight"] = np.ascontiguousarray(tensors["conv1.weight"][:, :1])
    path = tmp_path_factory.mktemp("grey") / "resnet18.safetensors"
    save_file(tensors, path)
    return path, tensors


def test_weights_of_one_channel_are_taken_as_they_are_if_the_config_knows_their_normalisation(grey, compose):
    path, tensors = grey
    training = compose({"name": "unet"}, channels=1, pretrained=str(path), mean=(0.4,), std=(0.2,))
    params, batch_stats = training.warm_start(*training.model.init(jax.random.key(0)))
    expected = tensors["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["backbone"]["stem"]["conv"]["kernel"], expected)
    np.testing.assert_array_equal(batch_stats["backbone"]["stem"]["norm"]["mean"], tensors["bn1.running_mean"])


@pytest.mark.parametrize("given", [{}, {"mean": (0.4,)}, {"std": (0.2,)}])
def test_weights_of_one_channel_need_a_mean_and_a_std(grey, compose, given):
    training = compose({"name": "unet"}, channels=1, pretrained=str(grey[0]), **given)
    said = "have 1 input channels of unknown normalisation: set backbone.channels to 1 and both backbone.mean"
    with pytest.raises(InputError, match=said):
        training.warm_start(*training.model.init(jax.random.key(0)))


def backbone_of(training):
    params, batch_stats = training.warm_start(*training.model.init(jax.random.key(0)))
    return compare.flat(params["backbone"]) | compare.flat(batch_stats["backbone"])


def test_colour_weights_adapt_to_the_config_s_own_normalisation(weights, compose):
    path, tensors = weights
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    found = backbone_of(compose({"name": "unet", "pretrained": str(path)}, mean=mean, std=std))
    expected = resnet.adapt_input(resnet.translate(unet.translate(tensors)["backbone"])["backbone"], mean, std)
    own = tensors["encoder.conv1.weight"].transpose(2, 3, 1, 0)
    assert not np.allclose(found["stem", "conv", "kernel"], own)
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_weights_at_their_own_normalisation_stay_bit_by_bit(weights, compose):
    path, tensors = weights
    given = {"mean": resnet.MEAN, "std": resnet.STD}
    backbone = resnet.translate(unet.translate(tensors)["backbone"])["backbone"]
    for changes in ({}, given):
        found = backbone_of(compose({"name": "unet", "pretrained": str(path)}, **changes))
        assert all(np.asarray(found[key]).tobytes() == backbone[key].tobytes() for key in found)


def random_weights(module, **options):
    """Random arrays for the backbone of a file in mediax/backbones/, by path."""
    backbone = nnx.eval_shape(lambda: module.Backbone(**options, rngs=nnx.Rngs(0)))
    generator = np.random.default_rng(0)
    state = nnx.to_flat_state(nnx.state(backbone, (nnx.Param, nnx.BatchStat)))
    return {path: generator.standard_normal(leaf.shape, np.float32) for path, leaf in state}


def test_grey_weights_of_a_known_normalisation_serve_three_channels(compose, monkeypatch, tmp_path):
    options = {"variant": "121", "depths": (1,), "growth": 2, "stem": 8}
    grey = random_weights(densenet, **options, in_channels=1)
    monkeypatch.setattr(densenet, "translate", lambda weights: {"backbone": grey, "head": {}})
    save_file({"any": np.zeros(1, np.float32)}, tmp_path / "grey.safetensors")
    settings = {"name": "densenet", "options": options, "pretrained": str(tmp_path / "grey.safetensors")}
    found = backbone_of(compose({"name": "unet", "widths": (4, 4)}, **settings))
    assert found["stem", "conv", "kernel"].shape == (7, 7, 3, 8)
    expected = densenet.adapt_input(grey, densenet.MEAN, densenet.STD)
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def as_pytorch_unet(arrays):
    """Yields names and arrays as github.com/jvanvugt/pytorch-unet has them."""
    for (_, level, _, index, word), array in arrays.items():
        name = f"down_path.{level}.block.{2 * index}.{'weight' if word == 'kernel' else word}"
        yield name, np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_plain_u_net_s_file_is_taken_with_its_own_channels(compose, tmp_path, channels):
    options = {"variant": "eighth", "levels": 2}
    arrays = random_weights(unet_encoder, **options, in_channels=channels)
    save_file(dict(as_pytorch_unet(arrays)), tmp_path / "unet.safetensors")
    settings = {"name": "unet_encoder", "options": options, "pretrained": str(tmp_path / "unet.safetensors")}
    found = backbone_of(compose({"name": "unet", "widths": (8,)}, channels, **settings))
    assert found.keys() == arrays.keys() and all(np.array_equal(found[key], arrays[key]) for key in found)
    training = compose({"name": "unet", "widths": (8,)}, 4 - channels, **settings)
    with pytest.raises(InputError, match="the number of input channels"):
        backbone_of(training)


def test_a_backbone_that_cannot_adapt_says_so(grey, compose, monkeypatch):
    monkeypatch.delattr(resnet, "adapt_input")
    training = compose({"name": "unet"}, 1, str(grey[0]), mean=(0.4,), std=(0.2,))
    with pytest.raises(InputError, match=r"expect images normalised by mean \(0.485.*write adapt_input in mediax/back"):
        backbone_of(training)


def test_a_backbone_that_need_not_adapt_needs_no_adapt_input(weights, compose, monkeypatch):
    monkeypatch.delattr(resnet, "adapt_input")
    found = backbone_of(compose({"name": "unet", "pretrained": str(weights[0])}))
    expected = weights[1]["encoder.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found["stem", "conv", "kernel"], expected)
