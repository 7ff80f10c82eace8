"""Pneumonia on PneumoniaMNIST's 28x28 radiographs with a half-width ResNet-18.

    python -m mediax.main --config=configs/pneumoniamnist_resnet.py --manual_dir=DIR --workdir=runs/pneumonia

Published at 28x28 (MedMNIST v2, table 3), test AUROC / accuracy: ResNet-18 0.944 / 0.854, Google AutoML 0.991 / 0.946.
"""

from ml_collections import ConfigDict

STEPS_PER_EPOCH = 4708 // 64
# The percentiles 1 and 99 of each image become black and white: exposure differs between images and says nothing.
EXPOSURE = {"name": "window", "low": 1.0, "high": 99.0}
# Nor is sharpness to be learnt from, which depends on the size that a radiograph had: alone (the mean Laplacian over
# the standard deviation) it tells the classes of the training images apart with an AUROC of 0.87.
UNSHARP = (
    {"name": "random_blur", "sigma": 1.0, "probability": 0.7},
    {"name": "random_noise", "std": 0.06, "probability": 0.5},
)


def get_config(variant: str = "") -> ConfigDict:
    """`phantom` trains for a moment on made-up radiographs."""
    if variant not in ("", "phantom"):
        raise ValueError(f"no variant {variant!r}; valid: phantom")
    config = ConfigDict()
    config.seed = 0
    config.steps = 25 * STEPS_PER_EPOCH
    config.evaluate_every = config.checkpoint_every = 5 * STEPS_PER_EPOCH
    config.backbone = {
        "name": "resnet",
        "channels": 1,
        "options": {"variant": "18", "depths": (2, 2, 2), "width": 0.5, "stem_stride": 2},
    }
    config.streams = {
        "pneumonia": {
            "dataset": "medmnist",
            "build": {"flag": "pneumoniamnist"},
            "batch_size": 64,
            "transform": (
                EXPOSURE,
                *UNSHARP,
                {"name": "random_affine", "rotate": 12, "translate": 0.1, "scale": 0.12, "probability": 0.9},
                {"name": "random_intensity", "brightness": 0.02, "contrast": 0.05, "gamma": 0.05},
            ),
            "tasks": {
                "classification": {
                    "class_weights": "balanced",
                    "label_smoothing": 0.1,
                    "threshold": 0.5,
                    "head": {"name": "pooled", "dropout": 0.2},
                }
            },
        }
    }
    scored = {"batch_size": 512, "protocol": "medmnist", "transform": (EXPOSURE,)}
    config.evaluations = {
        "validation": scored | {"split": "validation", "during_training": True},
        "test": scored | {"split": "test"},
    }
    config.best = {"metric": "validation/loss", "mode": "min"}
    config.optimizer = {
        "name": "adamw",
        "peak": 2e-3,
        "schedule": "one_cycle",
        "warmup_steps": 5 * STEPS_PER_EPOCH,
        "start_fraction": 0.04,
        "final_fraction": 0.3,
        "weight_decay": 0.05,
    }
    config.ema_decay = 0.994
    if variant == "phantom":
        config.phantom = {"medmnist": {}}
        config.steps = 20
        config.evaluate_every = config.checkpoint_every = 10
        config.optimizer.warmup_steps = 5
    return config
