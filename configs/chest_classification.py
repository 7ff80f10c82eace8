"""Findings on chest radiographs: ChestX-ray14, CheXpert, MIMIC-CXR, VinDr-CXR and TBX11K, by four networks of one size.

    python -m mediax.main --config=configs/chest_classification.py:chestxray14,swin --manual_dir=RAW --workdir=runs/swin
        --config.backbone.pretrained=swin_base_patch4_window7_224_22k.pth
    python -m mediax.main --config=configs/chest_classification.py:mimic_cxr,dinov2,phantom --workdir=runs/phantom

The variant names a dataset (chestxray14, chexpert, mimic_cxr, vinbigdata, tbx11k), a model (swin, internimage,
convnext, dinov2: 86 to 97 million parameters each, so that the architecture is what differs) and, to train on made-up
radiographs in minutes on a laptop, `phantom`. Start from published weights with --config.backbone.pretrained:
swin_base_patch4_window7_224_22k.pth, internimage_b_1k_224.pth, convnext_base_22k_224.pth, dinov2_vitb14_pretrain.pth.

Splits and classes are the official ones. Where no validation split is official, held-out training images (by patient,
where patients are known) choose the epoch; TBX11K's test labels are withheld, so its `val` is scored. Uncertain labels
train as present (U-Ones) and are left out of the score; blank ones are absent. CheXpert is read in frontal views, as
in chexpert_convnext.py, which has a smaller network; MIMIC-CXR in all views. vinbigdata is VinDr-CXR's PhysioNet
release, with its six diagnoses of whole images.

Reference figures, mean AUROC of CheXpert's five findings: Irvin et al. (2019), table 3, 0.901 to 0.907 on `valid` with
an ensemble of DenseNet-121; Pham et al. (Neurocomputing, 2021; arXiv:1911.06475) 0.940 on `valid` and 0.930 on `test`
with an ensemble of six networks. What is published on the other sets differs in views, label policy or split.
"""

from ml_collections import ConfigDict

