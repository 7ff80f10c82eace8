"""FIRE: registration of fundus photographs of one eye, learnt without a single registered pair.

    python -m mediax.main --config=configs/fire_registration.py --manual_dir=RAW --workdir=runs/fire
    python -m mediax.main --config=configs/fire_registration.py:phantom --workdir=runs/phantom_fire --data_dir=data

FIRE's 134 pairs are for evaluation, so nothing is learnt from them, nor from their images. The network sees single
photographs of EyePACS, which has many cameras: each becomes two views under a known random motion (the transform
`random_pair`). The step is chosen on views of other patients. For comparison, the area under the success-rate curve of
S / P / A / their mean: 0.950 / 0.554 / 0.783 / 0.762 (SuperRetina, Liu et al., ECCV 2022, by its authors' code).
"""

from ml_collections import ConfigDict

EVEN_LIGHT = {"name": "subtract_local_mean", "sigma": 0.05, "strength": 4.0}


def get_config(variant: str = "") -> ConfigDict:
    """The variant is "phantom" (made-up photographs and pairs, a small network) or nothing."""
    if variant not in ("", "phantom"):
        raise ValueError(f"no variant {variant!r}; valid: phantom")
    phantom = variant == "phantom"
    size = 192 if phantom else 512
    pair = {"name": "random_pair", "size": size}
    config = ConfigDict()
    config.seed = 0
    config.steps = 50_000
    config.log_every = 100
    config.evaluate_every = config.checkpoint_every = 2_500
    config.backbone = {"name": "resnet", "channels": 3, "options": {"variant": "18", "stem_level": True}}
    config.streams = {
        "eyepacs": {
            "dataset": "eyepacs",
            # Round fields of view stay round; held-out patients of its first table validate: no grade is needed.
            "build": {"size": 1024, "aspect": "letterbox", "encoding": "jpeg95", "split": "held_out"},
            "batch_size": 8,
            "transform": (
                {"name": "random_flip", "horizontal": 0.5, "vertical": 0.5},
                pair,
                EVEN_LIGHT,
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.3, "gamma": 0.3},
                {"name": "random_blur", "sigma": 1.5, "probability": 0.5},
                {"name": "random_noise", "std": 0.05, "probability": 0.5},
            ),
            "tasks": {"registration": {"head": {"name": "matcher", "coarse": 16, "fine": 4, "width": 128}}},
        }
    }
    config.evaluations = {
        "validation": {"transform": (pair, EVEN_LIGHT), "during_training": True},
        "test": {
            "dataset": "fire",
            "build": {"size": size},
            "split": "test",
            "transform": (EVEN_LIGHT,),
            "protocol": "fire",
        },
    }
    config.best = {"metric": "validation/registration/auc"}
    config.optimizer = {"name": "adamw", "peak": 5e-4, "warmup_steps": 500, "weight_decay": 1e-2}
    config.clip_norm = 1.0
    config.precision = "float32"
    config.workers = 8
    return _phantom(config) if phantom else config


def _phantom(config: ConfigDict) -> ConfigDict:
    pairs = [
        f"{category}{number:02d}"
        for category, count in (("S", 16), ("P", 12), ("A", 12))
        for number in range(1, count + 1)
    ]
    config.phantom = {
        "eyepacs": {"patients": 150, "test_patients": 40, "size": 256},
        "fire": {"pairs": tuple(pairs), "size": 384},
    }
    config.streams.eyepacs.build.size = 288
    config.streams.eyepacs.tasks.registration.head.update({"coarse": 8, "fine": 4, "width": 32})
    config.backbone.options.update({"depths": (1, 1, 1), "width": 0.25})
    config.steps = 400
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 200
    config.optimizer.peak = 3e-3
    config.optimizer.warmup_steps = 50
    config.workers = 0
    return config
