"""Structures on chest radiographs: CheXmask, SIIM-ACR and ChestX-Det, by U-Net, U-Net++, UPerNet or a Swin U-Net.

    python -m mediax.main --config=configs/chest_segmentation.py:chexmask,unet --manual_dir=RAW --workdir=runs/chexmask
        --config.backbone.pretrained=resnet50-11ad3fa6.safetensors
    python -m mediax.main --config=configs/chest_segmentation.py:siim_acr,upernet,phantom --workdir=runs/phantom

The variant names a dataset (chexmask: lungs and heart; siim_acr: pneumothorax; chestxdet: 13 findings), a model (unet,
unet_plus_plus, upernet, swin_unet) and, to train on made-up radiographs in minutes on a laptop, `phantom`.

CheXmask's masks are a network's (Gaggion et al., Scientific Data 11, 2024): a figure on them says how well that network
is imitated, not how well a radiologist is. They are joined to ChestX-ray14, in its official split.
"""

from ml_collections import ConfigDict

DATASETS = {
    "chexmask": {"build": {"size": 256, "source": "chestxray14"}, "protocol": "chexmask/dice"},
    "siim_acr": {"build": {"size": 512}, "protocol": "siim_acr/dice", "threshold": "dice"},
    "chestxdet": {
        "build": {"size": 512},
        "read": {"instances": False},
        "protocol": "chestxdet/segmentation",
        "threshold": "f1",  # the best F1 of all pixels together is the best IoU
        "best": "pixel_iou/macro",
    },
}
# CheXmask's patients stand so differently that the mean anatomy is no answer.
PHANTOMS = {
    "chexmask": {"count": 240, "size": 128, "positioning": 5.0},
    "siim_acr": {"count": 240, "test_count": 60, "size": 128},
    "chestxdet": {"train": 300, "test": 60, "size": 128},
}
RESNET_50 = {"name": "resnet", "channels": 1, "options": {"variant": "50", "stem_level": True}}
SWIN_TINY = {"name": "swin", "channels": 1, "options": {"variant": "tiny", "drop_path": 0.2}}


def _with_level_norms(backbone: dict) -> dict:
    """As UPerNet's published networks have it; segmentation-models-pytorch's U-Net takes the levels as they are."""
    return backbone | {"options": backbone["options"] | {"level_norms": True}}


MODELS = {
    "unet": (RESNET_50, {"name": "unet"}),
    "unet_plus_plus": (RESNET_50, {"name": "unet_plus_plus", "deep_supervision": True}),
    "upernet": (_with_level_norms(SWIN_TINY), {"name": "upernet", "dropout": 0.1}),
    "swin_unet": (SWIN_TINY, {"name": "unet"}),
}
# The same networks, small enough for minutes on a laptop.
ENCODER = {"name": "unet_encoder", "channels": 1, "options": {"variant": "eighth", "normalize": True}}
SWIN = {
    "name": "swin",
    "channels": 1,
    "options": {"width": 24, "depths": (1, 1, 2), "heads": (1, 2, 4), "windows": (8, 8, 8)},
}
SMALL_MODELS = {
    "unet": (ENCODER, {"name": "unet", "upsampling": "transposed", "widths": (64, 32, 16, 8), "output_size": 1}),
    "unet_plus_plus": (ENCODER, {"name": "unet_plus_plus", "widths": (64, 32, 16, 8), "deep_supervision": True}),
    "upernet": (_with_level_norms(SWIN), {"name": "upernet", "width": 32}),
    "swin_unet": (SWIN, {"name": "unet", "widths": (48, 32, 16, 8)}),
}

VARIANTS = tuple(f"{dataset},{model}" for dataset in DATASETS for model in MODELS)


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    name, model, *phantom = variant.split(",")
    data = DATASETS[name]
    backbone, head = (SMALL_MODELS if phantom else MODELS)[model]
    config = ConfigDict()
    config.seed = 0
    config.steps = 20_000
    config.log_every = 100
    config.evaluate_every = config.checkpoint_every = 2_000
    config.backbone = backbone
    config.streams = {
        name: {
            "dataset": name,
            "build": data["build"],
            "read": data.get("read", {}),
            "batch_size": 32,
            "transform": (
                {"name": "random_affine", "rotate": 10, "translate": 0.05, "scale": 0.1, "probability": 0.9},
                {"name": "random_intensity", "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
            ),
            "tasks": {
                "segmentation": {
                    "head": head,
                    "losses": {"cross_entropy": 1.0, "dice": 1.0},
                    "threshold": data.get("threshold", 0.5),
                }
            },
        }
    }
    config.evaluations = {
        "validation": {"split": "validation", "protocol": data["protocol"], "during_training": True},
        # SIIM-ACR has a test set from stage 2 on.
        "test": {"split": "test", "protocol": data["protocol"], "optional": name == "siim_acr"},
    }
    config.best = {"metric": f"validation/segmentation/{data.get('best', 'dice/macro')}", "patience": 5}
    config.optimizer = {
        "name": "adamw",
        "peak": 3e-4,
        "warmup_steps": 500,
        "weight_decay": 0.01,
        "per_part": {"head/*": {"peak": 1e-3}},
    }
    config.precision = "bfloat16"
    config.workers = 8
    return _phantom(config, name) if phantom else config


def _phantom(config: ConfigDict, name: str) -> ConfigDict:
    config.phantom = {name: PHANTOMS[name]}
    stream = config.streams[name]
    stream.build.size = PHANTOMS[name]["size"]
    stream.batch_size = 8
    stream.transform = ({"name": "random_affine", "rotate": 5, "translate": 0.04, "scale": 0.05, "probability": 0.9},)
    config.steps = 600
    config.log_every = 10
    config.evaluate_every = config.checkpoint_every = 150
    config.optimizer = {"name": "adamw", "peak": 3e-3, "warmup_steps": 20, "weight_decay": 0.01}
    config.precision = "float32"
    config.workers = 0
    config.cpu_devices = 2
    return config
