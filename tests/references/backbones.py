"""Runs the published ConvNeXt and ResNet implementations in float64 and writes tests/references/goldens/*.npz.

    python tests/references/backbones.py --authors CHECKOUT

Needs torch, torchvision and timm (written with 2.13.0, 0.29.2 and 1.0.31; resnet_50 with torch 2.14.1 and torchvision
0.29.1), which mediax itself does not use. CHECKOUT is a checkout of https://github.com/facebookresearch/ConvNeXt
(written with commit 048efce).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import seeded
import torch

try:
    import torchvision
except RuntimeError:  # built for another torch: its operators need only be declared, as no model here uses them
    torch_library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        torch_library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

import timm

GOLDENS = Path(__file__).parent / "goldens"
SMALL_CONVNEXT = {"depths": (1, 2, 3, 1), "dims": (8, 16, 24, 40)}


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def fill(model: torch.nn.Module) -> torch.nn.Module:
    weights = seeded.tensors(shapes_of(model))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    return model


def run(model: torch.nn.Module, levels: list[torch.nn.Module], size: tuple[int, int], keep: tuple[str, ...]) -> dict:
    """Logits, pyramid and gradients of sum(logits * probe), in inference and in training mode.

    In float64: in float32 the rounding flips the sign of a few ReLU inputs, and then the gradients of the very same
    ResNet differ from its float64 gradients by up to 40 percent for some tensors (by 1e-6 where nothing flips).
    """
    shapes = shapes_of(model)
    model = model.double()
    image = torch.from_numpy(seeded.normal("image", (2, *size, 3))).permute(0, 3, 1, 2).double()
    pyramid = []
    for level in levels:
        level.register_forward_hook(lambda module, inputs, output: pyramid.append(output))
    golden = {"shapes": json.dumps(shapes), "image_size": size}
    for mode in ("inference", "training"):
        fill(model).train(mode == "training")
        model.zero_grad()
        pyramid.clear()
        logits = model(image)
        probe = torch.from_numpy(seeded.normal("probe", tuple(logits.shape)))
        (logits * probe).sum().backward()
        golden[f"{mode}/logits"] = logits.detach().numpy().astype(np.float32)
        for index, level in enumerate(pyramid):
            array = level.detach().permute(0, 2, 3, 1).numpy()
            golden[f"{mode}/pyramid/{index}/shape"] = array.shape
            golden[f"{mode}/pyramid/{index}/every_97th"] = array.reshape(-1)[::97].astype(np.float32)
        gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
        golden |= summary(f"{mode}/gradient", gradients, keep)
    # The buffers after one training step from the seeded weights: BatchNorm's running statistics.
    golden |= summary("running", {n: b.numpy() for n, b in model.named_buffers() if not n.endswith("tracked")}, keep)
    return golden


def summary(prefix: str, tensors: dict[str, np.ndarray], keep: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Norm and projection of every tensor, and the whole of those in `keep`."""
    directions = seeded.directions({name: array.shape for name, array in tensors.items()})
    result = {
        f"{prefix}/names": np.array(list(tensors), dtype=np.str_),
        f"{prefix}/norms": np.array([np.linalg.norm(array) for array in tensors.values()]),
        f"{prefix}/projections": np.array([np.sum(array * directions[name]) for name, array in tensors.items()]),
    }
    return result | {f"{prefix}/whole/{name}": tensors[name].astype(np.float32) for name in keep if name in tensors}


def save(name: str, arrays: dict) -> None:
    np.savez_compressed(GOLDENS / f"{name}.npz", **arrays)
    print(name, (GOLDENS / f"{name}.npz").stat().st_size // 1024, "kB")


def authors_convnext(checkout: str):
    """The authors' class. Importing it replaces timm's models of the same names, so this comes after their use."""
    sys.path.insert(0, checkout)
    from models.convnext import ConvNeXt

    return ConvNeXt


def published_names(checkout: str) -> dict[str, dict[str, tuple[int, ...]]]:
    names = {}
    with torch.device("meta"):
        for variant in ("tiny", "small", "base", "large"):
            names[f"convnext/{variant}/torchvision"] = shapes_of(getattr(torchvision.models, f"convnext_{variant}")())
        for variant in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge"):
            model = timm.create_model(f"convnext_{variant}", num_classes=1000)
            names[f"convnext/{variant}/timm"] = shapes_of(model)
        for variant in ("18", "34", "50", "101"):
            names[f"resnet/{variant}/torchvision"] = shapes_of(getattr(torchvision.models, f"resnet{variant}")())
            names[f"resnet/{variant}/timm"] = shapes_of(timm.create_model(f"resnet{variant}", num_classes=1000))
    authors, depths = authors_convnext(checkout), (3, 3, 27, 3)
    for variant, width in {"tiny": 96, "small": 96, "base": 128, "large": 192, "xlarge": 256}.items():
        dims = tuple(width * 2**stage for stage in range(4))
        model = authors(depths=(3, 3, 9, 3) if variant == "tiny" else depths, dims=dims)
        names[f"convnext/{variant}/authors"] = shapes_of(model)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", metavar="CHECKOUT", required=True)
    arguments = parser.parse_args()
    GOLDENS.mkdir(exist_ok=True)

    save("published", {"names": json.dumps(published_names(arguments.authors))})
    convnext = authors_convnext(arguments.authors)
    keep = (
        *("downsample_layers.0.0.weight", "downsample_layers.0.0.bias", "downsample_layers.0.1.weight"),
        *("stages.2.1.gamma", "stages.2.1.dwconv.weight", "stages.2.1.norm.weight", "stages.2.1.pwconv2.bias"),
        *("norm.weight", "head.weight", "head.bias"),
    )
    for name, size, settings in (("convnext_tiny", (64, 96), {}), ("convnext_odd", (71, 101), SMALL_CONVNEXT)):
        model = convnext(num_classes=10, **settings)
        save(name, run(model, list(model.stages), size, keep))

    keep = ("conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.running_var", "layer3.1.bn2.weight", "fc.bias")
    keep += ("layer3.1.bn2.running_mean", "layer3.1.bn2.running_var", "fc.weight")
    # BatchNorm over the few pixels of the last stage amplifies rounding in training: there are 60 of ResNet-50's.
    for variant, size in (("18", (64, 96)), ("18", (71, 101)), ("50", (160, 192))):
        model = getattr(torchvision.models, f"resnet{variant}")(num_classes=10)
        odd = "_odd" if size[0] % 2 else ""
        save(f"resnet_{variant}{odd}", run(model, [getattr(model, f"layer{i}") for i in range(1, 5)], size, keep))
    # The usual change for small images: a 3x3 stem of stride 1, and no pooling.
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    save("resnet_18_small", run(model, [getattr(model, f"layer{i}") for i in range(1, 5)], (19, 24), keep))


if __name__ == "__main__":
    main()
