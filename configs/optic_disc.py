"""Optic disc and cup on fundus photographs: DRISHTI-GS1 and DRIONS-DB, by a U-Net on ResNet-34.

    python -m mediax.main --config=configs/optic_disc.py:drishti_gs --manual_dir=RAW --workdir=runs/drishti_gs
        --config.backbone.pretrained=resnet34-b627a593.pth
    python -m mediax.main --config=configs/optic_disc.py:drishti_gs,phantom --workdir=runs/phantom --data_dir=data

The variant names a dataset (drishti_gs: disc and cup; drions_db: disc) and, to train on made-up photographs in minutes
on a laptop, `phantom`. DRISHTI-GS1 has an official split, DRIONS-DB a customary one; ten training images of either
choose the step and the thresholds. The cup lies within the disc, so that the masks overlap. DRISHTI-GS1 is also judged
by the vertical cup-to-disc ratio, from which glaucoma is suspected; on DRIONS-DB the second expert's figure stands
beside.
"""

from ml_collections import ConfigDict

VARIANTS = ("drishti_gs", "drions_db")


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    name, *phantom = variant.split(",")
    config = ConfigDict()
    config.seed = 0
    config.steps = 2_000
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 100
    config.backbone = {"name": "resnet", "channels": 3, "options": {"variant": "34", "stem_level": True}}
    config.streams = {
        name: {
            "dataset": name,
            "build": {"size": 512, "aspect": "letterbox"},
            "batch_size": 8,
            "transform": (
                {"name": "random_flip", "horizontal": 0.5, "vertical": 0.5},
                {"name": "random_affine", "rotate": 30, "translate": 0.1, "scale": 0.15, "probability": 0.9},
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
            ),
            "tasks": {"segmentation": {"head": {"name": "unet"}, "threshold": "dice"}},
        }
    }
    config.evaluations = {
        "tuning": {"split": "tuning", "protocol": name, "during_training": True},
        "test": {"split": "test", "protocol": name},
    }
    config.best = {"metric": "tuning/segmentation/dice/macro"}
    config.optimizer = {
        "name": "adamw",
        "peak": 3e-4,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "per_part": {"head/*": {"peak": 1e-3}},
    }
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config, name) if phantom else config


def _phantom(config: ConfigDict, name: str) -> ConfigDict:
    config.phantom = {name: {"images": None, "size": 128}}
    stream = config.streams[name]
    stream.build.size = 128
    stream.transform = stream.transform[:2]
    stream.tasks.segmentation.head = {
        "name": "unet",
        "upsampling": "transposed",
        "widths": (64, 32, 16, 8),
        "output_size": 1,
    }
    config.backbone = {
        "name": "unet_encoder",
        "channels": 3,
        "options": {"variant": "eighth", "normalize": True},
    }
    config.steps = 300
    config.log_every = 10
    config.evaluate_every = config.checkpoint_every = 50
    config.optimizer = {"name": "adamw", "peak": 3e-3, "warmup_steps": 20, "weight_decay": 0.01}
    config.precision = "float32"
    config.workers = 0
    config.cpu_devices = 2
    return config
