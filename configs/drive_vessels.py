"""Vessels of the retina on DRIVE, STARE, HRF and CHASE_DB1, by a U-Net of fewer than 100,000 parameters.

    python -m mediax.main --config=configs/drive_vessels.py --manual_dir=RAW --workdir=runs/vessels
    python -m mediax.main --config=configs/drive_vessels.py:stare --manual_dir=RAW --workdir=runs/stare
    python -m mediax.main --config=configs/drive_vessels.py:phantom --workdir=runs/phantom --data_dir=data

The variant names a dataset (drive, stare, hrf, chase_db1; default drive) and, to train on made-up photographs in
minutes, `phantom`. Small networks on DRIVE: F1 0.82 inside the field of view, the second reader 0.79 (Galdran et al.,
Scientific Reports 12, 6174, 2022).

Nothing is chosen on the way: every training image trains, the last step is the result, and the threshold is the one of
the highest F1 on the training images. DRIVE has its official split; STARE is cut into halves, or leaves one image out
(--config.streams.vessels.build.split=im0077); CHASE_DB1 trains on its first 20 images; HRF, by custom, on the first
five of each group, and at half its size, as is usual: its figures are those of images 1752 pixels across.

The current release of DRIVE has no masks of the test images, so `test` has no figures there. To train on 16 of the
training images and score the last four:

    --config.streams.vessels.split=train --config.evaluations.training.split=train
    --config.evaluations.test.split=tuning

The real size of DRIVE on made-up photographs, half an hour to 45 minutes on one core:

    python -m mediax.main --config=configs/drive_vessels.py:phantom --workdir=runs/phantom --data_dir=data
        --config.phantom.drive.size=584 --config.phantom.drive.images=20 --config.steps=3000
"""

from ml_collections import ConfigDict

DATASETS = {
    "drive": {"build": {}},
    "stare": {"build": {"split": "halves"}},
    "hrf": {"build": {"size": 1752, "aspect": "letterbox"}, "window": (584, 584)},
    "chase_db1": {"build": {"split": "first_20"}},
}
# As hard as DRIVE: tests/test_drive_vessels.py says how that is measured.
HARD = {"difficulty": 0.35, "first_reader_error": 0.25}
PHANTOMS = {
    "drive": {"images": 20, "size": 292},
    "stare": {"images": 20, "size": 302},
    "hrf": {"images": 45, "size": 292},
    "chase_db1": {"children": 14, "size": 288},
}
VARIANTS = tuple(DATASETS)

BACKBONE = {"name": "unet_encoder", "channels": 3, "options": {"variant": "eighth", "levels": 4, "normalize": True}}
HEAD = {"name": "unet", "widths": (16, 16, 8), "output_size": 1}
STANDARDISE = {"name": "clahe", "clip": 2.0, "tiles": 8}
CROP = 256  # pixels


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    name, *phantom = variant.split(",")
    config = ConfigDict()
    config.seed = 0
    config.steps = 3_000
    config.log_every = 25
    config.evaluate_every = 1_000_000  # after the last step alone
    config.checkpoint_every = 250
    config.backbone = BACKBONE
    config.streams = {
        "vessels": {
            "dataset": name,
            "build": DATASETS[name]["build"],
            "split": "train+tuning",
            "batch_size": 4,
            "transform": (
                STANDARDISE,
                {"name": "random_affine", "rotate": 180, "scale": 0.2},
                {"name": "random_flip", "horizontal": 0.5},
                {"name": "random_crop", "size": CROP},
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.25, "gamma": 0.25},
            ),
            "tasks": {"segmentation": {"head": HEAD, "losses": {"cross_entropy": 1.0}, "threshold": "f1"}},
        }
    }
    seen = {
        "transform": (STANDARDISE,),
        "flips": ("horizontal", "vertical", "both"),
        "window": DATASETS[name].get("window", ()),
        "protocol": "vessels",
    }
    config.evaluations = {
        "training": seen | {"split": "train+tuning", "during_training": True},
        "test": seen | {"split": "test", "calibrate_on": "training"},
    }
    config.best = {"metric": "training/loss", "mode": "min"}
    config.optimizer = {"name": "adamw", "peak": 5e-3, "warmup_steps": 100, "weight_decay": 1e-3}
    config.ema_decay = 0.99
    return _phantom(config, name) if phantom else config


def _phantom(config: ConfigDict, name: str) -> ConfigDict:
    config.phantom = {name: PHANTOMS[name] | HARD}
    config.steps = 300
    if name == "hrf":
        config.streams.vessels.build = {}
        for evaluation in config.evaluations.values():
            evaluation.window = (192, 192)
    return config
