"""Runs published segmentation networks in float64 and writes tests/references/goldens/{unet,upernet}*.npz.

    python tests/references/segmentation.py --unet CHECKOUT

Needs torch, torchvision, segmentation-models-pytorch and transformers (written with 2.13.0, 0.29.2, 0.6.0 and 5.23.0;
upernet_swin with torch 2.14.1 and transformers 5.24.0), which mediax itself does not use. CHECKOUT is a checkout of
https://github.com/jvanvugt/pytorch-unet (written with commit 7e57722).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import seeded
import torch
from backbones import fill, save, shapes_of, summary  # declares torchvision's operators before torchvision is imported
from segmentation_models_pytorch import Unet, UnetPlusPlus
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation
from transformers.models.upernet.modeling_upernet import UperNetHead

PYRAMID = {4: 6, 8: 10, 16: 12, 32: 20}  # stride -> channels of what the head alone is given


def run(
    model: torch.nn.Module, forward, inputs: list[torch.Tensor], keep: tuple[str, ...], modes=("inference",)
) -> dict:
    """Logits, and the gradients of sum(logits * probe) by every parameter."""
    model = model.double()
    golden = {"shapes": json.dumps(shapes_of(model))}
    for mode in modes:
        fill(model).train(mode == "training")
        model.zero_grad()
        logits = forward(*inputs)
        probe = torch.from_numpy(seeded.normal("probe", tuple(logits.permute(0, 2, 3, 1).shape))).permute(0, 3, 1, 2)
        (logits * probe).sum().backward()
        array = logits.detach().permute(0, 2, 3, 1).numpy()
        golden[f"{mode}/shape"] = array.shape
        golden[f"{mode}/every_7th"] = array.reshape(-1)[::7].astype(np.float32)
        gradients = joined({name: parameter.grad.numpy() for name, parameter in model.named_parameters()})
        golden["joined"] = json.dumps({name: array.shape for name, array in gradients.items() if "qkv" in name})
        golden |= summary(f"{mode}/gradient", gradients, keep)
    return golden


def joined(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What transformers keeps apart and mediax joins, under the name that its name map joins it to."""
    result = {}
    for name, array in tensors.items():
        stem, query, word = name.rpartition("q_proj")
        if query:
            result[f"{stem}qkv{word}"] = np.concatenate([tensors[f"{stem}{one}_proj{word}"] for one in "qkv"])
        elif "k_proj" not in name and "v_proj" not in name:
            result[name] = array
    return result


def image(size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(seeded.normal("image", (2, *size, channels))).permute(0, 3, 1, 2).double()


def segmentation_models() -> None:
    keep = ("segmentation_head.0.weight", "segmentation_head.0.bias", "encoder.bn1.weight")
    blocks = ("decoder.blocks.4.conv1.0.weight", "decoder.blocks.3.conv2.1.weight")
    nested = ("decoder.blocks.x_0_4.conv1.0.weight", "decoder.blocks.x_1_2.conv2.1.weight")
    for name, kind, encoder, size, modes, extra in (
        ("unet_resnet_18", Unet, "resnet18", (64, 96), ("inference", "training"), blocks),
        ("unet_resnet_18_odd", Unet, "resnet18", (71, 101), ("inference",), blocks),
        ("unet_resnet_50", Unet, "resnet50", (64, 96), ("inference",), blocks),
        ("unet_plus_plus_resnet_18", UnetPlusPlus, "resnet18", (64, 96), ("inference", "training"), nested),
    ):
        model = kind(encoder, encoder_weights=None, classes=2)

        def forward(x, model=model):  # the model's own forward refuses sizes that 32 does not divide
            return model.segmentation_head(model.decoder(model.encoder(x)))

        save(name, run(model, forward, [image(size)], (*keep, *extra), modes))


def paper(checkout: str) -> None:
    sys.path.insert(0, checkout)
    import unet

    model = unet.UNet(in_channels=1, n_classes=2, wf=2)
    height, width = 61, 90
    # 5 levels: an input of 16 n + 124 gives an output of 16 n - 60.
    pads, crops = [(0, 0)], [slice(None), slice(None)]
    for side in (height, width):
        n = -(-(side + 60) // 16)
        spare = 16 * n + 124 - side
        pads.append((spare // 2, spare - spare // 2))
        crops.append(slice((16 * n - 60 - side) // 2, (16 * n - 60 - side) // 2 + side))
    mirrored = np.pad(seeded.normal("image", (2, height, width, 1)), [*pads, (0, 0)], mode="reflect")
    tensor = torch.from_numpy(mirrored).permute(0, 3, 1, 2).double()
    keep = ("down_path.0.block.0.weight", "up_path.3.up.weight", "up_path.3.up.bias", "last.weight")
    save("unet_2015", run(model, lambda x: model(x)[tuple(crops)], [tensor], keep))


def upernet() -> None:
    head = UperNetHead(UperNetConfig(hidden_size=16, num_labels=3), in_channels=list(PYRAMID.values()))
    model = torch.nn.ModuleDict({"decode_head": head})
    for name, size, modes in (
        ("upernet", (64, 96), ("inference", "training")),
        ("upernet_odd", (71, 101), ("inference",)),
    ):
        levels = [
            torch.from_numpy(seeded.normal(f"level {s}", (2, -(-size[0] // s), -(-size[1] // s), channels)))
            for s, channels in PYRAMID.items()
        ]

        def forward(*levels, size=size):
            return torch.nn.functional.interpolate(head(levels), size=size, mode="bilinear", align_corners=False)

        keep = ("decode_head.psp_modules.2.1.conv.weight", "decode_head.classifier.weight")
        save(name, run(model, forward, [level.permute(0, 3, 1, 2).double() for level in levels], keep, modes))


def upernet_swin() -> None:
    """A whole network, at a size at which no window covers a level or divides it."""
    stages = [f"stage{index}" for index in range(1, 5)]
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 8], window_size=3, drop_path_rate=0.0, out_features=stages
    )
    settings = {"backbone_config": backbone, "hidden_size": 16, "num_labels": 3, "use_auxiliary_head": False}
    model = UperNetForSemanticSegmentation(UperNetConfig(**settings))
    model.backbone.swin.layernorm = torch.nn.Identity()  # its result is not used, so that it has no gradient
    keep = ("backbone.hidden_states_norms.stage1.weight", "backbone.hidden_states_norms.stage4.bias")
    save("upernet_swin", run(model, lambda x: model(x).logits, [image((128, 160))], keep))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", metavar="CHECKOUT", required=True)
    arguments = parser.parse_args()
    Path(__file__).parent.joinpath("goldens").mkdir(exist_ok=True)
    upernet()
    upernet_swin()
    paper(arguments.unet)
    segmentation_models()


if __name__ == "__main__":
    main()
