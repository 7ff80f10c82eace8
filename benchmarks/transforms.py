"""CPU time of the transforms on one core, in microseconds per call, best of five: `python -m benchmarks.transforms`.

The budget is 60 microseconds at 28x28x1 and 1 millisecond at 224x224x1 for the typical training pipeline.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np

from mediax import transforms

TRAINING = (
    {"name": "random_affine", "rotate": 10, "translate": 0.05, "scale": 0.1, "shear": 5, "probability": 1.0},
    {"name": "random_intensity", "brightness": 0.1, "contrast": 0.1, "gamma": 0.2},
    {"name": "random_erase", "probability": 1.0},
)
EVALUATION = ({"name": "resize", "size": 224, "aspect": "letterbox"},)
CROPPING = ({"name": "random_resized_crop", "size": 224}, {"name": "random_flip", "horizontal": 0.5}, *TRAINING)


def microseconds(function, repeats: int) -> float:
    """The CPU time of one call: the best of five runs of `repeats` calls."""
    runs = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeats):
            function()
        runs.append((time.process_time() - start) / repeats * 1e6)
    return min(runs)


def example(height: int, width: int, channels: int, dtype, with_targets: bool) -> dict:
    """A random example, on request with three masks, eight boxes and five keypoints."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    fields = {"image": image if dtype == np.uint8 else (image / 255).astype(dtype)}
    if with_targets:
        corners = np.sort(rng.random((8, 2, 2)), axis=1)
        fields |= {
            "masks": rng.integers(0, 2, (height, width, 3), dtype=np.uint8),
            "boxes": corners.reshape(8, 4).astype(np.float32),
            "box_labels": np.zeros(8, np.int32),
            "keypoints": rng.random((5, 2), dtype=np.float32),
        }
    return fields


def main() -> None:
    cases = [
        ("training 28x28x1 u8", TRAINING, (28, 28, 1, np.uint8, False)),
        ("training 28x28x1 f32", TRAINING, (28, 28, 1, np.float32, False)),
        ("training 224x224x1 u8", TRAINING, (224, 224, 1, np.uint8, False)),
        ("training 224x224x1 f32", TRAINING, (224, 224, 1, np.float32, False)),
        ("training 224x224x3 u8", TRAINING, (224, 224, 3, np.uint8, False)),
        ("training 224x224x1 u8, masks, boxes, keypoints", TRAINING, (224, 224, 1, np.uint8, True)),
        ("crop + training 1024x1024x1 u8 to 224", CROPPING, (1024, 1024, 1, np.uint8, False)),
        ("letterbox 1024x900x1 u8 to 224", EVALUATION, (1024, 900, 1, np.uint8, False)),
    ]
    rng = np.random.default_rng(0)
    for label, specs, shape in cases:
        pipeline, fields = transforms.build(specs), example(*shape)
        repeats = 3000 if shape[0] < 100 else 200
        print(f"{label:50s} {microseconds(lambda: pipeline(fields, rng), repeats):9.1f}")  # noqa: B023
    for name in ("random_noise", "random_blur", "equalize_histogram", "clahe", "window"):
        options = {"random_noise": {"std": 0.1}, "random_blur": {"sigma": 1.0}}.get(name, {})
        pipeline, fields = transforms.build(({"name": name, **options},)), example(224, 224, 1, np.float32, False)
        print(f"{name + ' 224x224x1 f32':50s} {microseconds(lambda: pipeline(fields, rng), 200):9.1f}")  # noqa: B023
    batch = {"image": rng.random((128, 28, 28, 1), dtype=np.float32), "labels": np.zeros((128, 1), np.float32)}
    for name in ("mixup", "cutmix"):
        pipeline = transforms.build_batch(({"name": name},))
        print(f"{name + ' 128x28x28x1, per batch':50s} {microseconds(lambda: pipeline(batch, rng), 50):9.1f}")  # noqa: B023


if __name__ == "__main__":
    main()