CHESTXRAY14 = {"protocol": "chestxray14/official"}
MIMIC_CXR = {"protocol": "mimic_cxr/official", "read": {"uncertainty": "ignore"}}
CHEXPERT_TUNING = {"split": "tuning", "read": {"uncertainty": "ignore"}, "during_training": True}
DATASETS = {
    "chestxray14": {
        "steps": 25_000,
        "evaluations": {
            "validation": CHESTXRAY14 | {"split": "validation", "during_training": True},
            "test": CHESTXRAY14 | {"split": "test"},
        },
    },
    "chexpert": {
        "steps": 30_000,
        "build": {"views": "frontal"},
        "evaluations": {
            "validation": CHEXPERT_TUNING | {"protocol": "chexpert/images"},
            # The same rows by study, for the thresholds of what is scored by study.
            "validation_studies": CHEXPERT_TUNING | {"protocol": "study"},
            "valid": {"split": "valid", "protocol": "chexpert/competition"},
            # The test set comes apart from the others.
            "test": {"split": "test", "protocol": "chexpert/competition", "optional": True},
        },
    },
    "mimic_cxr": {
        "steps": 40_000,
        "evaluations": {
            "validation": MIMIC_CXR | {"split": "validate", "during_training": True},
            "test": MIMIC_CXR | {"split": "test"},
        },
    },
    "vinbigdata": {
        "steps": 10_000,
        "build": {"release": "physionet"},
        "read": {"classes": "global"},
        "evaluations": {
            "validation": {"split": "validation", "protocol": "vindr/global", "during_training": True},
            "test": {"split": "test", "protocol": "vindr/global"},
        },
    },
    "tbx11k": {
        "steps": 5_000,
        "read": {"classes": "image"},
        "split": "train[:90%]",
        "task": {"exclusive": True},
        "evaluations": {
            "validation": {"split": "train[90%:]", "protocol": "tbx11k/classification", "during_training": True},
            "val": {"split": "val", "protocol": "tbx11k/classification"},
        },
    },
}
POOLED, NORMALIZED = {"name": "pooled"}, {"name": "pooled", "normalize": True}
MODELS = {
    "swin": ({"name": "swin", "options": {"variant": "base", "drop_path": 0.2}}, POOLED),
    "internimage": ({"name": "internimage", "options": {"variant": "base", "drop_path": 0.2}}, POOLED),
    "convnext": ({"name": "convnext", "options": {"variant": "base", "drop_path": 0.2}}, NORMALIZED),
    "dinov2": ({"name": "vit", "options": {"variant": "base", "output": "both", "drop_path": 0.2}}, POOLED),
}
# The same, small enough to learn from scratch in minutes on a laptop.
PHANTOMS = {
    "chestxray14": {"patients": 440, "test_patients": 160, "size": 128},
    "chexpert": {"patients": 640, "valid_patients": 100, "test_patients": 150, "size": 128},
    "mimic_cxr": {"patients": 440, "validate_patients": 60, "test_patients": 160, "size": 128},
    "vinbigdata": {"count": 700, "test_count": 200, "release": "physionet", "size": 128},
    "tbx11k": {"train": 700, "val": 200, "size": 128},
}
SMALL_MODELS = {
    "swin": {"width": 32, "depths": (2, 2, 2), "heads": (1, 2, 4), "windows": (8, 8, 8)},
    "internimage": {"width": 16, "depths": (1, 1, 2, 1), "groups": 1},
    "convnext": {
        "depths": (0, 1, 2, 2, 1),
        "widths": (16, 32, 64, 128, 256),
        "stem_stride": 2,
        "layer_scale": 1.0,
    },
    "dinov2": {"patch": 8, "grid": 16, "width": 96, "depth": 6, "heads": 3, "layer_scale": 0.0, "output": "both"},
}
VARIANTS = tuple(f"{dataset},{model}" for dataset in DATASETS for model in MODELS)


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    name, model, *phantom = variant.split(",")
    data, (backbone, head) = DATASETS[name], MODELS[model]
    config = ConfigDict()
    config.seed = 0
    config.steps = data["steps"]
    config.log_every = 100
    config.evaluate_every = config.checkpoint_every = config.steps // 20
    config.backbone = {"channels": 1, **backbone}
    config.streams = {
        name: {
            "dataset": name,
            "build": {"size": 224, **data.get("build", {})},
            "read": data.get("read", {}),
            "split": data.get("split", "train"),
            "batch_size": 64,
            "transform": (
                {"name": "random_affine", "rotate": 10, "translate": 0.05, "scale": 0.1, "probability": 0.9},
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
            ),
            "tasks": {"classification": {"head": head, **data.get("task", {"threshold": "youden"})}},
        }
    }
    config.evaluations = data["evaluations"]
    config.best = {"metric": "validation/classification/auroc/macro", "patience": 5}
    config.optimizer = {
        "name": "adamw",
        "peak": 1e-4,
        "warmup_steps": config.steps // 30,
        "weight_decay": 0.05,
        "layer_decay": 0.8,
        "per_part": {"head/*": {"peak": 1e-3}},
    }
    config.ema_decay = 0.999
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config, name, model) if phantom else config


def _phantom(config: ConfigDict, name: str, model: str) -> ConfigDict:
    config.phantom = {name: PHANTOMS[name]}
    stream = config.streams[name]
    stream.build.size = PHANTOMS[name]["size"]
    stream.batch_size = 32
    stream.transform = ({"name": "random_affine", "rotate": 4, "translate": 0.04, "scale": 0.05, "probability": 0.9},)
    stream.tasks.classification.head.pooling = "average_max"
    config.backbone.options = SMALL_MODELS[model]
    config.steps = 700
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 175
    config.best = {"metric": "validation/loss", "mode": "min"}
    config.optimizer = {"name": "adamw", "peak": 3e-3, "warmup_steps": 60, "weight_decay": 0.05}
    config.ema_decay = 0.99
    config.precision = "float32"
    config.workers = 0
    config.cpu_devices = 2
    return config
