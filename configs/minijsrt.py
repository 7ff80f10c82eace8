"""The exercises of miniJSRT: orientation, gender, age, lungs, organs, organ boxes, anomalies, clusters.

    python -m mediax.main --config=configs/minijsrt.py:age --manual_dir=RAW --workdir=runs/age
    python -m mediax.main --config=configs/minijsrt.py:age,phantom --workdir=runs/phantom_age --data_dir=data

All of them on their phantoms, about a minute each:

    for exercise in directions gender age lung organs boxes anomaly clusters; do
        python -m mediax.main --config=configs/minijsrt.py:$exercise,phantom --workdir=runs/$exercise --data_dir=data
    done

The ninth exercise, to read and write PNG, JPEG and DICOM value for value, needs no training, but `mediax.convert`.

The archives have a training and a test split and no other, and every training image is used to train. So nothing is
chosen on the way: the last step is the result, and the number of steps is fixed beforehand. Medians, mixtures and
thresholds come from the training split without its random transforms (the evaluation `training`). To choose on held-out
images instead, divide the training images, and evaluate more often:

    --config.streams.minijsrt.split='train[:80%]' --config.evaluations.training.split='train[80%:]'
    --config.evaluate_every=100

Such slices are of images and not of patients. So they are right where a patient has one image alone: in gender, age,
lung, organs and boxes. In directions and clusters each radiograph is there in four orientations, which would be in both
parts, and of anomaly's images it is not known whose they are.

Anomalies are scored by the likelihood of the autoencoder's code, on the phantom by where an image differs from its
reconstruction. The same on the archive, with windows of the same share of an image:

    --config.streams.minijsrt.tasks.anomaly.features=dissimilarity --config.streams.minijsrt.tasks.anomaly.dimensions=0
    --config.streams.minijsrt.tasks.anomaly.sigma=5.0
"""

from ml_collections import ConfigDict

