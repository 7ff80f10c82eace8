"""Times a training step of every segmenter and detector beside its PyTorch reference, as benchmarks/models.py does.

    python benchmarks/networks.py [--batch 2] [--repeats 5] [--threads 2] [--torch-python PATH] [--dino CHECKOUT]
                                  [--network NAME ...]

PATH is an interpreter that has torch, torchvision, segmentation_models_pytorch, transformers and scipy, if this one has
not; CHECKOUT is a checkout of https://github.com/IDEA-Research/DINO. Segmenters and Mask R-CNN run with their backbone,
on an image of 256 pixels; Deformable DETR and DINO on the pyramid that a ResNet-50 gives of it. Losses are the mean of
the squared logits, or the detector's own on two boxes an image. torchvision's RoIAlign and NMS are its compiled ones if
they can be loaded; deformable attention is the references' own in plain PyTorch. Linux only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import models  # of this folder; it finds mediax and the references
from models import Cost, measure

SIZE = 256
CLASSES = 4
PYRAMID = {8: 512, 16: 1024, 32: 2048}
BOXES = ((0.1, 0.2, 0.4, 0.5), (0.5, 0.5, 0.9, 0.8))  # ymin, xmin, ymax, xmax

CONVOLUTION = models.CONVOLUTION
POINTWISE = models.POINTWISE
STATIC = (
    "shapes do not depend on the data: the mask branch sees a quarter of the 512 regions that are sampled, "
    "torchvision's the few of them that lie on a box; "
)


@dataclasses.dataclass(frozen=True)
class Network:
    """A head with its options on a backbone (none: on a pyramid), the reference, and what may make it slower."""

    head: str
    options: dict
    backbone: str
    backbone_options: dict
    reference: str
    reason: str


RESNET_50 = {"variant": "50", "stem_level": True}
NETWORKS = {
    "unet": Network("unet", {}, "resnet", RESNET_50, "segmentation_models_pytorch Unet", CONVOLUTION),
    "unet_plus_plus": Network(
        "unet_plus_plus", {}, "resnet", RESNET_50, "segmentation_models_pytorch UnetPlusPlus", CONVOLUTION
    ),
    "upernet": Network(
        "upernet", {}, "swin", {"variant": "tiny", "level_norms": True}, "transformers UperNet", CONVOLUTION
    ),
    "mask_rcnn": Network(
        "mask_rcnn", {}, "resnet", {"variant": "50"}, "torchvision maskrcnn_resnet50_fpn", STATIC + CONVOLUTION
    ),
    "deformable_detr": Network(
        "deformable_detr",
        {"variant": "plain", "dropout": 0.0},
        "",
        {},
        "transformers DeformableDetr",
        POINTWISE,
    ),
    "dino": Network("dino", {}, "", {}, "authors' 4-scale DINO", POINTWISE),
}


def measure_ours(network: Network, batch: int, repeats: int) -> Cost:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    family = importlib.import_module(f"mediax.heads.{network.head}")
    keys = jax.random.split(jax.random.key(1), len(PYRAMID))
    if network.backbone:
        source = importlib.import_module(f"mediax.backbones.{network.backbone}")
        build = nnx.jit(lambda: source.Backbone(**network.backbone_options, rngs=nnx.Rngs(0)))
        backbone = build()
        channels, inputs = backbone.channels, jax.random.normal(keys[0], (batch, SIZE, SIZE, 3))
    else:
        backbone, channels = None, PYRAMID
        inputs = {s: jax.random.normal(key, (batch, SIZE // s, SIZE // s, PYRAMID[s])) for s, key in zip(PYRAMID, keys)}
    outputs = 2 if not hasattr(family, "NORMALIZED_BY") else CLASSES
    head = nnx.jit(lambda: family.Head(channels, outputs, **network.options, rngs=nnx.Rngs(0)))()
    definition, params, rest = nnx.split((backbone, head), nnx.Param, ...)
    targets = {
        "boxes": jnp.asarray([BOXES] * batch),
        "box_labels": jnp.asarray([[0, 2]] * batch),
        "box_valid": jnp.ones((batch, 2), bool),
        "box_masks": jnp.full((batch, 2, SIZE, SIZE // 8), 255, jnp.uint8),
        "mask_valid": jnp.ones((batch, CLASSES), bool),
    }

    def loss(params, inputs):
        backbone, head = nnx.merge(definition, params, rest, copy=True)
        pyramid = backbone(inputs, train=True, rngs=None) if backbone is not None else inputs
        if not hasattr(family, "NORMALIZED_BY"):
            return jnp.mean(head(pyramid, (SIZE, SIZE), train=True, rngs=nnx.Rngs(0)) ** 2)
        losses = head(pyramid, (SIZE, SIZE), targets, train=True, rngs=nnx.Rngs(0))["losses"]
        return sum(family.LOSS_WEIGHTS[name] * value.mean() for name, value in losses.items())

    step = jax.jit(jax.grad(loss)).lower(params, inputs).compile()
    return measure(lambda: jax.block_until_ready(step(params, inputs)), repeats)


def measure_torch(name: str, batch: int, repeats: int, checkout: str | None) -> Cost:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loss, parameters = REFERENCES[name](batch, checkout)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        loss().backward()

    return measure(step, repeats)


def segmentation_models(kind: str) -> Callable:
    def build(batch: int, checkout: str | None):
        import backbones  # noqa: F401  declares torchvision's operators before torchvision is imported
        import segmentation_models_pytorch
        import torch

        network = getattr(segmentation_models_pytorch, kind)("resnet50", encoder_weights=None, classes=2).train()
        network = network.to(memory_format=torch.channels_last)
        image = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
        return lambda: network(image).square().mean(), list(network.parameters())

    return build


def upernet(batch: int, checkout: str | None):
    import torch
    from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

    swin = SwinConfig(
        depths=[2, 2, 6, 2], window_size=7, out_features=["stage1", "stage2", "stage3", "stage4"], drop_path_rate=0.0
    )
    config = UperNetConfig(backbone_config=swin, num_labels=2, use_auxiliary_head=False)
    network = UperNetForSemanticSegmentation(config).train()
    image = torch.randn(batch, 3, SIZE, SIZE)
    return lambda: network(image).logits.square().mean(), list(network.parameters())


def mask_rcnn(batch: int, checkout: str | None):
    import torch
    from detection import torchvision, without_compiled_operators
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    if not torchvision.extension._has_ops():
        without_compiled_operators()
    options = {"min_size": SIZE, "max_size": SIZE, "num_classes": 1 + CLASSES, "trainable_backbone_layers": 5}
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **options).train()
    corners = torch.tensor(BOXES)[:, [1, 0, 3, 2]] * SIZE
    target = {"boxes": corners, "labels": torch.tensor([1, 3]), "masks": torch.ones(2, SIZE, SIZE, dtype=torch.uint8)}
    images = [torch.randn(3, SIZE, SIZE) for _ in range(batch)]
    parameters = list(network.parameters())
    return lambda: sum(network(images, [target] * batch).values()), parameters


def centres():
    import torch

    ymin, xmin, ymax, xmax = torch.tensor(BOXES).T
    return torch.stack([(xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin], 1)


def given_pyramid(batch: int) -> list:
    import torch

    return [torch.randn(batch, width, SIZE // stride, SIZE // stride) for stride, width in PYRAMID.items()]


def deformable_detr(batch: int, checkout: str | None):
    import detection
    import torch
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr as modeling

    detection.STRIDES, detection.CHANNELS = (4, *PYRAMID), (256, *PYRAMID.values())
    modeling.load_backbone = detection.Levels
    config = DeformableDetrConfig(num_labels=CLASSES, auxiliary_loss=True, dropout=0.0)
    network = modeling.DeformableDetrForObjectDetection(config).train()
    network.model.backbone.model.levels = given_pyramid(batch)
    labels = [{"class_labels": torch.tensor([0, 2]), "boxes": centres()}] * batch
    image = torch.zeros(batch, 3, SIZE, SIZE)
    return lambda: network(image, labels=labels).loss, list(network.parameters())


def dino(batch: int, checkout: str | None):
    import torch
    from dino import build

    if checkout is None:
        raise SystemExit("needs --dino CHECKOUT")
    del sys.modules["models"]  # this folder's: the authors' package has the same name
    network, criterion = build(Path(checkout), list(PYRAMID.values()), num_classes=CLASSES, dn_labelbook_size=CLASSES)
    network.backbone.levels = given_pyramid(batch)
    targets = [{"labels": torch.tensor([0, 2]), "boxes": centres()}] * batch
    image = torch.zeros(batch, 3, SIZE, SIZE)

    def loss():
        losses = criterion(network(image, targets), targets)
        return sum(weight * losses[name] for name, weight in criterion.weight_dict.items() if name in losses)

    return loss, list(network.parameters())


REFERENCES = OrderedDict(
    unet=segmentation_models("Unet"),
    unet_plus_plus=segmentation_models("UnetPlusPlus"),
    upernet=upernet,
    mask_rcnn=mask_rcnn,
    deformable_detr=deformable_detr,
    dino=dino,
)


def in_own_process(framework: str, name: str, arguments: argparse.Namespace) -> Cost | str:
    python = {"ours": sys.executable, "torch": arguments.torch_python}[framework]
    command = [python, __file__, "--only", framework, "--network", name]
    for option in ("batch", "repeats", "threads", "dino"):
        if (value := getattr(arguments, option)) is not None:
            command += [f"--{option}", str(value)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return (result.stderr.strip().splitlines() or ["failed"])[-1]
    return Cost(*json.loads(result.stdout.splitlines()[-1]))


def measure_here(framework: str, name: str, arguments: argparse.Namespace) -> Cost:
    models.use_cpus(arguments.threads)
    if framework == "ours":
        return measure_ours(NETWORKS[name], arguments.batch, arguments.repeats)
    return measure_torch(name, arguments.batch, arguments.repeats, arguments.dino)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--dino", metavar="CHECKOUT")
    parser.add_argument("--network", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--only", choices=("ours", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        [name] = arguments.network
        print(json.dumps(dataclasses.astuple(measure_here(arguments.only, name, arguments))))
        return

    print(f"Batch {arguments.batch}, {SIZE} pixels, {arguments.threads} threads, f32.\n")
    models.print_header("network")
    for name in arguments.network:
        costs = (in_own_process(framework, name, arguments) for framework in ("ours", "torch"))
        network = NETWORKS[name]
        print(models.row(name, SIZE, network.reference, network.reason, *costs), flush=True)


if __name__ == "__main__":
    main()
