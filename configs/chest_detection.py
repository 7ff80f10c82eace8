"""Boxes on chest radiographs: NODE21, TBX11K, VinBigData and ChestX-Det, by Mask R-CNN, Deformable DETR or DINO.

    python -m mediax.main --config=configs/chest_detection.py:node21,mask_rcnn --manual_dir=RAW --workdir=runs/node21
        --config.backbone.pretrained=resnet50-11ad3fa6.safetensors
    python -m mediax.main --config=configs/chest_detection.py:node21,dino,phantom --workdir=runs/phantom --data_dir=data

The variant names a dataset (node21, tbx11k, vinbigdata, chestxdet), a model (mask_rcnn, deformable_detr, dino,
dino_swin) and, to train on made-up radiographs in minutes on a laptop, `phantom`. The backbone is a ResNet-50, of
dino_swin a Swin. Mask R-CNN learns masks where the dataset has them (ChestX-Det); else it is Faster R-CNN. Widths,
layers, losses and rates of Deformable DETR (two-stage) and DINO are their authors' for COCO (4 scales); an image has
few findings, so 100 queries take the place of their 300 and 900.

NODE21's test images were never distributed: the splits are our own. TBX11K's test labels are withheld: the official
`val` is scored, and a tenth of `train` selects the checkpoint. VinBigData's Kaggle test labels are withheld too:
`holdout` is scored, on the boxes of three readers that weighted box fusion makes one.
"""

from ml_collections import ConfigDict

DATASETS = {
    "node21": {
        "build": {"size": 1024},
        "test": {
            "test": {"split": "test", "protocol": "node21/detection"},
            "test_coco": {"split": "test", "protocol": "coco"},
        },
    },
    "tbx11k": {
        "splits": ("train[:90%]", "train[90%:]"),
        "test": {
            "all": {"split": "val", "protocol": "tbx11k/all"},
            "all_agnostic": {"split": "val", "protocol": "tbx11k/all_agnostic"},
            "tuberculosis": {"split": "val", "protocol": "tbx11k/tuberculosis"},
            "tuberculosis_agnostic": {"split": "val", "protocol": "tbx11k/tuberculosis_agnostic"},
        },
    },
    "vinbigdata": {
        "build": {"size": 1024},
        "read": {"readers": "fused"},
        "test": {"holdout": {"split": "holdout", "protocol": "vinbigdata/kaggle"}},
    },
    "chestxdet": {
        "build": {"size": 512},
        "read": {"instances": False},
        "test": {
            "test": {"split": "test", "protocol": "coco"},
            "test_froc": {"split": "test", "protocol": "chestxdet/froc"},
        },
    },
}
RESNET_50 = {"name": "resnet", "channels": 1, "options": {"variant": "50"}}
MASK_RCNN = {
    "head": {"name": "mask_rcnn", "masks": False, "anchor_sizes": (16, 32, 64, 128, 256)},
    "steps": 20_000,
    "optimizer": {"weight_decay": 0.05},
    "clip_norm": 1.0,
}
DINO = {
    "head": {"name": "dino", "queries": 100, "detections": 100},
    "steps": 40_000,
    "optimizer": {"weight_decay": 1e-4, "per_part": {"backbone": {"peak": 1e-5}}},
    "clip_norm": 0.1,
}
DEFORMABLE_DETR = {
    "head": {"name": "deformable_detr", "variant": "two_stage", "queries": 100},
    "steps": 40_000,
    "optimizer": {"peak": 2e-4, "weight_decay": 1e-4, "per_part": {"backbone": {"peak": 2e-5}}},
    "clip_norm": 0.1,
}
MODELS = {
    "mask_rcnn": {"backbone": RESNET_50, **MASK_RCNN},
    "deformable_detr": {"backbone": RESNET_50, **DEFORMABLE_DETR},
    "dino": {"backbone": RESNET_50, **DINO},
    "dino_swin": {
        "backbone": {
            "name": "swin",
            "channels": 1,
            "options": {"variant": "large_window12", "drop_path": 0.2, "level_norms": True},
        },
        **DINO,
    },
}

