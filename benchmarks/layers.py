"""Times single layers beside PyTorch's in one run: what makes the steps of whole models slower, or faster.

    python benchmarks/layers.py [--repeats 20] [--threads 2] [--torch-python PATH] [--layer NAME ...]

Prints a Markdown table: the best wall milliseconds of forward and backward (f32, on a CPU). Each layer runs in a
process of its own, as in benchmarks/models.py, which says what PATH is. Linux only. Other load on the machine makes the
times meaningless.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable

import models  # of this folder; it finds mediax

# A layer and what it sees, [batch, height, width, channels], or [batch and windows, heads, queries, keys] for softmax.
LAYERS = {
    "convolution 3x3 at 56x56": ("convolution", (4, 56, 56, 64)),
    "convolution 3x3 at 28x28": ("convolution", (4, 28, 28, 128)),
    "convolution 3x3 at 14x14": ("convolution", (4, 14, 14, 256)),
    "convolution 3x3 at 7x7": ("convolution", (4, 7, 7, 512)),
    "depthwise convolution 3x3": ("depthwise", (4, 56, 56, 144)),
    "BatchNorm": ("batch_norm", (4, 56, 56, 256)),
    "LayerNorm": ("layer_norm", (4, 56, 56, 96)),
    "Linear to 4 times the channels": ("linear", (4, 56, 56, 96)),
    "GELU": ("gelu", (4, 56, 56, 384)),
    "softmax": ("softmax", (256, 3, 49, 49)),
}


def our_step(kind: str, shape: tuple[int, ...]) -> Callable[[], object]:
    """Forward and backward, to the parameters and the input."""
    import jax
    from flax import nnx

    from mediax import layers
    from mediax.operators.depthwise import depthwise_conv

    channels, rngs, init = shape[-1], nnx.Rngs(0), nnx.initializers.lecun_normal()
    builders = {
        "convolution": lambda: layers.Conv(channels, channels, 3, padding=1, kernel_init=init, rngs=rngs),
        "depthwise": lambda: nnx.Param(init(rngs.params(), (3, 3, 1, channels))),
        "batch_norm": lambda: layers.BatchNorm(channels, rngs=rngs),
        "layer_norm": lambda: nnx.LayerNorm(channels, rngs=rngs),
        "linear": lambda: layers.Linear(channels, 4 * channels, rngs=rngs),
    }
    calls = {
        "depthwise": lambda kernel, x: depthwise_conv(x, kernel[...]),
        "batch_norm": lambda norm, x: norm(x, train=True),
        "gelu": lambda _, x: layers.gelu(x),
        "softmax": lambda _, x: jax.nn.softmax(x),
    }
    call = calls.get(kind, lambda layer, x: layer(x))
    definition, params, rest = nnx.split(builders.get(kind, dict)(), nnx.Param, ...)
    x = jax.random.normal(jax.random.key(1), shape)

    def forward(params, x):
        return call(nnx.merge(definition, params, rest, copy=True), x)

    def step(params, x, slope):
        y, pullback = jax.vjp(forward, params, x)
        return y, pullback(slope)

    slope = jax.random.normal(jax.random.key(2), jax.eval_shape(forward, params, x).shape)
    compiled = jax.jit(step).lower(params, x, slope).compile()
    return lambda: jax.block_until_ready(compiled(params, x, slope))


def torch_step(kind: str, shape: tuple[int, ...]) -> Callable[[], object]:
    """The same with PyTorch, whose convolutions and BatchNorm see [batch, channels, height, width], channels last."""
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    channels = shape[-1]
    layer = {
        "convolution": lambda: nn.Conv2d(channels, channels, 3, padding=1),
        "depthwise": lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        "batch_norm": lambda: nn.BatchNorm2d(channels),
        "layer_norm": lambda: nn.LayerNorm(channels),
        "linear": lambda: nn.Linear(channels, 4 * channels),
        "gelu": nn.GELU,
        "softmax": lambda: nn.Softmax(-1),
    }[kind]()
    x = torch.randn(shape)
    if kind in ("convolution", "depthwise", "batch_norm"):
        layer, x = layer.to(memory_format=torch.channels_last), x.permute(0, 3, 1, 2)
    inputs, slope = [x.requires_grad_(), *layer.parameters()], torch.randn_like(layer(x))

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, slope)

    return step


def best_ms(framework: str, name: str, repeats: int) -> float:
    """Measures in this process."""
    kind, shape = LAYERS[name]
    step = {"ours": our_step, "torch": torch_step}[framework](kind, shape)
    return models.measure(step, repeats).ms


def in_own_process(framework: str, name: str, arguments: argparse.Namespace) -> float:
    """Measures in a process of its own, apart from the other thread pool; NaN, with the error shown, if it fails."""
    python = {"ours": sys.executable, "torch": arguments.torch_python}[framework]
    command = [python, __file__, "--only", framework, "--layer", name]
    command += ["--repeats", str(arguments.repeats), "--threads", str(arguments.threads)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return math.nan if result.returncode else json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--layer", nargs="*", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--only", choices=("ours", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        [name] = arguments.layer
        models.use_cpus(arguments.threads)
        print(json.dumps(best_ms(arguments.only, name, arguments.repeats)))
        return

    print(f"{arguments.threads} threads, f32.\n\n| layer | input | ms | torch ms | ratio |\n|---|---|---|---|---|")
    for name in arguments.layer:
        ours, theirs = (in_own_process(framework, name, arguments) for framework in ("ours", "torch"))
        shape = "x".join(map(str, LAYERS[name][1]))
        print(f"| {name} | {shape} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
