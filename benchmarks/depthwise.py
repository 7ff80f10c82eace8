"""Times the depthwise convolution: XLA's, ours, and torch's if it can be imported, side by side in one run.

    python benchmarks/depthwise.py [--batch 8] [--repeats 15] [--torch-python PATH]

Prints, for the four stages of ConvNeXt-T at 224 pixels, the best wall milliseconds of the forward pass and of forward
plus both gradients. PATH is an interpreter that has torch, if this one has not. Other load on the machine makes every
column slower, and not by the same factor: compare columns of one run only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

STAGES = ((56, 96), (28, 192), (14, 384), (7, 768))  # height and width, channels


def best_ms(run: Callable[[], object], repeats: int) -> float:
    """The fastest of `repeats` calls after one that is not counted, in milliseconds."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def time_jax(method: str, shape: tuple[int, ...], repeats: int) -> tuple[float, float]:
    import jax

    from mediax.operators.depthwise import depthwise_conv

    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 1, shape[-1]))
    conv = partial(depthwise_conv, method=method)

    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        y, pullback = jax.vjp(conv, x, kernel)
        return y, pullback(y)

    forward, both = jax.jit(conv), jax.jit(both)
    return tuple(best_ms(lambda run=run: jax.block_until_ready(run(x, kernel)), repeats) for run in (forward, both))


def time_torch(shape: tuple[int, ...], repeats: int) -> tuple[float, float]:
    import torch

    batch, height, width, channels = shape
    x = torch.randn(batch, channels, height, width, requires_grad=True)
    kernel = torch.randn(channels, 1, 7, 7, requires_grad=True)
    conv = partial(torch.nn.functional.conv2d, padding=3, groups=channels)

    @torch.no_grad()
    def forward() -> None:
        conv(x, kernel)

    def both() -> None:
        y = conv(x, kernel)
        torch.autograd.grad(y, (x, kernel), y.detach())

    return best_ms(forward, repeats), best_ms(both, repeats)


def torch_rows(python: str, batch: int, repeats: int) -> list[tuple[float, float]] | None:
    """torch's times from a process of its own, so that the two thread pools do not meet; None without torch."""
    arguments = [__file__, "--only-torch", "--batch", str(batch), "--repeats", str(repeats)]
    result = subprocess.run([python, *arguments], capture_output=True, text=True, check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--only-torch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batch, repeats = arguments.batch, arguments.repeats
    shapes = [(batch, size, size, channels) for size, channels in STAGES]
    if arguments.only_torch:
        print(json.dumps([time_torch(shape, repeats) for shape in shapes]))
        return

    columns = {f"jax {method}": [time_jax(method, shape, repeats) for shape in shapes] for method in ("lax", "shift")}
    columns["torch"] = torch_rows(arguments.torch_python, batch, repeats)
    print(f"{'ms: forward / forward+backward':32}" + "".join(f"{name:>20}" for name in columns))
    for index, shape in enumerate(shapes):
        cells = [
            "not installed" if rows is None else "{:.1f} / {:.1f}".format(*rows[index]) for rows in columns.values()
        ]
        print(f"{'x'.join(map(str, shape)):32}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