# The same, small enough to learn from scratch in minutes on a laptop. Nodules are 6 to 11 pixels wide: strides 4 and 8
# see them, and anchors of 8 pixels overlap them.
PHANTOMS = {
    "node21": {"phantom": {"count": 900, "size": 192}, "max_boxes": 4},
    "tbx11k": {"phantom": {"train": 900, "val": 160, "size": 192}, "max_boxes": 8},
    "vinbigdata": {"phantom": {"count": 900, "size": 192}, "max_boxes": 48},
    "chestxdet": {
        "phantom": {
            "train": 900,
            "test": 160,
            "size": 192,
            "prevalence": {
                "Nodule": 0.5,
                "Mass": 0.5,
                "Cardiomegaly": 0.0,
                "Pleural Effusion": 0.0,
                "Consolidation": 0.0,
                "Atelectasis": 0.0,
                "Pneumothorax": 0.0,
            },
        },
        "max_boxes": 8,
    },
}
SMALL_RESNET = {"name": "resnet", "channels": 1, "options": {"variant": "18", "depths": (2, 2), "width": 0.5}}
SMALL_TRANSFORMER = {
    "strides": (4, 8),
    "levels": 2,
    "width": 64,
    "hidden": 128,
    "heads": 4,
    "points": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 20,
    "detections": 10,
}
SMALL_DINO = {
    "head": {"name": "dino", "denoising": 20, **SMALL_TRANSFORMER},
    "optimizer": {"peak": 1e-3, "weight_decay": 1e-4},
}
SMALL_MODELS = {
    "mask_rcnn": {
        "backbone": SMALL_RESNET,
        "head": {
            "name": "mask_rcnn",
            "masks": False,
            "width": 32,
            "hidden": 64,
            "anchor_sizes": (8, 16, 32),
            "aspects": (1.0,),
            "candidates": 100,
            "proposals": 50,
            "training_candidates": 100,
            "training_proposals": 50,
            "anchors_sampled": 64,
            "sampled": 32,
            "scored": 50,
            "detections": 10,
        },
        "optimizer": {"peak": 2e-3, "weight_decay": 0.05},
    },
    "deformable_detr": {
        "backbone": SMALL_RESNET,
        "head": {"name": "deformable_detr", "variant": "two_stage", "dropout": 0.0, **SMALL_TRANSFORMER},
        "optimizer": {"peak": 1e-3, "weight_decay": 1e-4},
    },
    "dino": {"backbone": SMALL_RESNET, **SMALL_DINO},
    "dino_swin": {
        "backbone": {
            "name": "swin",
            "channels": 1,
            "options": {"width": 24, "depths": (2, 2), "heads": (1, 2), "windows": (8, 8), "level_norms": True},
        },
        **SMALL_DINO,
    },
}

VARIANTS = tuple(f"{dataset},{model}" for dataset in DATASETS for model in MODELS)


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    name, kind, *phantom = variant.split(",")
    data, full = DATASETS[name], MODELS[kind]
    model = SMALL_MODELS[kind] if phantom else full
    train, validation = data.get("splits", ("train", "validation"))
    config = ConfigDict()
    config.seed = 0
    config.steps = full["steps"]
    config.log_every = 100
    config.evaluate_every = config.checkpoint_every = config.steps // 20
    config.backbone = model["backbone"]
    config.streams = {
        name: {
            "dataset": name,
            "build": data.get("build", {}),
            "read": data.get("read", {}),
            "split": train,
            "batch_size": 8,
            "transform": (
                {"name": "random_flip", "horizontal": 0.5},
                {"name": "random_affine", "rotate": 5, "translate": 0.05, "scale": 0.1, "probability": 0.9},
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
            ),
            "max_boxes": 64,
            "tasks": {"detection": {"head": dict(model["head"])}},
        }
    }
    if name == "chestxdet" and kind == "mask_rcnn":
        config.streams[name].tasks.detection.head.masks = True
        config.streams[name].read = {"instances": True}
    config.evaluations = {"validation": {"split": validation, "during_training": True}, **data["test"]}
    config.best = {"metric": "validation/detection/ap50/macro", "patience": 5}
    config.optimizer = {"name": "adamw", "peak": 1e-4, "warmup_steps": 500, **model["optimizer"]}
    config.clip_norm = full["clip_norm"]
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config, name) if phantom else config


def _phantom(config: ConfigDict, name: str) -> ConfigDict:
    config.phantom = {name: PHANTOMS[name]["phantom"]}
    stream = config.streams[name]
    stream.build = {"size": PHANTOMS[name]["phantom"]["size"]} if "size" in stream.build else {}
    stream.max_boxes = PHANTOMS[name]["max_boxes"]
    stream.transform = stream.transform[:2]
    config.steps = 600
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 150
    config.optimizer.warmup_steps = 50
    config.clip_norm = 1.0
    config.precision = "float32"
    config.workers = 0
    config.cpu_devices = 2
    return config
