"""Published weights are read, renamed, adapted and set; what does not fit is named."""

import argparse
import hashlib
import importlib.util
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from mediax import pretrained
from mediax.backbones import convnext, resnet
from mediax.errors import InputError

HAS_TORCH = importlib.util.find_spec("torch") is not None


def variables():
    return {
        "params": {"conv": {"kernel": np.zeros((1, 1, 3, 2), np.float32)}, "blocks": {0: {"scale": np.ones(2)}}},
        "batch_stats": {"blocks": {0: {"mean": np.zeros(2, np.float32)}}},
    }


def weights():
    return {
        ("conv", "kernel"): np.full((1, 1, 3, 2), 2.0),
        ("blocks", 0, "scale"): np.full(2, 3.0),
        ("blocks", 0, "mean"): np.full(2, 4.0),
    }


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    tensors = {"module.a.weight": np.arange(6, dtype=np.float16).reshape(2, 3), "count": np.array(7)}
    save_file(tensors, tmp_path / "weights.safetensors")
    read = pretrained.read(tmp_path / "weights.safetensors")
    assert read["a.weight"].dtype == np.float32
    np.testing.assert_array_equal(read["a.weight"], tensors["module.a.weight"])
    assert read["count"] == 7


def test_a_torch_checkpoint_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights.pth.*pip install torch"):
        pretrained.read(tmp_path / "weights.pth")


@pytest.mark.skipif(not HAS_TORCH, reason="torch is an optional extra")
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_torch_checkpoints_are_unwrapped(tmp_path, key):
    import torch

    content = {"module.a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3)}
    torch.save({key: content} if key else content, tmp_path / "weights.pth")
    read = pretrained.read(tmp_path / "weights.pth")
    np.testing.assert_array_equal(read["a"], np.ones(2, np.float32))
    assert read["b"] == 3


@pytest.mark.skipif(not HAS_TORCH, reason="torch is an optional extra")
def test_a_checkpoint_beside_the_arguments_of_its_training_is_read(tmp_path):
    """As main.py of IDEA-Research/DINO writes it."""
    import torch

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 11).state_dict(),
        "epoch": 11,
        "args": argparse.Namespace(lr=1e-4, lr_drop_list=[33, 45], dn_scalar=100, frozen_weights=None),
    }
    torch.save(content, tmp_path / "checkpoint0011.pth")
    read = pretrained.read(tmp_path / "checkpoint0011.pth")
    assert read.keys() == {"weight", "bias"}
    np.testing.assert_array_equal(read["weight"], model.weight.detach().numpy())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.skipif(not HAS_TORCH, reason="torch is an optional extra")
def test_parameters_are_read_as_tensors(tmp_path):
    import torch

    parameter = torch.nn.Parameter(torch.arange(4.0))
    torch.save({"weight": parameter}, tmp_path / "weights.pth")
    np.testing.assert_array_equal(pretrained.read(tmp_path / "weights.pth")["weight"], np.arange(4, dtype=np.float32))


