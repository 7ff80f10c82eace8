"""Times the sampling operators, RoIAlign, suppression and a block's perceptron beside torch in one run.

    python benchmarks/operators.py [--repeats 10] [--torch-python PATH] [--case NAME ...]

Prints CPU milliseconds (the best of `repeats`; all threads together) of the forward pass and of forward plus backward.
"plain" differentiates the same sum of samples, or the same GELU, without the custom backward pass. For DCNv3 and
deformable attention torch runs what their repositories run on a CPU (grid_sample and a sum); RoIAlign and NMS are
torchvision's compiled ones. PATH is an interpreter that has torch and torchvision, if this one has not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

# DCNv3: batch, height and width, channels, groups, points: InternImage-T's stages at 224 pixels.
DCNV3 = {"dcnv3 56x56x64": (2, 56, 64, 4, 9), "dcnv3 14x14x256": (2, 14, 256, 16, 9)}
LEVELS = (64, 32, 16, 8)  # deformable attention: 8 heads of 32 channels, 4 points a level, 300 queries
ROI_ALIGN = {"roi_align 2": 2, "roi_align -1": -1}  # 256 boxes in a level of 64x64x256, 7x7 bins
NMS = "nms 1000"
PERCEPTRON = "perceptron 32x32x32"  # Linear, GELU, Linear as in a block of ConvNeXt, 16 images
CASES = (*DCNV3, "deformable attention", *ROI_ALIGN, NMS, PERCEPTRON)


def cpu_ms(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def arguments_of(case: str) -> list[np.ndarray]:
    """The arrays of a case; those to differentiate come first."""
    rng = np.random.default_rng(0)
    if case in DCNV3:
        batch, size, channels, groups, points = DCNV3[case]
        shape = (batch, size, size, groups, points)
        arrays = [rng.standard_normal((batch, size, size, channels)), rng.standard_normal((*shape, 2))]
        arrays.append(rng.random(shape))
    elif case == "deformable attention":
        shape = (2, 300, 8, len(LEVELS), 4)
        arrays = [rng.random((*shape, 2)), rng.random(shape)]
        arrays += [rng.standard_normal((2, size, size, 8, 32)) for size in LEVELS]
    elif case == PERCEPTRON:
        arrays = [rng.standard_normal(shape) for shape in ((16, 32, 32, 32), (32, 128), (128, 32))]
    else:
        corner, extent = rng.uniform(0, 400, (1000, 2)), rng.uniform(20, 200, (1000, 2))
        boxes = np.concatenate([corner, corner + extent], 1)
        if case == NMS:
            arrays = [boxes, rng.random(1000)]
        else:
            arrays = [rng.standard_normal((1, 64, 64, 256)), np.minimum(boxes[None, :256], 512)]
    return [array.astype(np.float32) for array in arrays]


def time_jax(case: str, repeats: int, plain: bool) -> list[float] | None:
    import jax
    import jax.numpy as jnp

    from mediax import layers
    from mediax.operators import dcnv3, deformable_attention, nms, roi_align, sampling

    if plain:
        if case in (NMS, "roi_align -1"):
            return None  # does not sample
        sampling._sum_corners = sampling._sum_corners.fun
    arrays = [jnp.asarray(array) for array in arguments_of(case)]
    if case == NMS:
        suppress = jax.jit(lambda boxes, scores: nms.nms(boxes, scores, iou_threshold=0.5))
        return [cpu_ms(lambda: jax.block_until_ready(suppress(*arrays)), repeats)]
    if case in DCNV3:
        operator = dcnv3.dcnv3
    elif case == PERCEPTRON:

        def operator(x, expand, project):
            if plain:
                return jax.nn.gelu(x @ expand, approximate=False) @ project
            return layers.by_row(lambda rows: layers.gelu(rows @ expand) @ project, x)
    elif case in ROI_ALIGN:
        boxes = arrays.pop()

        def operator(features):
            return roi_align.roi_align({8: features}, boxes, 7, sampling_ratio=ROI_ALIGN[case])
    else:

        def operator(locations, weights, *values):
            return deformable_attention.deformable_attention(values, locations, weights)

    def both(*arrays):
        y, pullback = jax.vjp(operator, *arrays)
        return y, pullback(y)

    runs = [jax.jit(operator), jax.jit(both)]
    return [cpu_ms(lambda run=run: jax.block_until_ready(run(*arrays)), repeats) for run in runs]


def time_torch(case: str, repeats: int) -> list[float]:
    import torch
    from torch.nn import functional

    arrays = [torch.from_numpy(array) for array in arguments_of(case)]
    if case == NMS:
        from torchvision import ops

        return [cpu_ms(lambda: ops.nms(*arrays, 0.5), repeats)]

    def by_group(image: torch.Tensor, groups: int) -> torch.Tensor:  # [B,H,W,C] -> [B*G,D,H,W]
        return image.unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)

    if case in DCNV3:

        def operator(x, offsets, masks):
            _, size, _, groups, points = masks.shape
            grid = torch.arange(size).float()
            centre = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)[:, :, None, None]
            kernel = torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-1.0, 2))
            grid = (2 * (centre + kernel + offsets) + 1) / size - 1
            grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(-1, size * size, points, 2)
            samples = functional.grid_sample(by_group(x, groups), grid, align_corners=False)
            return (samples * masks.permute(0, 3, 1, 2, 4).reshape(-1, 1, size * size, points)).sum(-1)
    elif case == PERCEPTRON:

        def operator(x, expand, project):
            return functional.gelu(x @ expand) @ project
    elif case in ROI_ALIGN:
        from torchvision import ops

        boxes = list(arrays.pop()[..., [1, 0, 3, 2]])
        arrays = [arrays[0].permute(0, 3, 1, 2).contiguous()]

        def operator(features):
            return ops.roi_align(features, boxes, 7, 1 / 8, ROI_ALIGN[case], aligned=True)
    else:

        def operator(locations, weights, *values):
            samples = [
                functional.grid_sample(
                    by_group(value.flatten(3), 8),
                    (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1),
                    align_corners=False,
                )
                for level, value in enumerate(values)
            ]
            weights = weights.transpose(1, 2).reshape(-1, 1, weights.shape[1], len(values) * 4)
            return (torch.cat(samples, -1) * weights).sum(-1)

    arrays = [array.requires_grad_() for array in arrays]

    @torch.no_grad()
    def forward() -> None:
        operator(*arrays)

    def both() -> None:
        y = operator(*arrays)
        torch.autograd.grad(y, arrays, y.detach())

    return [cpu_ms(forward, repeats), cpu_ms(both, repeats)]


def in_own_process(python: str, framework: str, case: str, repeats: int) -> str:
    """The times in a process of its own, so that thread pools do not meet; the error's last line if it fails."""
    command = [python, __file__, "--only", framework, "--case", case, "--repeats", str(repeats)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return (result.stderr.strip().splitlines() or ["failed"])[-1]
    times = json.loads(result.stdout.splitlines()[-1])
    return " / ".join(f"{ms:.1f}" for ms in times) if times else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--case", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--only", choices=("ours", "plain", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        [case] = arguments.case
        if arguments.only == "torch":
            print(json.dumps(time_torch(case, arguments.repeats)))
        else:
            print(json.dumps(time_jax(case, arguments.repeats, arguments.only == "plain")))
        return

    pythons = {"ours": sys.executable, "plain": sys.executable, "torch": arguments.torch_python}
    print(f"{'CPU ms: forward / both':26}" + "".join(f"{name:>20}" for name in pythons))
    for case in arguments.case:
        cells = [in_own_process(python, name, case, arguments.repeats) for name, python in pythons.items()]
        print(f"{case:26}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
