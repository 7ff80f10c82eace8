"""CheXpert's 14 observations with ConvNeXt-T at 224 pixels, scored on the five of the competition.

    python -m mediax.main --config=configs/chexpert_convnext.py --manual_dir=RAW --workdir=runs/chexpert
    python -m mediax.main --config=configs/chexpert_convnext.py:phantom --workdir=runs/phantom

Give the published ImageNet weights with --config.backbone.pretrained=convnext_tiny_1k_224_ema.pth. Blank labels count
as absent, uncertain ones as present (U-Ones), frontal views only. The epoch is chosen on `tuning`, 5 % of the training
patients; `valid` (234 images) and `test` (500 studies) are the official sets. Reference figure: Irvin et al. (2019),
table 3, mean AUROC of the five on `valid` with a DenseNet-121 ensemble at 320 pixels and U-Ones: 0.901 to 0.907 by
the policy of each class; a single ConvNeXt-T has no published figure under this protocol.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """`phantom` trains a small network on made-up radiographs in the same layout, in minutes on a laptop."""
    if variant not in ("", "phantom"):
        raise ValueError(f"no variant {variant!r}; valid: phantom")
    config = ConfigDict()
    config.seed = 0
    config.steps = 30_000
    config.log_every = 100
    config.evaluate_every = 2_000
    config.checkpoint_every = 1_000
    config.backbone = {"name": "convnext", "channels": 1, "options": {"variant": "tiny", "drop_path": 0.1}}
    config.streams = {
        "chexpert": {
            "dataset": "chexpert",
            "build": {"size": 224, "views": "frontal"},
            "read": {"uncertainty": "ones"},
            "batch_size": 64,
            "transform": (
                {"name": "random_affine", "rotate": 10, "translate": 0.05, "scale": 0.1, "probability": 0.9},
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
            ),
            "tasks": {
                "classification": {
                    "head": {"name": "pooled", "normalize": True},
                    "threshold": "youden",
                },
            },
        }
    }
    config.evaluations = {
        "validation": {
            "split": "tuning",
            "read": {"uncertainty": "ignore"},
            "protocol": "chexpert/images",
            "during_training": True,
        },
        # The same rows by study, for the thresholds of what is scored by study.
        "validation_studies": {
            "split": "tuning",
            "read": {"uncertainty": "ignore"},
            "protocol": "study",
            "during_training": True,
        },
        "valid": {"split": "valid", "protocol": "chexpert/competition"},
        "valid_images": {"split": "valid", "protocol": "chexpert/images"},
        # The test set comes apart from the others (CheXlocalize): without it these two are left out.
        "test": {"split": "test", "protocol": "chexpert/competition", "optional": True},
        "test_all": {"split": "test", "protocol": "image", "optional": True},
    }
    config.best = {"metric": "validation/classification/auroc/macro", "patience": 5}
    config.optimizer = {
        "name": "adamw",
        "peak": 1e-4,
        "warmup_steps": 1_000,
        "weight_decay": 0.05,
        "layer_decay": 0.8,
        "per_part": {"head/*": {"peak": 1e-3}},
    }
    config.ema_decay = 0.999
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config) if variant == "phantom" else config


def _phantom(config: ConfigDict) -> ConfigDict:
    config.phantom = {"chexpert": {"patients": 640, "valid_patients": 100, "test_patients": 150, "size": 128}}
    config.streams.chexpert.build.size = 128
    config.streams.chexpert.batch_size = 32
    config.streams.chexpert.transform = (
        {"name": "random_affine", "rotate": 4, "translate": 0.04, "scale": 0.05, "probability": 0.9},
    )
    config.streams.chexpert.tasks.classification.head.pooling = "average_max"
    config.backbone.options = {
        "depths": (1, 2, 2, 1),
        "widths": (32, 64, 128, 256),
        "layer_scale": 1.0,
    }
    config.steps = 640
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 160
    config.best.metric = "validation/loss"
    config.best.mode = "min"
    config.optimizer.peak = 3e-3
    config.optimizer.warmup_steps = 60
    config.optimizer.layer_decay = 1.0
    config.optimizer.per_part = {}
    config.ema_decay = 0.99
    config.precision = "float32"
    config.workers = 0
    return config
