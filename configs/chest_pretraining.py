"""Contrastive pretraining on chest radiographs, without labels: SimCLR on CheXpert, for fine-tuning afterwards.

    python -m mediax.main --config=configs/chest_pretraining.py --manual_dir=RAW --workdir=runs/pretraining
    python -m mediax.main --config=configs/chexpert_convnext.py --manual_dir=RAW --workdir=runs/fine_tuned
        --config.backbone.pretrained=runs/pretraining

The second command starts from the backbone that the first one left, which is why both have the same. With
`--config.schedule.frozen="('backbone',)"` it trains the head alone (linear evaluation). The variant `shared` pretrains
one backbone and one embedding on two modalities in turn: chest radiographs, and EyePACS's fundus photographs. With
`phantom` (`:phantom`, `:shared,phantom`) images are made up, and it takes minutes on a laptop.

Labels take no part in training. They judge: `knn_auroc` is the AUROC of a vote of the nearest images of other patients.
SimCLR's own recipe (arXiv:2002.05709) asks for thousands of images a batch and hundreds of epochs; 256 images, split
over devices, and a low temperature are what is common on radiographs. Mirrored views are left out: a heart on the right
is a finding.
"""

from ml_collections import ConfigDict

CONVNEXT = {"name": "convnext", "options": {"variant": "tiny", "drop_path": 0.1}}
DATASETS = {
    "chexpert": {"dataset": "chexpert", "build": {"size": 224, "views": "frontal"}},
    "eyepacs": {
        "dataset": "eyepacs",
        "build": {"size": 224, "aspect": "letterbox", "encoding": "jpeg95", "split": "held_out"},
    },
}
SPLITS = {
    "chexpert": {"validation": "tuning", "test": "valid"},
    "eyepacs": {"validation": "validation", "test": "test"},
}
STREAMS = {"chest": (("chexpert",), 1), "shared": (("chexpert", "eyepacs"), 3)}  # their datasets, and channels
VARIANTS = tuple(STREAMS)


def views(size: int, channels: int, least: float) -> tuple:
    """The transforms of a random view: a crop of at least the share `least` of the area, a turn, and its exposure."""
    return (
        {"name": "random_resized_crop", "size": size, "scale": (least, 1.0)},
        {"name": "random_affine", "rotate": 10, "probability": 0.8},
        {"name": "random_intensity", "brightness": 0.2, "contrast": 0.4, "gamma": 0.4, "probability": 0.8},
        {"name": "random_blur", "sigma": 1.5, "probability": 0.5},
        {"name": "to_channels", "channels": channels},
    )


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    name, *phantom = variant.split(",")
    names, channels = STREAMS[name]
    config = ConfigDict()
    config.seed = 0
    config.steps = 60_000
    config.log_every = 100
    config.evaluate_every = config.checkpoint_every = 5_000
    config.backbone = CONVNEXT | {"channels": channels}
    config.streams = {
        name: DATASETS[name]
        | {
            "batch_size": 256,
            "transform": views(224, channels, 0.3),
            "second_view": views(224, channels, 0.3),
            "tasks": {"embedding": {"head": {"name": "projection"}, "shared": "embedding"}},
        }
        for name in names
    }
    config.evaluations = {}
    for name in names:
        prefix = f"{name}_" if len(names) > 1 else ""
        for purpose, split in SPLITS[name].items():
            config.evaluations[f"{prefix}{purpose}"] = {
                "stream": name,
                "split": split,
                "transform": ({"name": "to_channels", "channels": channels},),
                "during_training": purpose == "validation",
                "optional": purpose == "test" and name == "eyepacs",  # its labels came later
            }
    config.best = {"metric": f"{'chexpert_' if len(names) > 1 else ''}validation/loss", "mode": "min"}
    config.optimizer = {"name": "adamw", "peak": 1e-3, "warmup_steps": 2_000, "weight_decay": 0.05}
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config, channels) if phantom else config


def _phantom(config: ConfigDict, channels: int) -> ConfigDict:
    config.phantom = {
        "chexpert": {"patients": 640, "valid_patients": 100, "test_patients": 150, "size": 128},
        "eyepacs": {"patients": 300, "test_patients": 60, "size": 128},
    }
    config.phantom = {name: config.phantom[name] for name in config.streams}
    for stream in config.streams.values():
        stream.build.size = 128
        stream.batch_size = 64
        stream.transform = stream.second_view = views(64, channels, 0.5)
        stream.tasks.embedding.head.hidden = (256,)
    for evaluation in config.evaluations.values():
        evaluation.transform = ({"name": "resize", "size": 64}, *evaluation.transform)
    # The network of chexpert_convnext.py:phantom.
    config.backbone.options = {
        "depths": (1, 2, 2, 1),
        "widths": (32, 64, 128, 256),
        "layer_scale": 1.0,
    }
    config.steps = 400
    config.log_every = 20
    config.evaluate_every = config.checkpoint_every = 100
    config.optimizer.peak = 2e-3
    config.optimizer.warmup_steps = 40
    config.precision = "float32"
    config.workers = 0
    config.cpu_devices = 2
    return config