@pytest.mark.skipif(not HAS_TORCH, reason="torch is an optional extra")
def test_code_in_a_torch_checkpoint_is_never_run(tmp_path):
    import torch

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for content in ({"model": Trap()}, {"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=Trap())}):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(InputError, match="never run"):
            pretrained.read(tmp_path / "weights.pth")
        assert not (tmp_path / "sprung").exists()


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent.pth: no such file"):
        pretrained.read(tmp_path / "absent.pth")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"not '.onnx'"):
        pretrained.read(tmp_path / "weights.onnx")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(InputError, match=r"cut.safetensors: not a readable"):
        pretrained.read(tmp_path / "cut.safetensors")


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    assert pretrained.sha256(tmp_path / "file") == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("family", [convnext, resnet])
def test_unknown_names_are_all_listed(family):
    with pytest.raises(
        InputError, match=r"2 of 2 published tensors have unknown names: blocks.0.attn.qkv.weight, mask"
    ):
        family.translate({"blocks.0.attn.qkv.weight": np.zeros((2, 2)), "mask": np.zeros(2)})


def test_rename_changes_layouts_and_drops_the_counter():
    published = {
        "conv.weight": np.arange(24).reshape(4, 3, 2, 1),
        "fc.weight": np.arange(6).reshape(2, 3),
        "bn.weight": np.arange(3),
        "bn.running_var": np.arange(3),
        "bn.num_batches_tracked": np.array(5),
    }
    parts = pretrained.rename(published, [("conv", "backbone/0/conv"), ("fc", "head/linear"), ("bn", "backbone/bn")])
    assert parts["backbone"].keys() == {(0, "conv", "kernel"), ("bn", "scale"), ("bn", "var")}
    kernel = parts["backbone"][0, "conv", "kernel"]
    assert kernel.shape == (2, 1, 3, 4)
    assert kernel[1, 0, 2, 3] == published["conv.weight"][3, 2, 1, 0]
    np.testing.assert_array_equal(parts["head"]["linear", "kernel"], published["fc.weight"].T)


def test_warm_start_sets_every_collection_and_leaves_the_input_alone():
    before = variables()
    after, report = pretrained.warm_start(before, weights(), part="backbone")
    assert (after["params"]["conv"]["kernel"] == 2).all() and after["params"]["conv"]["kernel"].dtype == np.float32
    assert (after["params"]["blocks"][0]["scale"] == 3).all() and (after["batch_stats"]["blocks"][0]["mean"] == 4).all()
    assert (before["params"]["conv"]["kernel"] == 0).all()
    assert report.used == ("conv/kernel", "blocks/0/scale", "blocks/0/mean") and not report.left_over + report.missing


def test_what_does_not_fit_a_backbone_is_an_error_that_names_it():
    wrong = weights() | {("conv", "kernel"): np.zeros((1, 1, 1, 2))}
    del wrong["blocks", 0, "mean"]
    with pytest.raises(InputError) as error:
        pretrained.warm_start(variables(), wrong, part="backbone")
    assert "conv/kernel ([1, 1, 1, 2] in the file, [1, 1, 3, 2] in the network)" in str(error.value)
    assert "blocks/0/mean (missing)" in str(error.value)


def test_optional_parameters_may_be_missing_but_not_of_another_shape():
    own = {"params": {"norms": {0: {"scale": np.ones(4)}}, "stem": {"scale": np.zeros(2)}}}
    published = {("stem", "scale"): np.ones(2)}
    after, report = pretrained.warm_start(own, published, part="backbone", optional=("norms",))
    assert (after["params"]["stem"]["scale"] == 1).all() and (after["params"]["norms"][0]["scale"] == 1).all()
    assert report.missing == ("norms/0/scale",)
    with pytest.raises(InputError, match=r"norms/0/scale \(\[3\] in the file, \[4\] in the network\)"):
        wrong = published | {("norms", 0, "scale"): np.ones(3)}
        pretrained.warm_start(own, wrong, part="backbone", optional=("norms",))
    with pytest.raises(InputError, match=r"stem/scale \(missing\)"):
        pretrained.warm_start(own, {}, part="backbone", optional=("norms",))


def test_a_head_with_other_classes_stays_at_its_initial_values():
    own = {"params": {"norm": {"scale": np.zeros(4)}, "linear": {"kernel": np.zeros((4, 14))}}}
    published = {
        ("norm", "scale"): np.ones(4),
        ("linear", "kernel"): np.ones((4, 1000)),
        ("linear", "bias"): np.ones(1),
    }
    after, report = pretrained.warm_start(own, published, part="head", complete=False)
    assert (after["params"]["norm"]["scale"] == 1).all() and (after["params"]["linear"]["kernel"] == 0).all()
    assert report == pretrained.Report("head", ("norm/scale",), ("linear/kernel", "linear/bias"), ("linear/kernel",))
    assert "1 left at their initial values: linear/kernel" in str(report)


def test_three_channels_adapt_to_another_normalisation():
    rng = np.random.default_rng(0)
    kernel, image = rng.standard_normal((1, 1, 3, 5)), rng.random((7, 3))
    mean, std, published = (0.4, 0.3, 0.2), (0.2, 0.1, 0.3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    adapted, constant = pretrained.adapt_input(kernel, *published, mean, std)
    expected = ((image - published[0]) / published[1]) @ kernel[0, 0]
    np.testing.assert_allclose(((image - mean) / std) @ adapted[0, 0] + constant, expected, rtol=1e-4, atol=1e-5)


def test_other_channel_counts_are_refused():
    with pytest.raises(InputError, match=r"1 \(grey\) or 3 channels"):
        pretrained.adapt_input(np.zeros((4, 4, 3, 8)), convnext.MEAN, convnext.STD, (0.5, 0.5), (0.2, 0.2))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("own", [1, 3])
def test_a_kernel_that_does_not_see_red_green_and_blue_is_never_scaled(channels, own):
    kernel = np.ones((7, 7, channels, 64), np.float32)
    with pytest.raises(pretrained.UnknownNormalisation, match=f"have {channels} input channels of unknown") as error:
        pretrained.adapt_input(kernel, resnet.MEAN, resnet.STD, (0.5,) * own, (0.25,) * own)
    assert error.value.channels == channels
