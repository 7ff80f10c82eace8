"""Grades of diabetic retinopathy on EyePACS's fundus photographs, by ConvNeXt, Swin or DINOv2.

    python -m mediax.main --config=configs/fundus_grading.py:convnext,pairs --manual_dir=RAW --workdir=runs/eyepacs
        --config.backbone.pretrained=convnext_tiny_22k_1k_224.pth
    python -m mediax.main --config=configs/fundus_grading.py:convnext,mse,phantom --workdir=runs/phantom --data_dir=data

The variant names a model (convnext, swin, dinov2), how the grade is learnt and, to train on made-up photographs in
minutes on a laptop, `phantom`. Learnt are the probabilities of the five grades (cross_entropy), the grade as a number
(mse), or the number with the fellow eye's taken into account (pairs). Each way the thresholds between the grades are
those of the highest kappa on the validation split. Start from published weights with --config.backbone.pretrained:
convnext_tiny_22k_1k_224.pth, swin_tiny_patch4_window7_224_22kto1k_finetune.pth, dinov2_vits14_pretrain.pth.

Splits are the competition's: its public leaderboard's images validate, its private one's test. Without the labels of
both, retinopathy_solution.csv, a tenth of the training patients validates, and nothing is left to test on:
--config.streams.eyepacs.build.split=held_out. Reference figures,
quadratic weighted kappa on the latter, of the team o_O, second of 661 (github.com/sveitser/kaggle_diabetic): 0.845 with
its ensemble and both eyes, 0.839 with one architecture.
"""

from ml_collections import ConfigDict

MODELS = {
    "convnext": ({"name": "convnext", "options": {"variant": "tiny", "drop_path": 0.1}}, True),
    "swin": ({"name": "swin", "options": {"variant": "tiny", "drop_path": 0.1}}, False),
    "dinov2": ({"name": "vit", "options": {"variant": "small", "output": "both", "drop_path": 0.1}}, False),
}
GRADINGS = {
    "cross_entropy": {"criterion": "cross_entropy"},
    "mse": {"criterion": "mse"},
    "pairs": {"criterion": "mse", "pairs": True},
}
# Photographs differ in colour and light by far more than by a small lesion: B. Graham's normalisation, who won the
# competition. Without it the small networks do not find the lesions within minutes.
EVEN_LIGHT = {"name": "subtract_local_mean", "sigma": 1 / 30, "strength": 4.0}
# The same networks, small enough for minutes on a laptop.
SMALL_MODELS = {
    "convnext": {
        "depths": (0, 1, 2, 2, 1),
        "widths": (16, 32, 64, 128, 256),
        "stem_stride": 2,
        "layer_scale": 1.0,
    },
    "swin": {"width": 32, "depths": (2, 2, 2), "heads": (1, 2, 4), "windows": (8, 8, 8)},
    "dinov2": {"patch": 8, "grid": 16, "width": 96, "depth": 6, "heads": 3, "layer_scale": 0.0, "output": "both"},
}
VARIANTS = tuple(f"{model},{grading}" for model in MODELS for grading in GRADINGS)


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    model, grading, *phantom = variant.split(",")
    backbone, normalize = MODELS[model]
    config = ConfigDict()
    config.seed = 0
    config.steps = 20_000
    config.log_every = 100
    config.evaluate_every = config.checkpoint_every = 1_000
    config.backbone = {"channels": 3, **backbone}
    config.streams = {
        "eyepacs": {
            "dataset": "eyepacs",
            "build": {"size": 512, "aspect": "letterbox", "encoding": "jpeg95"},
            "batch_size": 32,
            "transform": (
                {"name": "random_flip", "horizontal": 0.5, "vertical": 0.5},
                {"name": "random_affine", "rotate": 180, "translate": 0.05, "scale": 0.1, "probability": 0.9},
                EVEN_LIGHT,
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
            ),
            "tasks": {
                "grading": {
                    "name": "ordinal",
                    "head": {"name": "pooled", "normalize": normalize},
                    **GRADINGS[grading],
                }
            },
        }
    }
    seen = {"transform": (EVEN_LIGHT,), "protocol": "eyepacs/kappa"}
    config.evaluations = {
        "validation": seen | {"split": "validation", "during_training": True},
        "test": seen | {"split": "test", "optional": True},  # its labels came later
    }
    config.best = {"metric": "validation/grading/quadratic_weighted_kappa", "patience": 5}
    config.optimizer = {
        "name": "adamw",
        "peak": 1e-4,
        "warmup_steps": 500,
        "weight_decay": 0.05,
        "layer_decay": 0.8,
        "per_part": {"head/*": {"peak": 1e-3}},
    }
    config.ema_decay = 0.999
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config, model) if phantom else config


def _phantom(config: ConfigDict, model: str) -> ConfigDict:
    config.phantom = {"eyepacs": {"patients": 500, "test_patients": 240, "size": 128}}
    stream = config.streams.eyepacs
    stream.build.size = 128
    stream.transform = stream.transform[:3]
    stream.tasks.grading.head.pooling = "average_max"
    config.backbone.options = SMALL_MODELS[model]
    config.steps = 300
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 100
    config.best = {"metric": "validation/loss", "mode": "min"}
    config.optimizer = {"name": "adamw", "peak": 1e-3, "warmup_steps": 60, "weight_decay": 0.05}
    config.ema_decay = 0.99
    config.precision = "float32"
    config.workers = 0
    config.cpu_devices = 2
    return config
