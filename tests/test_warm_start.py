"""A run starts from published weights: of a backbone, or of a whole network through its head."""

import json

import jax
import numpy as np
import pytest
from references import compare, seeded
from safetensors.numpy import save_file

from mediax import experiment
from mediax.backbones import resnet
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

    def compose(head, channels=3, pretrained="", **normalisation):
        config = {
            "phantom": {"minijsrt_lung": {"train": 6, "test": 2, "size": 32}},
            "backbone": {
                "name": "resnet",
                "channels": channels,
                "options": {"variant": "18", "stem_level": True},
                "pretrained": pretrained,
                **normalisation,
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
