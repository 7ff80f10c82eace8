"""Times a training step of every backbone beside its PyTorch reference, and the memory that the step takes, in one run.

    python benchmarks/models.py [--batch 4] [--repeats 5] [--threads 2] [--torch-python PATH] [--internimage CHECKOUT]
                                [--model NAME ...]

Prints a Markdown table: the best wall milliseconds of `repeats` steps (forward and backward of a backbone in training
mode, f32, on a CPU) and the resident memory at the step's peak beyond what was resident before the first one
(activations, gradients and workspace, not the parameters). Each network runs in a process of its own on the first
`threads` CPUs, and both frameworks keep freed memory, as `mediax.main` does. PATH is an interpreter that has torch,
torchvision and timm, if this one has not; CHECKOUT is the folder `classification` of a checkout of
https://github.com/OpenGVLab/InternImage. Linux only. Other load on the machine makes the times meaningless.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "references")]  # torch's interpreter has no mediax

from mediax import memory  # noqa: E402

# benchmarks/layers.py measures each of these layers beside torch's.
CONVOLUTION = "dense convolutions, of large maps above all: XLA's come from Eigen, torch's from oneDNN"
DEPTHWISE = "depthwise convolution (its kernel's gradient) and BatchNorm are loops of XLA's own"
POINTWISE = "LayerNorm and softmax are loops of XLA's own"


@dataclasses.dataclass(frozen=True)
class Case:
    """A backbone file and variant, the image's side, the reference, and what may make it slower than that."""

    family: str
    variant: str
    size: int
    reference: str
    reason: str


