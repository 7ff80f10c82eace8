"""Times operators and a block's perceptron beside their counterparts in PyTorch and scipy in one run.

    python benchmarks/operators.py [--repeats 10] [--torch-python PATH] [--case NAME ...]

Prints CPU milliseconds (the best of `repeats`; all threads together) of the forward pass and, where there is a
gradient, of forward plus backward. "plain" differentiates the same sum of samples, or the same GELU, without the custom
backward pass. The reference of DCNv3 and deformable attention is what their repositories run on a CPU (grid_sample and
a sum), that of window attention, RoIAlign and NMS torchvision's, that of the Hungarian matching scipy's; soft-NMS has
none. PATH is an interpreter that has torch and torchvision, if this one has not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

LEVELS = (64, 32, 16, 8)  # of deformable attention: 8 heads of 32 channels, 4 points a level, 300 queries
WINDOW, SHIFT, HEADS = 7, 3, 6  # of window attention: the second stage of Swin-T at 224 pixels

# A function, and the arrays to call it with: those that have a gradient.
Prepared = tuple[Callable[..., Any], list[Any]]


@dataclass(frozen=True)
class Case:
    """What is timed: `arrays()` are given, as the framework's own, to `ours`, `plain` and `reference`."""

    arrays: Callable[[], list[np.ndarray]]
    ours: Callable[..., Prepared]
    reference: Callable[..., Prepared] | None = None
    plain: Callable[..., Prepared] | None = None
    differentiable: bool = True
    needs_torch: bool = True  # the reference; otherwise it takes numpy's arrays, without a gradient


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def without_custom_backward(ours: Callable[..., Prepared]) -> Callable[..., Prepared]:
    """The same operator, its sum of samples differentiated as it stands. For a process of its own."""

    def plain(*arrays: Any) -> Prepared:
        from mediax.operators import sampling

        sampling._sum_corners = sampling._sum_corners.fun
        return ours(*arrays)

    return plain


def by_group(image: Any, groups: int) -> Any:
    """A torch tensor [B,H,W,C] -> [B*G,D,H,W]."""
    return image.unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)


def dcnv3_arrays(batch: int, size: int, channels: int, groups: int, points: int) -> list[np.ndarray]:
    rng, shape = random(), (batch, size, size, groups, points)
    return [rng.standard_normal((batch, size, size, channels)), rng.standard_normal((*shape, 2)), rng.random(shape)]


def our_dcnv3(*arrays: Any) -> Prepared:
    from mediax.operators.dcnv3 import dcnv3

    return dcnv3, list(arrays)


def reference_dcnv3(*arrays: Any) -> Prepared:
    import torch
    from torch.nn.functional import grid_sample

    def operator(x, offsets, masks):
        _, size, _, groups, points = masks.shape
        grid = torch.arange(size).float()
        centre = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)[:, :, None, None]
        kernel = torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-1.0, 2))
        grid = (2 * (centre + kernel + offsets) + 1) / size - 1
        grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(-1, size * size, points, 2)
        samples = grid_sample(by_group(x, groups), grid, align_corners=False)
        return (samples * masks.permute(0, 3, 1, 2, 4).reshape(-1, 1, size * size, points)).sum(-1)

    return operator, list(arrays)


def deformable_arrays() -> list[np.ndarray]:
    rng, shape = random(), (2, 300, 8, len(LEVELS), 4)
    values = [rng.standard_normal((2, size, size, 8, 32)) for size in LEVELS]
    return [rng.random((*shape, 2)), rng.random(shape), *values]


def our_deformable_attention(*arrays: Any) -> Prepared:
    from mediax.operators.deformable_attention import deformable_attention

    return lambda locations, weights, *values: deformable_attention(values, locations, weights), list(arrays)


def reference_deformable_attention(*arrays: Any) -> Prepared:
    import torch
    from torch.nn.functional import grid_sample

    def operator(locations, weights, *values):
        samples = [
            grid_sample(
                by_group(value.flatten(3), 8),
                (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1),
                align_corners=False,
            )
            for level, value in enumerate(values)
        ]
        weights = weights.transpose(1, 2).reshape(-1, 1, weights.shape[1], len(values) * 4)
        return (torch.cat(samples, -1) * weights).sum(-1)

    return operator, list(arrays)


def grid_sample_arrays() -> list[np.ndarray]:
    rng = random()
    return [rng.standard_normal((2, 64, 64, 64)), rng.uniform(-1, 1, (2, 64, 64, 2))]


