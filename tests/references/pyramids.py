"""Runs backbones of published detectors and segmenters in float64 and writes tests/references/goldens/pyramid_*.npz.

    python tests/references/pyramids.py --dino CHECKOUT

Needs torch, torchvision, timm and transformers (written with 2.14.1, 0.29.1, 1.0.31 and 5.24.0), which mediax itself
does not use. CHECKOUT is a checkout of https://github.com/IDEA-Research/DINO (written with commit faa8520).
"""

import argparse
import json
import sys
from collections.abc import Callable

import backbones
import numpy as np
import seeded
import torch
from torch import nn
from transformers import ConvNextBackbone, ConvNextConfig


def run(model: nn.Module, forward: Callable[[torch.Tensor], list[torch.Tensor]], size: tuple[int, int]) -> dict:
    """The levels [B,C,H,W] of a pyramid, and the gradients of the sum of each level times noise."""
    golden = {"shapes": json.dumps(backbones.shapes_of(model)), "image_size": size}
    backbones.fill(model.double()).train()
    image = torch.from_numpy(seeded.normal("image", (2, *size, 3))).permute(0, 3, 1, 2).double()
    total = 0.0
    for index, level in enumerate(forward(image)):
        level = level.permute(0, 2, 3, 1)
        total = total + (level * torch.from_numpy(seeded.normal(f"probe {index}", tuple(level.shape)))).sum()
        golden[f"level/{index}/shape"] = tuple(level.shape)
        golden[f"level/{index}/every_7th"] = level.detach().numpy().reshape(-1)[::7].astype(np.float32)
    total.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return golden | backbones.summary("gradient", gradients, tuple(name for name in gradients if "norm1.w" in name))


def dino_swin(checkout: str) -> dict:
    """Swin as DINO has it, at a size that no window divides: 20x28 features, then 10x14 and 5x7."""
    sys.path[:0] = [checkout, checkout + "/models/dino"]  # not as a package: its __init__ needs compiled operators
    from swin_transformer import SwinTransformer

    settings = {"embed_dim": 8, "depths": [2, 1, 2], "num_heads": [2, 4, 8], "window_size": 3, "drop_path_rate": 0.0}
    model = SwinTransformer(**settings, out_indices=(0, 1, 2))
    for module in model.modules():  # tables are no weights
        module._non_persistent_buffers_set.update(module._buffers)
    return run(model, model.forward_raw, (80, 112))


def transformers_convnext() -> dict:
    """ConvNeXt with all levels, at a size that no stride divides."""
    stages = [f"stage{index}" for index in range(1, 5)]
    config = ConvNextConfig(hidden_sizes=[8, 16, 24, 40], depths=[1, 2, 3, 1], out_features=stages)
    model = ConvNextBackbone(config)
    return run(model, lambda image: model(image).feature_maps, (71, 101))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dino", metavar="CHECKOUT", required=True)
    arguments = parser.parse_args()
    backbones.GOLDENS.mkdir(exist_ok=True)
    backbones.save("pyramid_convnext", transformers_convnext())
    backbones.save("pyramid_swin", dino_swin(arguments.dino))


if __name__ == "__main__":
    main()
