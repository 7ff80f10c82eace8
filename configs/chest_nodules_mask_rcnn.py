"""Nodules on chest radiographs: Faster R-CNN (Mask R-CNN without masks) on a ResNet-50 pretrained on ImageNet, NODE21.

python -m mediax.main --config=configs/chest_nodules_mask_rcnn.py --manual_dir=RAW --workdir=runs/chest_nodules
    --config.backbone.pretrained=resnet50-11ad3fa6.pth
python -m mediax.main --config=configs/chest_nodules_mask_rcnn.py:phantom --workdir=runs/phantom --data_dir=data

NODE21's test images were never distributed: the splits are our own (see the dataset), so a figure compares with another
one on these splits only. NODE21 has boxes and no masks; with masks of the boxes' classes set the head's masks to True.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """`phantom` trains a small detector from scratch on made-up radiographs: AP50 0.99 in 5 CPU minutes (seed 0)."""
    if variant not in ("", "phantom"):
        raise ValueError(f"no variant {variant!r}; valid: phantom")
    config = ConfigDict()
    config.seed = 0
    config.steps = 20_000
    config.log_every = 100
    config.evaluate_every = config.checkpoint_every = 1_000
    config.backbone = {"name": "resnet", "channels": 1, "options": {"variant": "50"}}
    config.streams = {
        "node21": {
            "dataset": "node21",
            "build": {"size": 1024},
            "batch_size": 8,
            "transform": (
                {"name": "random_flip", "horizontal": 0.5},
                {"name": "random_affine", "rotate": 5, "translate": 0.05, "scale": 0.1, "probability": 0.9},
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
            ),
            "tasks": {
                "detection": {
                    "head": {"name": "mask_rcnn", "masks": False, "anchor_sizes": (16, 32, 64, 128, 256)},
                },
            },
        }
    }
    config.evaluations = {
        "validation": {"split": "validation", "during_training": True},
        "test": {"split": "test"},
    }
    config.best = {"metric": "validation/detection/ap50/macro", "patience": 5}
    config.optimizer = {
        "name": "adamw",
        "peak": 1e-4,
        "warmup_steps": 500,
        "weight_decay": 0.05,
    }
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config) if variant == "phantom" else config


def _phantom(config: ConfigDict) -> ConfigDict:
    config.phantom = {"node21": {"count": 900, "size": 192}}
    # Nodules are 6 to 11 pixels wide here: strides 4 and 8 see them, and anchors of 8 pixels overlap them.
    config.backbone.options = {"variant": "18", "depths": (2, 2), "width": 0.5}
    stream = config.streams.node21
    stream.build.size = 192
    stream.batch_size = 8
    stream.max_boxes = 4
    stream.transform = (
        {"name": "random_flip", "horizontal": 0.5},
        {"name": "random_affine", "rotate": 5, "translate": 0.05, "scale": 0.1, "probability": 0.9},
    )
    stream.tasks.detection.head = {
        "name": "mask_rcnn",
        "masks": False,
        "width": 32,
        "hidden": 64,
        "anchor_sizes": (8, 16, 32),
        "aspects": (1.0,),
        "candidates": 100,
        "proposals": 50,
        "anchors_sampled": 64,
        "sampled": 32,
        "scored": 50,
        "detections": 10,
    }
    config.steps = 600
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 150
    config.optimizer = {"name": "adamw", "peak": 2e-3, "warmup_steps": 50, "weight_decay": 0.05}
    config.precision = "float32"
    config.workers = 0
    config.cpu_devices = 2
    return config