def our_grid_sample(*arrays: Any) -> Prepared:
    from mediax.operators.sampling import grid_sample

    return grid_sample, list(arrays)


def reference_grid_sample(image: Any, grid: Any) -> Prepared:
    from torch.nn.functional import grid_sample

    return partial(grid_sample, align_corners=False), [image.permute(0, 3, 1, 2).contiguous(), grid]


def window_arrays() -> list[np.ndarray]:
    rng, channels = random(), 32 * HEADS
    shapes = ((8, 28, 28, channels), (channels, 3 * channels), (channels, channels), (HEADS, WINDOW**2, WINDOW**2))
    return [rng.standard_normal(shape) / np.sqrt(shape[-1]) for shape in shapes]


def our_window_attention(*arrays: Any) -> Prepared:
    from mediax.operators.window_attention import attention, in_windows

    def operator(x, expand, project, bias):
        def attend(windows, mask):
            parts = (windows @ expand).reshape(*windows.shape[:3], 3, HEADS, -1)
            query, key, value = (parts[:, :, :, part] for part in range(3))
            return attention(query, key, value, bias=bias, mask=mask) @ project

        return in_windows(x, attend, window=(WINDOW, WINDOW), shift=(SHIFT, SHIFT))

    return operator, list(arrays)


def reference_window_attention(x: Any, expand: Any, project: Any, bias: Any) -> Prepared:
    from torchvision.models.swin_transformer import shifted_window_attention

    def operator(x, expand, project, bias):
        return shifted_window_attention(x, expand, project, bias, [WINDOW] * 2, HEADS, [SHIFT] * 2)

    return operator, [x, expand.T.contiguous(), project.T.contiguous(), bias[None]]


def perceptron_arrays() -> list[np.ndarray]:
    rng = random()
    return [rng.standard_normal(shape) for shape in ((16, 32, 32, 32), (32, 128), (128, 32))]


def our_perceptron(*arrays: Any) -> Prepared:
    from mediax.layers import by_row, gelu

    def operator(x, expand, project):
        return by_row(lambda rows: gelu(rows @ expand) @ project, x)

    return operator, list(arrays)


def plain_perceptron(*arrays: Any) -> Prepared:
    import jax

    return lambda x, expand, project: jax.nn.gelu(x @ expand, approximate=False) @ project, list(arrays)


def reference_perceptron(*arrays: Any) -> Prepared:
    from torch.nn.functional import gelu

    return lambda x, expand, project: gelu(x @ expand) @ project, list(arrays)


def random_boxes() -> np.ndarray:
    rng = random()
    corner, extent = rng.uniform(0, 400, (1000, 2)), rng.uniform(20, 200, (1000, 2))
    return np.concatenate([corner, corner + extent], 1)


def roi_arrays() -> list[np.ndarray]:
    return [random().standard_normal((1, 64, 64, 256)), np.minimum(random_boxes()[None, :256], 512)]


def our_roi_align(ratio: int, features: Any, boxes: Any) -> Prepared:
    from mediax.operators.roi_align import roi_align

    return lambda features: roi_align({8: features}, boxes, 7, sampling_ratio=ratio), [features]


def reference_roi_align(ratio: int, features: Any, boxes: Any) -> Prepared:
    from torchvision.ops import roi_align

    boxes = list(boxes[..., [1, 0, 3, 2]])
    features = features.permute(0, 3, 1, 2).contiguous()
    return lambda features: roi_align(features, boxes, 7, 1 / 8, ratio, aligned=True), [features]


def suppression_arrays() -> list[np.ndarray]:
    return [random_boxes(), random().random(1000)]


def our_nms(*arrays: Any) -> Prepared:
    from mediax.operators.nms import nms

    return partial(nms, iou_threshold=0.5), list(arrays)


def reference_nms(*arrays: Any) -> Prepared:
    from torchvision.ops import nms

    return partial(nms, iou_threshold=0.5), list(arrays)


def our_soft_nms(*arrays: Any) -> Prepared:
    from mediax.operators.nms import soft_nms

    return soft_nms, list(arrays)


def matching_arrays() -> list[np.ndarray]:
    return [random().random((2, 900, 100))]


def our_matching(cost: Any) -> Prepared:
    import jax.numpy as jnp

    from mediax.operators.matching import match

    return partial(match, target_valid=jnp.ones((len(cost), cost.shape[2]), bool)), [cost]


def reference_matching(cost: Any) -> Prepared:
    from scipy.optimize import linear_sum_assignment

    return lambda cost: [linear_sum_assignment(image) for image in cost], [cost]


