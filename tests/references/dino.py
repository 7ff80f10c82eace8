"""Runs the authors' DINO in float64 and writes tests/references/goldens/dino.npz.

    python tests/references/dino.py CHECKOUT

CHECKOUT is a checkout of https://github.com/IDEA-Research/DINO (written with commit faa8520). Needs torch, torchvision,
timm and scipy (written with 2.13.0, 0.28.0, 1.0.31 and 1.17.1). The detector gets a pyramid of noise in place of a
backbone, and its attention is the authors' own in plain torch.
"""

import argparse
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import seeded
import torch
from backbones import GOLDENS, save, shapes_of, summary  # it declares operators before it imports torchvision
from detection import BOXES, CHANNELS, CLASSES, LABELS, SIZE, STRIDES, pyramid

SMALL = {  # the width stays the authors' 256: their sines have 128 features, whatever the width
    "num_classes": CLASSES,
    "dn_labelbook_size": CLASSES,
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 24,
    "nheads": 4,
    "enc_n_points": 2,
    "dec_n_points": 2,
    "num_queries": 12,
    "dn_number": 50,
}
DENOISING = 100  # queries


def on_the_cpu(attention) -> None:
    """The authors' code asks for a GPU in some places, and for its compiled attention."""
    move = torch.Tensor.to
    torch.Tensor.cuda = lambda self: self
    torch.Tensor.to = lambda self, *wanted, **named: self if wanted == ("cuda",) else move(self, *wanted, **named)
    attention.MSDeformAttnFunction.apply = lambda value, sizes, _, locations, weights, __: (
        attention.ms_deform_attn_core_pytorch(value, [tuple(size) for size in sizes.tolist()], locations, weights)
    )


def with_given_noise() -> None:
    """The draws of the denoising queries, which tests/test_dino.py gives mediax too."""

    def uniform(like, **_):
        name = "amount" if like.ndim == 2 else "relabelled"
        noise = 0.5 + 0.5 * np.tanh(seeded.normal(name, (DENOISING, *like.shape[1:])))
        return torch.from_numpy(noise[: len(like)]).double()

    def integers(like, low, high, **_):
        if like.ndim == 2:  # the signs
            return torch.from_numpy(seeded.normal("sign", (DENOISING, 4))[: len(like)] > 0).double()
        return torch.from_numpy(np.floor(np.abs(seeded.normal("other", (DENOISING,))) * 10) % high).long()[like]

    torch.rand_like, torch.randint_like = uniform, integers


class Given(torch.nn.Module):
    """In place of a backbone: a pyramid that is set from outside, and the authors' codes of places."""

    def __init__(self, channels, code, nested):
        super().__init__()
        self.num_channels = channels
        self.code, self.nested, self.levels = code, nested, []

    def __getitem__(self, index):
        return self.code

    def forward(self, images):
        nested = [self.nested(x, torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)) for x in self.levels]
        return nested, [self.code(level) for level in nested]


def build(checkout: Path, channels: list[int], **changes):
    """The authors' model with 4 scales, and its criterion with the weights of its losses."""
    sys.path.insert(0, str(checkout))
    for name in ("MultiScaleDeformableAttention", "timm.models.layers"):
        sys.modules[name] = types.ModuleType(name)
    for name in ("trunc_normal_", "DropPath", "to_2tuple"):
        setattr(sys.modules["timm.models.layers"], name, None)
    from models.dino import dino
    from models.dino.ops.functions import ms_deform_attn_func
    from models.dino.position_encoding import build_position_encoding
    from util.misc import NestedTensor

    on_the_cpu(ms_deform_attn_func)
    settings = {}
    exec((checkout / "config/DINO/DINO_4scale.py").read_text(), settings)
    settings = SimpleNamespace(**settings | changes, device="cpu")
    dino.build_backbone = lambda _: Given(channels, build_position_encoding(settings), NestedTensor)
    model, criterion, _ = dino.build_dino(settings)
    return model.train(), criterion


def parameters_of(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, tuple[int, ...]]]:
    """Each parameter by its first name (layers share the predictors), and the shapes of what is compared."""
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not name.startswith(("transformer.decoder.bbox_embed", "transformer.decoder.class_embed"))
        and not name.startswith(("bbox_embed.1", "class_embed.1"))
    }
    shapes = {name: tuple(array.shape) for name, array in separate(parameters).items()}
    return parameters, shapes


def separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Attention's stacked projections one by one, under the names that transformers gives them."""
    parts = {}
    for name, tensor in tensors.items():
        stem, stacked, word = name.rpartition("in_proj_")
        if stacked:
            parts |= {f"{stem}{one}_proj.{word}": part for one, part in zip("qkv", tensor.chunk(3))}
        else:
            parts[name] = tensor
    return parts


def run(checkout: Path) -> dict:
    """Logits, boxes and losses of each image alone; the gradient of the sum of their weighted losses."""
    torch.set_default_dtype(torch.float64)
    model, criterion = build(checkout, [width for stride, width in zip(STRIDES, CHANNELS) if stride > 4], **SMALL)
    model.double()
    parameters, shapes = parameters_of(model)
    with torch.no_grad():
        for name, array in seeded.tensors(shapes).items():
            separate(parameters)[name].copy_(torch.from_numpy(array).double())
    with_given_noise()
    levels = pyramid(STRIDES[1:])
    center = np.stack(
        [BOXES[:, [1, 3]].mean(1), BOXES[:, [0, 2]].mean(1), BOXES[:, 3] - BOXES[:, 1], BOXES[:, 2] - BOXES[:, 0]], 1
    )
    golden, total = {"shapes": json.dumps(shapes)}, 0.0
    for row, count in enumerate((3, 0)):
        model.backbone.levels = [level[row : row + 1] for level in levels.values()]
        target = {
            "labels": torch.from_numpy(LABELS[:count]),
            "boxes": torch.from_numpy(center[:count]).double(),
        }
        outputs = model(torch.zeros(1, 3, *SIZE), [target])
        losses = criterion(outputs, [target])
        # A loss is a mean over the boxes, of which it counts one at least.
        losses = {name: losses[name] * max(count, 1) for name in criterion.weight_dict if name in losses}
        total = total + sum(criterion.weight_dict[name] * loss for name, loss in losses.items())
        golden |= {f"losses/{row}/{name}": loss.item() for name, loss in losses.items()}
        golden |= {f"{name}/{row}": outputs[name][0].detach().numpy() for name in ("pred_logits", "pred_boxes")}
    total.backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    gradients = {name: array.numpy() for name, array in separate(gradients).items()}
    golden |= summary("gradient", gradients, ("transformer.level_embed", "class_embed.0.weight"))
    return golden | {f"gradient/level/{s}": x.grad.permute(0, 2, 3, 1).numpy() for s, x in levels.items()}


def published(checkout: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of the authors' files but for the backbone's."""
    with torch.device("meta"):
        return shapes_of(build(checkout, [512, 1024, 2048])[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    checkout = parser.parse_args().checkout
    GOLDENS.mkdir(exist_ok=True)
    names = published(checkout)
    save("dino", run(checkout) | {"published": json.dumps(names)})


if __name__ == "__main__":
    main()
