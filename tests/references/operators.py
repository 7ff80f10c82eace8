"""Runs the published operators in float64 and writes tests/references/goldens/operators.npz.

    python tests/references/operators.py --internimage CHECKOUT --deformable-detr CHECKOUT --swin CHECKOUT

Needs torch, torchvision with its compiled operators, and timm (written with 2.15.0, 0.29.2 and 1.0.31), which mediax
itself does not use. The checkouts are of https://github.com/OpenGVLab/InternImage (31c962d),
https://github.com/fundamentalvision/Deformable-DETR (11169a6) and
https://github.com/microsoft/Swin-Transformer (f82860b); of the first two only the functions in PyTorch run.
"""

import argparse
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import operator_cases as cases
import torch
from torch.nn import functional
from torchvision import ops
from torchvision.models.swin_transformer import shifted_window_attention
from torchvision.ops import boxes as box_operators
from torchvision.ops.poolers import LevelMapper

GOLDENS = Path(__file__).parent / "goldens"


def load(checkout: str, path: str) -> types.ModuleType:
    """A file of a checkout as a module; the compiled operators that it imports and does not run are left out."""
    for name in ("DCNv3", "MultiScaleDeformableAttention", "pkg_resources", "timm.models.layers"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["pkg_resources"].get_distribution = lambda name: types.SimpleNamespace(version="1.1")
    from timm import layers

    vars(sys.modules["timm.models.layers"]).update(vars(layers))
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(checkout) / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(function, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The value of a function of the arrays, and the gradients of its product with a probe."""
    tensors = {name: torch.from_numpy(array).double().requires_grad_() for name, array in arrays.items()}
    value = function(**tensors)
    probe = torch.from_numpy(cases.probe(tuple(value.shape)))
    gradients = torch.autograd.grad((value * probe).sum(), list(tensors.values()))
    golden = {"value": value.detach().numpy()}
    return golden | {f"gradient/{name}": gradient.numpy() for name, gradient in zip(tensors, gradients, strict=True)}


def channels_first(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-1, 1)


def grid_sample(padding: str, align_corners: bool):
    def function(image, grid):
        y = functional.grid_sample(channels_first(image), grid, padding_mode=padding, align_corners=align_corners)
        return y.movedim(1, -1)

    return run(function, cases.grid_sample())


def deformable_attention(module):
    def function(locations, weights, **values):
        values = list(values.values())
        sizes = [value.shape[1:3] for value in values]
        flat = torch.cat([value.flatten(1, 2) for value in values], 1)
        return module.ms_deform_attn_core_pytorch(flat, sizes, locations, weights)

    return run(function, cases.deformable_attention())


def dcnv3(module, settings: dict):
    def function(x, offsets, masks):
        size, groups = settings["kernel_size"], masks.shape[3]
        pairs = [settings[name] for name in ("kernel_size", "stride", "padding", "dilation") for _ in range(2)]
        rest = groups, x.shape[-1] // groups, settings["offset_scale"], int(settings["remove_center"])
        assert masks.shape[4] == size**2 - settings["remove_center"]
        return module.dcnv3_core_pytorch(x, offsets.flatten(3), masks.flatten(3), *pairs, *rest)

    return run(function, cases.dcnv3(**settings))


def roi_align(settings: dict):
    boxes = torch.from_numpy(cases.BOXES).double()
    rois = [boxes[..., [1, 0, 3, 2]]] * 2  # x before y, the same boxes in both images

    def function(features):
        scale = 1 / cases.ROI_STRIDE
        settings_ = {"spatial_scale": scale, **settings}
        y = ops.roi_align(channels_first(features), rois, cases.ROI_SIZE, **settings_)
        return y.movedim(1, -1).unflatten(0, (2, -1))

    return run(function, {"features": cases.features()})


def suppression(threshold: float):
    boxes, scores, labels = map(torch.from_numpy, cases.crowd())
    return {
        "nms": ops.nms(boxes, scores, threshold).numpy(),
        "batched": box_operators._batched_nms_vanilla(boxes, scores, labels.long(), threshold).numpy(),
    }


def swin_attention(module, heads: int, window: int, **settings):
    """The authors' attention in windows; its parameters are the arguments."""
    attention = module.WindowAttention(cases.SWIN_CHANNELS, (window, window), heads, **settings).double()

    def function(x, mask, **parameters):
        parameters = {name.replace("__", "."): tensor for name, tensor in parameters.items()}
        return torch.func.functional_call(attention, parameters, (x.flatten(0, 1), mask)).unflatten(0, x.shape[:2])

    return function


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--internimage", "--deformable-detr", "--swin"):
        parser.add_argument(name, metavar="CHECKOUT", required=True)
    arguments = parser.parse_args()
    internimage = load(arguments.internimage, "classification/ops_dcnv3/functions/dcnv3_func.py")
    deformable_detr = load(arguments.deformable_detr, "models/ops/functions/ms_deform_attn_func.py")
    swin = {
        name: load(arguments.swin, f"models/{file}.py")
        for name, file in (("swin", "swin_transformer"), ("swin_v2", "swin_transformer_v2"))
    }

    goldens = {
        f"grid_sample/{padding}/{align}": grid_sample(padding, align)
        for padding in ("zeros", "border")
        for align in (False, True)
    }
    goldens["deformable_attention"] = deformable_attention(deformable_detr)
    goldens |= {f"dcnv3/{name}": dcnv3(internimage, settings) for name, settings in cases.DCNV3.items()}
    goldens |= {f"roi_align/{name}": roi_align(settings) for name, settings in cases.ROI_ALIGN.items()}
    levels = LevelMapper(2, 5)([torch.from_numpy(cases.SIZED_BOXES)])
    goldens["pyramid_level"] = {"value": levels.numpy()}
    goldens |= {f"suppression/{threshold}": suppression(threshold) for threshold in cases.THRESHOLDS}

    heads, window = cases.SWIN_HEADS, cases.SWIN_WINDOW
    block = swin["swin"].SwinTransformerBlock(cases.SWIN_CHANNELS, cases.SWIN_SIZE, heads, window, window // 2)
    goldens["shift_mask"] = {"value": block.attn_mask.numpy()}
    for name, settings in (("swin", {}), ("swin_v2", {"pretrained_window_size": (6, 6)})):
        function = swin_attention(swin[name], heads, window, **settings)
        goldens[name] = run(function, cases.swin(name) | {"mask": block.attn_mask.numpy()})
    for name, shift in (("shifted", 1), ("unshifted", 0)):

        def function(x, qkv_weight, qkv_bias, proj_weight, bias, shift=shift):
            settings = {"window_size": [3, 3], "num_heads": heads, "shift_size": [shift, shift], "qkv_bias": qkv_bias}
            return shifted_window_attention(x, qkv_weight, proj_weight, bias[None], **settings)

        goldens[f"in_windows/{name}"] = run(function, cases.in_windows())

    arrays = {f"{case}/{name}": array for case, golden in goldens.items() for name, array in golden.items()}
    arrays = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in arrays.items()}
    np.savez_compressed(GOLDENS / "operators.npz", **arrays)
    print(len(goldens), "cases,", (GOLDENS / "operators.npz").stat().st_size // 1024, "kB")


if __name__ == "__main__":
    main()
