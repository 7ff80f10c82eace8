"""A run starts from published weights: of a backbone, or of a whole network through its head."""

import json

import jax
import numpy as np
import pytest
from references import compare, seeded
from safetensors.numpy import save_file

from mediax import experiment
from mediax.backbones import resnet, swin
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

    def compose(head, channels=3, pretrained="", name="resnet", options=None):
        config = {
            "phantom": {"minijsrt_lung": {"train": 6, "test": 2, "size": 32}},
            "backbone": {
                "name": name,
                "channels": channels,
                "options": options or {"variant": "18", "stem_level": True},
                "pretrained": pretrained,
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