CASES = {
    f"{case.family}/{case.variant}": case
    for case in (
        Case("convnext", "tiny", 224, "torchvision convnext_tiny", POINTWISE),
        Case("resnet", "50", 224, "torchvision resnet50", CONVOLUTION),
        Case("densenet", "121", 224, "torchvision densenet121", CONVOLUTION),
        Case("efficientnet_lite", "0", 224, "timm tf_efficientnet_lite0", DEPTHWISE),
        Case("vit", "small", 224, "timm vit_small_patch14_dinov2", POINTWISE),
        Case("swin", "tiny", 224, "torchvision swin_t", POINTWISE),
        Case("swin", "v2_tiny", 256, "torchvision swin_v2_t", POINTWISE),
        Case("internimage", "tiny", 224, "authors' with grid_sample", POINTWISE),
        Case("unet_encoder", "half", 128, "the same layers", CONVOLUTION),
        Case("autoencoder", "strided", 224, "the same layers", CONVOLUTION),
    )
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Wall milliseconds and megabytes of a training step."""

    ms: float
    megabytes: float


def measure(step: Callable[[], object], repeats: int) -> Cost:
    """Runs `step` once for the memory and then `repeats` times, of which the fastest counts."""
    ctypes.CDLL(None).malloc_trim(0)  # what a compiler left behind would hide what the step takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident_megabytes("VmRSS")
    step()
    step()  # the allocations of the second step meet those that outlive the first
    megabytes = resident_megabytes("VmHWM") - before
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return Cost(1e3 * min(times), megabytes)


def resident_megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kilobytes) / 1024


def measure_ours(case: Case, batch: int, repeats: int) -> Cost:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    source = importlib.import_module(f"mediax.backbones.{case.family}")
    build = nnx.jit(lambda: source.Backbone(variant=case.variant, rngs=nnx.Rngs(0)))
    definition, params, batch_stats = nnx.split(build(), nnx.Param, nnx.BatchStat)
    image = jax.random.normal(jax.random.key(1), (batch, case.size, case.size, 3))

    def loss(params, batch_stats, image):
        backbone = nnx.merge(definition, params, batch_stats, copy=True)
        pyramid = backbone(image, train=True, rngs=None)
        return jnp.mean(pyramid[max(pyramid)] ** 2), nnx.state(backbone, nnx.BatchStat)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, batch_stats, image).compile()
    return measure(lambda: jax.block_until_ready(step(params, batch_stats, image)), repeats)


def measure_torch(case: Case, batch: int, repeats: int, checkout: str | None) -> Cost:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = reference(case, checkout).train().to(memory_format=torch.channels_last)
    image = torch.randn(batch, 3, case.size, case.size).to(memory_format=torch.channels_last)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(image).square().mean().backward()

    return measure(step, repeats)


def reference(case: Case, checkout: str | None) -> Any:
    """The torch module of the reference without its classifier; without stochastic depth, as ours by default."""
    from torch import nn

    if case.family == "internimage":
        if checkout is None:
            raise SystemExit("needs --internimage CHECKOUT")
        from internimage import VARIANTS, authors_internimage

        network = authors_internimage(checkout)(**VARIANTS[case.variant])
        network.head = nn.Identity()
        return network
    if case.reference.startswith("torchvision"):
        from backbones import torchvision  # also where it was built for another torch

        network = getattr(torchvision.models, case.reference.split()[1])()
        for module in network.modules():
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0
        return nn.Sequential(*list(network.children())[:-2]) if case.family == "resnet" else network.features
    if case.reference.startswith("timm"):
        from backbones import timm

        options = {"dynamic_img_size": True} if case.family == "vit" else {}
        network = timm.create_model(case.reference.split()[1], num_classes=0, **options)
        network.forward = network.forward_features
        return network
    layers: list[nn.Module] = []
    if case.family == "autoencoder":
        for inputs, outputs in itertools.pairwise((3, 32, 64, 128, 256)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
    else:
        for inputs, outputs in itertools.pairwise((3, 32, 64, 128, 256, 512)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        del layers[-1]
    return nn.Sequential(*layers)


def in_own_process(framework: str, name: str, arguments: argparse.Namespace) -> Cost | str:
    """The cost measured in a process of its own, apart from the other thread pool; a failure as its last line."""
    python = {"ours": sys.executable, "torch": arguments.torch_python}[framework]
    command = [python, __file__, "--only", framework, "--model", name]
    for option in ("batch", "repeats", "threads", "internimage"):
        if (value := getattr(arguments, option)) is not None:
            command += [f"--{option}", str(value)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return (result.stderr.strip().splitlines() or ["failed"])[-1]
    return Cost(*json.loads(result.stdout.splitlines()[-1]))


def measure_here(framework: str, case: Case, arguments: argparse.Namespace) -> Cost:
    """Measures in this process."""
    use_cpus(arguments.threads)
    if framework == "ours":
        return measure_ours(case, arguments.batch, arguments.repeats)
    return measure_torch(case, arguments.batch, arguments.repeats, arguments.internimage)


def use_cpus(count: int) -> None:
    """Keeps this process on its first `count` CPUs, and in it what memory it frees."""
    cpus = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cpus)
    os.environ["OMP_NUM_THREADS"] = str(len(cpus))
    memory.keep_freed()


def print_header(what: str) -> None:
    print(f"| {what} | pixels | reference | ms | torch ms | ratio | MB | torch MB | ratio | reason |")
    print("|---|---|---|---|---|---|---|---|---|---|")


def row(name: str, size: int, reference: str, reason: str, ours: Cost | str, theirs: Cost | str) -> str:
    """A line of the table; `reason` is shown where ours is slower."""
    cells = [f"`{name}`", str(size), reference]
    if isinstance(ours, str) or isinstance(theirs, str):
        failure = "; ".join(
            f"{who}: {cost}" for who, cost in (("ours", ours), ("torch", theirs)) if isinstance(cost, str)
        )
        return f"| {' | '.join([*cells, *['-'] * 6, 'not measured: ' + failure])} |"
    ratio = ours.ms / theirs.ms
    cells += [f"{ours.ms:.0f}", f"{theirs.ms:.0f}", f"{ratio:.2f}"]
    cells += [f"{ours.megabytes:.0f}", f"{theirs.megabytes:.0f}", f"{ours.megabytes / theirs.megabytes:.2f}"]
    return f"| {' | '.join([*cells, reason if ratio > 1 else ''])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--internimage", metavar="CHECKOUT")
    parser.add_argument("--model", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--only", choices=("ours", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        [name] = arguments.model
        cost = measure_here(arguments.only, CASES[name], arguments)
        print(json.dumps(dataclasses.astuple(cost)))
        return

    print(f"Batch {arguments.batch}, {arguments.threads} threads, f32.\n")
    print_header("backbone")
    for name in arguments.model:
        case = CASES[name]
        costs = (in_own_process(framework, name, arguments) for framework in ("ours", "torch"))
        print(row(name, case.size, case.reference, case.reason, *costs), flush=True)


if __name__ == "__main__":
    main()
