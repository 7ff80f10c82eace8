"""Runs the published Swin networks in float64 and writes tests/references/goldens/swin_*.npz.

    python tests/references/swin.py --authors CHECKOUT

Needs torch, torchvision and timm (written with 2.14.1, 0.29.1 and 1.0.31), which mediax itself does not use. CHECKOUT
is a checkout of https://github.com/microsoft/Swin-Transformer (written with commit f82860b).
"""

import argparse
import functools
import json
import math
import sys
from unittest import mock

import backbones
import timm
import torch
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
# variant: (size, window, image size, pretrained windows if version 2)
VARIANTS = {size: (size, 7, 224, None) for size in SIZES}
VARIANTS |= {f"{size}_window12": (size, 12, 384, None) for size in ("base", "large")}
VARIANTS |= {f"v2_{size}": (size, 8, 256, (0, 0, 0, 0)) for size in ("tiny", "small", "base")}
VARIANTS |= {f"v2_{size}_window16": (size, 16, 256, (0, 0, 0, 0)) for size in ("tiny", "small", "base")}
for large in ("base", "large"):
    VARIANTS[f"v2_{large}_window12"] = (large, 12, 192, (0, 0, 0, 0))
    VARIANTS[f"v2_{large}_window12to16"] = (large, 16, 256, (12, 12, 12, 6))
    VARIANTS[f"v2_{large}_window12to24"] = (large, 24, 384, (12, 12, 12, 6))
SHORT = {"tiny": "t", "small": "s", "base": "b"}
KEEP = ("norm.weight", "patch_embed.norm.bias", "features.0.2.bias", "layers.0.downsample.norm.weight")
KEEP += ("layers.1.blocks.0.attn.logit_scale", "layers.0.blocks.1.attn.relative_position_bias_table")


class Level(nn.Module):
    """Shows a level to a hook: [B,H,W,C], or [B,N,C] of a square -> [B,C,H,W]."""

    def forward(self, x):
        side = math.isqrt(x.shape[1])
        return (x if x.ndim == 4 else x.unflatten(1, (side, side))).permute(0, 3, 1, 2)


def level_after(module: nn.Module) -> Level:
    """The level that `module` gives, at each of its calls."""
    level = Level()

    def show(module, inputs, output):
        level(output)

    module.register_forward_hook(show)
    return level


def run(model: nn.Module, blocks: list[nn.Module], size: tuple[int, int]) -> dict:
    """The golden of a network of two stages, `blocks`; the last level is normalised.

    Its tables and masks are no weights: they keep their computed values.
    """
    for module in model.modules():
        module._non_persistent_buffers_set.update(module._buffers)
    levels = [level_after(blocks[0][-1]), level_after(model.norm)]
    return backbones.run(model, levels, size, KEEP) | backbones.summary("running", {}, ())


def published_names(first: type, second: type) -> dict[str, dict[str, tuple[int, ...]]]:
    names = {}
    # The rates of stochastic depth are the one thing that the authors compute from values while they build a network.
    on_cpu = functools.partial(torch.linspace, device="cpu")
    with torch.device("meta"), mock.patch("torch.linspace", on_cpu):
        for variant, (size, window, image, pretrained) in VARIANTS.items():
            width, depths, heads = SIZES[size]
            settings = {"img_size": image, "embed_dim": width, "depths": depths, "num_heads": heads}
            settings |= {"window_size": window}
            if pretrained:
                model = second(**settings, pretrained_window_sizes=pretrained)
            else:
                model = first(**settings)
            names[f"swin/{variant}/authors"] = backbones.shapes_of(model)
            if pretrained is None:
                name = f"swin_{size}_patch4_window{window}_{image}"
            elif variant.partition("to")[2].isdigit():
                name = f"swinv2_{size}_window12to{window}_192to{image}"
            else:
                name = f"swinv2_{size}_window{window}_{image}"
            names[f"swin/{variant}/timm"] = backbones.shapes_of(timm.create_model(name, num_classes=1000))
        for size, short in SHORT.items():
            for variant, name in ((size, f"swin_{short}"), (f"v2_{size}", f"swin_v2_{short}")):
                model = getattr(backbones.torchvision.models, name)()
                names[f"swin/{variant}/torchvision"] = backbones.shapes_of(model)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", metavar="CHECKOUT", required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.authors + "/models")  # not as a package: its __init__ needs compiled operators
    from swin_transformer import SwinTransformer as First
    from swin_transformer_v2 import SwinTransformerV2 as Second

    small = {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 8}
    # 32 pixels: 8x8 features in windows of 4, then 4x4 in one window.
    settings = {"img_size": 32, "num_classes": 10, "window_size": 4, "drop_path_rate": 0.0, **small}
    for name, model in {
        "swin_v1": First(**settings),
        "swin_v2": Second(**settings, pretrained_window_sizes=[3, 2]),
    }.items():
        backbones.save(name, run(model, [layer.blocks for layer in model.layers], (32, 32)))
    # A size that no stride and no window divides: 11x14 features, then 6x7.
    settings = {"patch_size": [4, 4], "num_classes": 10, "window_size": [4, 4], "stochastic_depth_prob": 0.0, **small}
    for name, model in {
        "swin_v1_odd": SwinTransformer(**settings),
        "swin_v2_odd": SwinTransformer(**settings, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    }.items():
        backbones.save(name, run(model, [model.features[1], model.features[3]], (47, 59)))
    backbones.save("swin_names", {"names": json.dumps(published_names(First, Second))})


if __name__ == "__main__":
    main()