def dcnv3_case(*shape: int) -> Case:
    return Case(partial(dcnv3_arrays, *shape), our_dcnv3, reference_dcnv3, without_custom_backward(our_dcnv3))


CASES = {
    # DCNv3: batch, height and width, channels, groups, points: InternImage-T's stages at 224 pixels.
    "dcnv3 56x56x64": dcnv3_case(2, 56, 64, 4, 9),
    "dcnv3 14x14x256": dcnv3_case(2, 14, 256, 16, 9),
    "deformable attention": Case(
        deformable_arrays,
        our_deformable_attention,
        reference_deformable_attention,
        without_custom_backward(our_deformable_attention),
    ),
    "grid_sample 64x64x64": Case(
        grid_sample_arrays, our_grid_sample, reference_grid_sample, without_custom_backward(our_grid_sample)
    ),
    "window attention 28x28x192": Case(window_arrays, our_window_attention, reference_window_attention),
    # RoIAlign: 256 boxes in a level of 64x64x256, 7x7 bins; 2x2 samples in each, or as many as it has pixels.
    "roi_align 2": Case(
        roi_arrays,
        partial(our_roi_align, 2),
        partial(reference_roi_align, 2),
        without_custom_backward(partial(our_roi_align, 2)),
    ),
    "roi_align -1": Case(roi_arrays, partial(our_roi_align, -1), partial(reference_roi_align, -1)),
    "nms 1000": Case(suppression_arrays, our_nms, reference_nms, differentiable=False),
    "soft_nms 1000": Case(suppression_arrays, our_soft_nms, differentiable=False),
    # Queries and true boxes of DINO, two images.
    "matching 900x100": Case(
        matching_arrays, our_matching, reference_matching, differentiable=False, needs_torch=False
    ),
    # Linear, GELU, Linear as in a block of ConvNeXt, 16 images.
    "perceptron 32x32x32": Case(perceptron_arrays, our_perceptron, reference_perceptron, plain_perceptron),
}


def cpu_ms(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def time_jax(prepare: Callable[..., Prepared], case: Case, repeats: int) -> list[float]:
    import jax
    import jax.numpy as jnp

    operator, arrays = prepare(*(jnp.asarray(array, jnp.float32) for array in case.arrays()))

    def both(*arrays):
        y, pullback = jax.vjp(operator, *arrays)
        return y, pullback(y)

    runs = [jax.jit(run) for run in ((operator, both) if case.differentiable else (operator,))]
    return [cpu_ms(lambda run=run: jax.block_until_ready(run(*arrays)), repeats) for run in runs]


def time_reference(prepare: Callable[..., Prepared], case: Case, repeats: int) -> list[float]:
    given = [array.astype(np.float32) for array in case.arrays()]
    if not case.needs_torch:
        operator, arrays = prepare(*given)
        return [cpu_ms(lambda: operator(*arrays), repeats)]
    import torch

    operator, arrays = prepare(*map(torch.from_numpy, given))

    @torch.no_grad()
    def forward() -> None:
        operator(*arrays)

    def both() -> None:
        y = operator(*arrays)
        torch.autograd.grad(y, arrays, y.detach())

    times = [cpu_ms(forward, repeats)]
    if case.differentiable:
        arrays = [array.requires_grad_() for array in arrays]
        times.append(cpu_ms(both, repeats))
    return times


def in_own_process(python: str, column: str, name: str, repeats: int) -> str:
    """The times in a process of its own, so that thread pools do not meet; the error's last line if it fails."""
    if getattr(CASES[name], column) is None:
        return "-"
    if not CASES[name].needs_torch:
        python = sys.executable
    command = [python, __file__, "--only", column, "--case", name, "--repeats", str(repeats)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return (result.stderr.strip().splitlines() or ["failed"])[-1]
    return " / ".join(f"{ms:.1f}" for ms in json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--case", nargs="*", choices=CASES, default=[*CASES])
    parser.add_argument("--only", choices=("ours", "plain", "reference"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        [name] = arguments.case
        timed = time_reference if arguments.only == "reference" else time_jax
        print(json.dumps(timed(getattr(CASES[name], arguments.only), CASES[name], arguments.repeats)))
        return

    pythons = {"ours": sys.executable, "plain": sys.executable, "reference": arguments.torch_python}
    print(f"{'CPU ms: forward / both':28}" + "".join(f"{column:>20}" for column in pythons))
    for name in arguments.case:
        cells = [in_own_process(python, column, name, arguments.repeats) for column, python in pythons.items()]
        print(f"{name:28}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
