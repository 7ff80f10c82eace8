"""Runs the published vision transformers in float64 and writes tests/references/goldens/vit_*.npz.

    python tests/references/vit.py --dinov2 CHECKOUT --detectron2 CHECKOUT

Needs torch, torchvision, timm and transformers (written with 2.13.0, 0.29.2, 1.0.31 and 5.23.0), which mediax itself
does not use, and checkouts of https://github.com/facebookresearch/dinov2 (written with commit b8931f7) and
https://github.com/facebookresearch/detectron2 (written with commit 02b5c4e).
"""

import argparse
import ast
import json
import sys
from pathlib import Path

import backbones
import numpy as np
import seeded
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
)

SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def pooled(tokens: torch.Tensor, skip: int, output: str, grid: tuple[int, int]) -> torch.Tensor:
    """Normalised tokens [B,N,C], the first `skip` of which are no patches -> mediax's map [B,C',h,w] for `output`."""
    patches = tokens[:, skip:].transpose(1, 2).unflatten(2, grid)
    everywhere = tokens[:, 0, :, None, None].expand_as(patches)
    return {"patches": patches, "class": everywhere, "both": torch.cat([everywhere, patches], 1)}[output]


def with_classes(base: type, output: str) -> type:
    """The published network with a linear layer on the pooled map, and with a module that lets a hook see the map."""

    class Network(base):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.level = nn.Identity()
            self.head = nn.Linear(self.embed_dim * (2 if output == "both" else 1), 10)
            if hasattr(self, "mask_token"):
                del self.mask_token  # it takes no part here, so it has no gradient

        def forward(self, image):
            tokens = self.forward_features(image)
            if isinstance(tokens, dict):  # the authors'; timm's are the normalised tokens
                tokens = self.norm(tokens["x_prenorm"])
            side = self.patch_embed.patch_size[0]
            grid = (image.shape[2] // side, image.shape[3] // side)
            features = self.level(pooled(tokens, tokens.shape[1] - grid[0] * grid[1], output, grid))
            return self.head(features.mean((2, 3)))

    return Network


class Transformers(Dinov2WithRegistersForImageClassification):
    """A classifier of transformers, with a module that lets a hook see the map that it pools."""

    def __init__(self, config):
        super().__init__(config)
        self.level = nn.Identity()
        del self.dinov2_with_registers.embeddings.mask_token

    def forward(self, image):
        tokens = self.dinov2_with_registers(image).last_hidden_state
        grid = (image.shape[2] // self.config.patch_size, image.shape[3] // self.config.patch_size)
        self.level(pooled(tokens, 1 + self.config.num_register_tokens, "both", grid))
        return super().forward(pixel_values=image).logits


def simple_feature_pyramid(checkout: str) -> type:
    """ViTDet's class alone: the rest of its file needs compiled operators."""
    source = (Path(checkout) / "detectron2/modeling/backbone/vit.py").read_text()
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "SimpleFeaturePyramid"]

    class ChannelNorm(nn.LayerNorm):
        def __init__(self, channels):
            super().__init__(channels, eps=1e-6)

        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Conv2d(nn.Conv2d):
        def __init__(self, *arguments, norm, **options):
            super().__init__(*arguments, **options)
            self.norm = norm

        def forward(self, x):
            return self.norm(super().forward(x))

    names = {
        "Backbone": nn.Module,
        "nn": nn,
        "math": __import__("math"),
        "Conv2d": Conv2d,
        "get_norm": lambda kind, channels: ChannelNorm(channels),
        "_assert_strides_are_log2_contiguous": lambda strides: None,
    }
    exec(compile(tree, "vit.py", "exec"), names)
    return names["SimpleFeaturePyramid"]


class Tokens(nn.Module):
    """Stands for the transformer below a pyramid: gives what it is given."""

    class Shape:
        def __init__(self, channels, stride):
            self.channels, self.stride = channels, stride

    def __init__(self, channels, stride):
        super().__init__()
        self.channels, self.stride = channels, stride

    def output_shape(self):
        return {"tokens": self.Shape(self.channels, self.stride)}

    def forward(self, x):
        return {"tokens": x}


def pyramid(checkout: str) -> dict:
    model = simple_feature_pyramid(checkout)(
        net=Tokens(16, 16), in_feature="tokens", out_channels=256, scale_factors=(4.0, 2.0, 1.0, 0.5), norm="LN"
    )
    shapes = backbones.shapes_of(model)
    model = backbones.fill(model.double())
    tokens = torch.from_numpy(seeded.normal("tokens", (2, 4, 6, 16))).permute(0, 3, 1, 2).double().requires_grad_()
    golden, total = {"shapes": json.dumps(shapes)}, 0
    for index, level in enumerate(model(tokens).values()):
        array = level.permute(0, 2, 3, 1)
        total = total + (array * torch.from_numpy(seeded.normal(f"probe {index}", tuple(array.shape)))).sum()
        golden[f"level/{index}/every_97th"] = array.detach().numpy().reshape(-1)[::97].astype(np.float32)
    total.backward()
    golden["token_gradient"] = tokens.grad.permute(0, 2, 3, 1).numpy().astype(np.float32)
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return golden | backbones.summary("gradient", gradients, ())


def interpolations() -> dict:
    """Rows of the identity, interpolated by torch: the matrices that mediax builds itself."""
    golden = {}
    for new in (1, 3, 7, 16, 37, 50):
        rows = torch.eye(16, dtype=torch.float64)[None, :, :, None].expand(1, 16, 16, 4)
        for name, options in {
            "offset": {"scale_factor": ((new + 0.1) / 16, 1.0)},
            "antialias": {"size": (new, 4), "antialias": True},
        }.items():
            matrix = nn.functional.interpolate(rows, mode="bicubic", **options)[0, :, :, 0].T
            golden[f"{name}/{new}"] = matrix.numpy()
    return golden


def published_names(dinov2) -> dict[str, dict[str, tuple[int, ...]]]:
    names = {}
    with torch.device("meta"):
        for size, (width, depth, heads) in SIZES.items():
            giant = size == "giant"
            for registers in (0, 4):
                variant = f"{size}_registers" if registers else size
                model = dinov2(
                    img_size=518,
                    patch_size=14,
                    embed_dim=width,
                    depth=depth,
                    num_heads=heads,
                    num_register_tokens=registers,
                    init_values=1.0,
                    block_chunks=0,
                    ffn_layer="swiglufused" if giant else "mlp",
                )
                names[f"vit/{variant}/authors"] = backbones.shapes_of(model)
                name = f"vit_{size}_patch14_reg4_dinov2" if registers else f"vit_{size}_patch14_dinov2"
                names[f"vit/{variant}/timm"] = backbones.shapes_of(timm.create_model(name, num_classes=0))
                settings = {"image_size": 518, "patch_size": 14, "use_swiglu_ffn": giant, "num_labels": 1000}
                settings |= {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
                if registers:
                    config = Dinov2WithRegistersConfig(num_register_tokens=4, **settings)
                    model = Dinov2WithRegistersForImageClassification(config)
                else:
                    model = Dinov2ForImageClassification(Dinov2Config(**settings))
                names[f"vit/{variant}/transformers"] = backbones.shapes_of(model)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dinov2", metavar="CHECKOUT", required=True)
    parser.add_argument("--detectron2", metavar="CHECKOUT", required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.dinov2)
    from dinov2.layers import MemEffAttention
    from dinov2.layers import NestedTensorBlock as Block
    from dinov2.models.vision_transformer import DinoVisionTransformer

    class Authors(DinoVisionTransformer):
        def __init__(self, **settings):
            def block(**options):
                return Block(attn_class=MemEffAttention, **options)

            super().__init__(block_fn=block, **settings)

    backbones.save("vit_names", {"names": json.dumps(published_names(Authors))})
    backbones.save("vit_interpolations", interpolations())
    backbones.save("vit_pyramid", pyramid(arguments.detectron2))

    keep = ("pos_embed", "cls_token", "register_tokens", "blocks.1.ls2.gamma", "patch_embed.proj.bias", "norm.weight")
    common = {"img_size": 70, "patch_size": 14, "init_values": 1.0, "block_chunks": 0, **SMALL}
    model = with_classes(Authors, "both")(**common)
    backbones.save("vit_plain", backbones.run(model, [model.level], (56, 98), keep))
    registers = {"num_register_tokens": 4, "interpolate_antialias": True, "interpolate_offset": 0.0}
    model = with_classes(Authors, "class")(**common, **registers, ffn_layer="swiglufused")
    backbones.save("vit_registers_swiglu", backbones.run(model, [model.level], (42, 98), keep))
    model = with_classes(VisionTransformer, "patches")(img_size=64, patch_size=16, num_classes=10, **SMALL)
    backbones.save("vit_patch16", backbones.run(model, [model.level], (64, 64), keep))
    config = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 70, "patch_size": 14}
    config |= {"use_swiglu_ffn": True, "num_labels": 10, "num_register_tokens": 4}
    model = Transformers(Dinov2WithRegistersConfig(**config))
    backbones.save("vit_transformers", backbones.run(model, [model.level], (70, 70), ()))


if __name__ == "__main__":
    main()