RESNET_18 = {"name": "resnet", "channels": 1, "options": {"variant": "18"}}
UNET = {"name": "unet_encoder", "channels": 1, "options": {"variant": "quarter", "normalize": True}}
UNET_HEAD = {"name": "unet", "upsampling": "transposed", "widths": (128, 64, 32, 16), "output_size": 1}
# A grey image in [0,1], as the decoder gives it back.
AUTOENCODER = {"name": "autoencoder", "channels": 1, "mean": (0.0,), "std": (1.0,)}
AUTOENCODER_HEAD = {"name": "autoencoder", "size": (128, 128), "code": 128}
TRANSFORM = (
    {"name": "random_affine", "rotate": 5, "translate": 0.05, "scale": 0.1, "probability": 0.9},
    {"name": "random_intensity", "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
)

EXERCISES = {
    "directions": {
        "dataset": "minijsrt_directions",
        "size": 128,
        "steps": 1_500,
        "backbone": RESNET_18,
        "task": {"name": "classification", "exclusive": True},
        "protocol": "minijsrt/classes",
    },
    "gender": {
        "dataset": "minijsrt_gender",
        "size": 256,
        "steps": 1_000,
        "backbone": RESNET_18,
        "task": {"name": "classification", "exclusive": True},
        "protocol": "minijsrt/classes",
    },
    "age": {
        "dataset": "minijsrt_age",
        "size": 256,
        "steps": 2_000,
        "backbone": RESNET_18,
        "task": {"name": "regression", "target_names": ("age in years",), "mean": (58.0,), "std": (14.0,)},
        "protocol": "minijsrt/age",
    },
    "lung": {
        "dataset": "minijsrt_lung",
        "size": 256,
        "steps": 1_000,
        "backbone": UNET,
        "task": {"name": "segmentation", "head": UNET_HEAD},
        "protocol": "organs",
    },
    "organs": {
        "dataset": "minijsrt_organs",
        "size": 256,
        "steps": 2_000,
        "backbone": UNET,
        "task": {"name": "segmentation", "head": UNET_HEAD, "exclusive": True},
        "protocol": "organs",
    },
    "boxes": {
        "dataset": "minijsrt_organs",
        "size": 256,
        "steps": 2_000,
        "backbone": RESNET_18,
        "task": {"name": "box_regression"},
        "protocol": "minijsrt/boxes",
    },
    "anomaly": {
        "dataset": "minijsrt_anomaly",
        "size": 128,
        "steps": 5_000,
        "backbone": AUTOENCODER,
        "transform": (),
        "task": {"name": "anomaly", "head": AUTOENCODER_HEAD, "dimensions": 16},
        "protocol": "minijsrt/anomaly",
    },
    "clusters": {
        "dataset": "minijsrt_directions",
        "size": 128,
        "steps": 5_000,
        "backbone": AUTOENCODER,
        "transform": (),
        "task": {"name": "anomaly", "head": AUTOENCODER_HEAD, "dimensions": 8, "clusters": True, "components": 4},
        "protocol": "minijsrt/clusters",
    },
}
# The same on a phantom, with small images and networks: `images` are how many are drawn to train and to test on,
# `moved` is the share of training images that are rotated, scaled and shifted, `peak` the learning rate.
SMALL_RESNET_18 = {"name": "resnet", "channels": 1, "options": {"variant": "18", "width": 0.25}}
SMALL_UNET = {"name": "unet_encoder", "channels": 1, "options": {"variant": "eighth", "normalize": True}}
SMALL_UNET_HEAD = {"name": "unet", "upsampling": "transposed", "widths": (64, 32, 16, 8), "output_size": 1}
SMALL_AUTOENCODER = AUTOENCODER | {"options": {"widths": (8, 16, 32, 64)}}
SMALL_AUTOENCODER_HEAD = AUTOENCODER_HEAD | {"size": (64, 64)}
PHANTOMS = {
    "directions": {"images": (60, 20), "size": 64, "steps": 80, "backbone": SMALL_RESNET_18},
    "gender": {"images": (240, 100), "size": 96, "steps": 160, "backbone": SMALL_RESNET_18},
    "age": {
        "images": (1000, 100),
        "size": 96,
        "steps": 700,
        "backbone": SMALL_RESNET_18,
        "task": {"head": {"name": "pooled", "pooling": "average_max"}},
        # With nine in ten images moved, black borders and all, it misjudges unmoved ones, its own training images, too.
        "moved": 0.25,
    },
    "lung": {
        "images": (80, 20),
        "size": 96,
        "batch_size": 8,
        "steps": 180,
        "peak": 1e-2,
        "backbone": SMALL_UNET,
        "task": {"head": SMALL_UNET_HEAD},
    },
    "organs": {
        "images": (80, 20),
        "size": 96,
        "batch_size": 8,
        "steps": 80,
        "peak": 1e-2,
        "backbone": SMALL_UNET,
        "task": {"head": SMALL_UNET_HEAD},
    },
    "boxes": {"images": (200, 40), "size": 96, "steps": 180, "backbone": SMALL_RESNET_18},
    "anomaly": {
        "images": (240, 60),
        "size": 64,
        "steps": 320,
        "backbone": SMALL_AUTOENCODER,
        # These radiographs differ so much in exposure and borders that the code hardly tells a mirrored heart.
        "task": {"head": SMALL_AUTOENCODER_HEAD, "features": "dissimilarity", "grid": 5, "sigma": 2.5, "dimensions": 0},
    },
    "clusters": {
        "images": (60, 20),
        "size": 64,
        "steps": 180,
        "backbone": SMALL_AUTOENCODER,
        "task": {"head": SMALL_AUTOENCODER_HEAD},
    },
}

VARIANTS = tuple(EXERCISES)


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
    """The variant is one of VARIANTS, with `,phantom` or without."""
    name, *phantom = variant.split(",")
    exercise = EXERCISES[name]
    config = ConfigDict()
    config.seed = 0
    config.steps = exercise["steps"]
    config.log_every = 20
    config.evaluate_every = 1_000_000  # after the last step alone
    config.checkpoint_every = 500
    config.backbone = exercise["backbone"]
    config.streams = {
        "minijsrt": {
            "dataset": exercise["dataset"],
            "build": {"size": exercise["size"]},
            "batch_size": 16,
            "transform": exercise.get("transform", TRANSFORM),
            "tasks": {name: exercise["task"]},
        }
    }
    config.evaluations = {
        "training": {"split": "train", "protocol": exercise["protocol"], "during_training": True},
        "test": {"split": "test", "protocol": exercise["protocol"]},
    }
    config.best = {"metric": "training/loss", "mode": "min"}
    config.optimizer = {"name": "adamw", "peak": 1e-3, "warmup_steps": 50, "weight_decay": 0.01}
    return _phantom(config, name) if phantom else config


def _phantom(config: ConfigDict, name: str) -> ConfigDict:
    phantom = PHANTOMS[name]
    stream = config.streams.minijsrt
    train, test = phantom["images"]
    config.phantom = {stream.dataset: {"train": train, "test": test, "size": phantom["size"]}}
    config.steps = phantom["steps"]
    stream.build.size = phantom["size"]
    stream.batch_size = phantom.get("batch_size", stream.batch_size)
    stream.transform = stream.transform and (
        {
            "name": "random_affine",
            "rotate": 4,
            "translate": 0.04,
            "scale": 0.05,
            "probability": phantom.get("moved", 0.9),
        },
    )
    stream.tasks[name].update(phantom.get("task", {}))
    config.backbone = phantom["backbone"]
    config.optimizer.peak = phantom.get("peak", 3e-3)
    config.optimizer.warmup_steps = 20
    return config
