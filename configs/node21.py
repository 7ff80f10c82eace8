"""Nodules on chest radiographs, NODE21: Faster R-CNN (Mask R-CNN without masks) or DINO on a ResNet-50 of ImageNet.

    python -m mediax.main --config=configs/node21.py --manual_dir=RAW --workdir=runs/node21
        --config.backbone.pretrained=resnet50-11ad3fa6.safetensors
    python -m mediax.main --config=configs/node21.py:dino,phantom --workdir=runs/phantom --data_dir=data

NODE21's test images were never distributed: the splits are our own (see the dataset), so a figure compares with another
one on these splits only. NODE21 has boxes and no masks; with masks of the boxes' classes set the head's masks to True.
DINO's widths, layers, losses and rates are the authors' for COCO (4 scales); an image has few nodules, so 100 queries
take the place of their 900.
"""

from ml_collections import ConfigDict

MODELS = {
    "mask_rcnn": {
        "head": {"name": "mask_rcnn", "masks": False, "anchor_sizes": (16, 32, 64, 128, 256)},
        "steps": 20_000,
        "evaluate_every": 1_000,
        "optimizer": {"weight_decay": 0.05},
        "clip_norm": 1.0,
    },
    "dino": {
        "head": {"name": "dino", "queries": 100, "detections": 100},
        "steps": 40_000,
        "evaluate_every": 2_000,
        "optimizer": {"weight_decay": 1e-4, "per_part": {"backbone": {"peak": 1e-5}}},
        "clip_norm": 0.1,
    },
}
# The same, small enough to learn from scratch in minutes on a laptop (seed 0: AP50 0.99 in 5 CPU minutes, 0.95 in 9).
# Nodules are 6 to 11 pixels wide: strides 4 and 8 see them, and anchors of 8 pixels overlap them.
SMALL_MODELS = {
    "mask_rcnn": {
        "head": {
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
        },
        "optimizer": {"peak": 2e-3, "weight_decay": 0.05},
    },
    "dino": {
        "head": {
            "name": "dino",
            "strides": (4, 8),
            "levels": 2,
            "width": 64,
            "hidden": 128,
            "heads": 4,
            "points": 4,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "queries": 20,
            "denoising": 20,
            "detections": 10,
        },
        "optimizer": {"peak": 1e-3, "weight_decay": 1e-4},
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The variant is a model (default: mask_rcnn), `phantom` (made-up radiographs), or both with a comma between."""
    words = [word for word in variant.split(",") if word]
    models = [word for word in words if word != "phantom"] or ["mask_rcnn"]
    if len(models) != 1 or models[0] not in MODELS:
        raise ValueError(f"no variant {variant!r}; valid: one of {', '.join(MODELS)}, with `,phantom` or without")
    model = MODELS[models[0]]
    config = ConfigDict()
    config.seed = 0
    config.steps = model["steps"]
    config.log_every = 100
    config.evaluate_every = config.checkpoint_every = model["evaluate_every"]
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
            "tasks": {"detection": {"head": model["head"]}},
        }
    }
    config.evaluations = {
        "validation": {"split": "validation", "during_training": True},
        "test": {"split": "test"},
    }
    config.best = {"metric": "validation/detection/ap50/macro", "patience": 5}
    config.optimizer = {"name": "adamw", "peak": 1e-4, "warmup_steps": 500, **model["optimizer"]}
    config.clip_norm = model["clip_norm"]
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config, SMALL_MODELS[models[0]]) if "phantom" in words else config


def _phantom(config: ConfigDict, model: dict) -> ConfigDict:
    config.phantom = {"node21": {"count": 900, "size": 192}}
    config.backbone.options = {"variant": "18", "depths": (2, 2), "width": 0.5}
    stream = config.streams.node21
    stream.build.size = 192
    stream.max_boxes = 4
    stream.transform = stream.transform[:2]
    stream.tasks.detection.head = model["head"]
    config.steps = 600
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 150
    config.optimizer = {"name": "adamw", "warmup_steps": 50, **model["optimizer"]}
    config.clip_norm = 1.0
    config.precision = "float32"
    config.workers = 0
    config.cpu_devices = 2
    return config
