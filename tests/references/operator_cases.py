"""Arguments of the operators' goldens, which the references and the tests both generate: no torch, no jax."""

try:
    from references import seeded
except ImportError:  # run as a script, from its own folder
    import seeded

import numpy as np


def probe(shape: tuple[int, ...]) -> np.ndarray:
    return seeded.normal("probe", shape)


def grid_sample() -> dict[str, np.ndarray]:
    """A grid that leaves the image on all sides, and meets its corners exactly."""
    grid = 0.8 * seeded.normal("grid", (2, 4, 6, 2))
    grid[0, 0, :4] = [[-1, -1], [1, 1], [-1, 1], [0, -1]]
    return {"image": seeded.normal("image", (2, 5, 7, 3)), "grid": grid}


def deformable_attention() -> dict[str, np.ndarray]:
    sizes, heads, points = ((6, 9), (3, 5), (1, 2)), 2, 4
    values = {f"value_{h}x{w}": seeded.normal(f"value_{h}x{w}", (2, h, w, heads, 3)) for h, w in sizes}
    shape = (2, 5, heads, len(sizes), points)
    return {
        "locations": 0.5 + 0.4 * seeded.normal("locations", (*shape, 2)),
        "weights": seeded.normal("weights", shape),
        **values,
    }


_DCNV3 = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "offset_scale": 1.0, "remove_center": False}
DCNV3 = {
    "default": _DCNV3,
    "strided": _DCNV3 | {"stride": 2, "offset_scale": 0.5},
    "without_center": _DCNV3 | {"remove_center": True, "offset_scale": 2.0},
    "dilated": _DCNV3 | {"dilation": 2, "padding": 2},
    "large": _DCNV3 | {"kernel_size": 5, "padding": 1, "remove_center": True},
    "even": _DCNV3 | {"kernel_size": 2, "padding": 0, "dilation": 3},
}


def dcnv3(*, kernel_size: int, stride: int, padding: int, dilation: int, remove_center: bool, **_) -> dict:
    groups, points = 2, kernel_size**2 - remove_center
    reach = dilation * (kernel_size - 1) + 1
    height, width = ((size + 2 * padding - reach) // stride + 1 for size in (6, 7))
    shape = (2, height, width, groups, points)
    return {
        "x": seeded.normal("x", (2, 6, 7, groups * 3)),
        "offsets": 1.5 * seeded.normal("offsets", (*shape, 2)),
        "masks": seeded.normal("masks", shape),
    }


ROI_STRIDE, ROI_SIZE = 4, (3, 2)
ROI_ALIGN = {
    f"{'aligned' if aligned else 'legacy'}/{ratio}": {"aligned": aligned, "sampling_ratio": ratio}
    for aligned, ratio in ((True, -1), (True, 2), (False, -1), (False, 3))
}
BOXES = np.array(  # ymin, xmin, ymax, xmax in an image of 36x52 pixels
    [
        [3.1, 5.3, 20.7, 40.9],
        [0, 0, 36, 52],
        [30.3, 45.1, 60.2, 90.9],
        [-25.3, -17.1, 9.7, 11.2],
        [100, 100, 120, 130],
        [-50, -60, -40, -20],
        [10, 10, 10, 10],
        [10, 10, 10, 30],
        [12.5, 7.25, 13.1, 8.75],
        [20, 30, 10, 20],
        [-300.7, -200.3, 400.1, 500.9],
        [17.9, 1.3, 18.3, 51.1],
    ],
    np.float32,
)


def features() -> np.ndarray:
    return seeded.normal("features", (2, 9, 13, 3))


SIZED_BOXES = np.array(
    [[0, 0, side, side * ratio] for side in (1, 8, 55, 56, 111.9, 112, 224, 447, 448, 2000) for ratio in (1, 2)]
    + [[5, 5, 5, 9]],
    np.float32,
)

THRESHOLDS = (0.1, 0.3, 0.5, 0.7)


def crowd() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes with whole coordinates, so that overlaps meet thresholds exactly; ties of scores; empty and equal boxes."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 12, (80, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 11, (80, 2))], 1).astype(np.float32)
    boxes[70:] = boxes[:10]
    return boxes, (rng.integers(0, 40, 80) / 40).astype(np.float32), rng.integers(0, 3, 80).astype(np.int32)


SWIN_CHANNELS, SWIN_HEADS, SWIN_WINDOW, SWIN_SIZE = 6, 2, 4, (8, 12)


def swin(name: str) -> dict[str, np.ndarray]:
    """Windows of an image, and the parameters of the authors' attention (with "__" for ".")."""
    channels, heads, pixels = SWIN_CHANNELS, SWIN_HEADS, SWIN_WINDOW**2
    shapes = {"qkv__weight": (3 * channels, channels), "proj__weight": (channels, channels), "proj__bias": (channels,)}
    if name == "swin":
        shapes |= {"qkv__bias": (3 * channels,), "relative_position_bias_table": ((2 * SWIN_WINDOW - 1) ** 2, heads)}
    else:
        shapes |= {"q_bias": (channels,), "v_bias": (channels,), "logit_scale": (heads, 1, 1)}
        shapes |= {"cpb_mlp__0__weight": (512, 2), "cpb_mlp__0__bias": (512,), "cpb_mlp__2__weight": (heads, 512)}
    arrays = {key: 0.5 * seeded.normal(key, shape) for key, shape in shapes.items()}
    if name == "swin_v2":
        arrays["logit_scale"] = np.array([2.5, 5.0], np.float32).reshape(2, 1, 1)  # exp(5) is more than 100
        arrays["cpb_mlp__2__weight"] /= 16
    return arrays | {"x": seeded.normal("windows", (2, 6, pixels, channels))}


def in_windows() -> dict[str, np.ndarray]:
    channels, heads = SWIN_CHANNELS, SWIN_HEADS
    return {
        "x": seeded.normal("image of windows", (2, 7, 5, channels)),
        "qkv_weight": seeded.normal("qkv", (3 * channels, channels)) / 2,
        "qkv_bias": seeded.normal("qkv bias", (3 * channels,)) / 2,
        "proj_weight": seeded.normal("proj", (channels, channels)) / 2,
        "bias": seeded.normal("bias", (heads, 9, 9)),
    }
