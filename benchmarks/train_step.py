"""Images per second of a backbone with a linear head: ours and torch's, side by side in one run.

    python benchmarks/train_step.py --model convnext/tiny --size 224 --batch 8 [--torch-python PATH]

Times inference and a whole training step (cross-entropy over 1000 classes, AdamW) in f32 on the CPU, or, for ours, on
the device that JAX finds. torch's networks are timm's ConvNeXt and ResNet; PATH is an interpreter that has torch and
timm, if this one has not. The two alternate, `--rounds` times, and the best of each counts. Other load on the machine
makes images per second meaningless; CPU time per image suffers less from it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable

CLASSES = 1000


def measure(run: Callable[[], object], batch: int, repeats: int) -> tuple[float, float]:
    """Images per second and CPU milliseconds per image, each the best of `repeats` calls after one not counted."""
    run()
    wall, cpu = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return batch / min(wall), 1e3 * min(cpu) / batch


def measure_ours(model: str, size: int, batch: int, repeats: int) -> list[float]:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from mediax.heads.pooled import Head

    family, variant = model.split("/")
    source = importlib.import_module(f"mediax.backbones.{family}")

    def build() -> tuple[nnx.Module, nnx.Module]:
        backbone = source.Backbone(variant=variant, rngs=nnx.Rngs(0))
        head = Head(backbone.channels, CLASSES, normalize=family == "convnext", rngs=nnx.Rngs(1))
        return backbone, head

    definition, params, batch_stats = nnx.split(nnx.jit(build)(), nnx.Param, nnx.BatchStat)
    image = jax.random.normal(jax.random.key(2), (batch, size, size, 3))
    labels = jnp.arange(batch) % CLASSES
    optimizer = optax.adamw(1e-4, weight_decay=0.05)

    def apply(params, batch_stats, image, train):
        backbone, head = nnx.merge(definition, params, batch_stats, copy=True)
        logits = head(backbone(image, train=train, rngs=None), train=train, rngs=None)
        return logits, nnx.state(nnx.List([backbone, head]), nnx.BatchStat)

    def loss(params, batch_stats, image):
        logits, batch_stats = apply(params, batch_stats, image, True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), batch_stats

    @jax.jit
    def infer(params, batch_stats, image):
        return apply(params, batch_stats, image, False)[0]

    def step(params, batch_stats, moments, image):
        gradients, batch_stats = jax.grad(loss, has_aux=True)(params, batch_stats, image)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), batch_stats, moments

    step = jax.jit(step, donate_argnums=(0, 1, 2))
    forward = measure(lambda: infer(params, batch_stats, image).block_until_ready(), batch, repeats)
    state = [params, batch_stats, optimizer.init(params)]

    def train() -> None:
        state[:] = jax.block_until_ready(step(*state, image))

    return [*forward, *measure(train, batch, repeats)]


def measure_torch(model: str, size: int, batch: int, repeats: int) -> list[float]:
    import torch

    try:
        import timm
    except RuntimeError:  # a torchvision built for another torch; declaring its operators is enough for timm
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import timm

    family, variant = model.split("/")
    network = timm.create_model(f"convnext_{variant}" if family == "convnext" else f"{family}{variant}")
    network = network.to(memory_format=torch.channels_last)
    image = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, weight_decay=0.05)

    @torch.inference_mode()
    def infer() -> None:
        network(image)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image), labels).backward()
        optimizer.step()

    network.eval()
    forward = measure(infer, batch, repeats)
    network.train()
    return [*forward, *measure(train, batch, repeats)]


def in_own_process(python: str, framework: str, arguments: argparse.Namespace) -> list[float] | str:
    """Measures in a process of its own, so that the two thread pools do not meet; the error's last line if it fails."""
    settings = {
        "model": arguments.model,
        "size": arguments.size,
        "batch": arguments.batch,
        "repeats": arguments.repeats,
    }
    command = [python, __file__, "--only", framework, *(str(x) for k, v in settings.items() for x in (f"--{k}", v))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return (result.stderr.strip().splitlines() or ["failed"])[-1]
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext/tiny", help="backbone file / variant")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--only", choices=("ours", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        framework = {"ours": measure_ours, "torch": measure_torch}[arguments.only]
        print(json.dumps(framework(arguments.model, arguments.size, arguments.batch, arguments.repeats)))
        return

    print(f"{arguments.model}, {arguments.size} pixels, batch {arguments.batch}, f32")
    results = {"ours": [], "torch": []}
    for _ in range(arguments.rounds):
        results["ours"].append(in_own_process(sys.executable, "ours", arguments))
        results["torch"].append(in_own_process(arguments.torch_python, "torch", arguments))
    print(f"{'':8}{'forward':>12}{'train step':>12}  images/s{'forward':>12}{'train step':>12}  CPU ms per image")
    for name, rounds in results.items():
        measured = [round_ for round_ in rounds if not isinstance(round_, str)]
        if measured:
            forward, forward_cpu, train, train_cpu = zip(*measured, strict=True)
            speeds, costs = (max(forward), max(train)), (min(forward_cpu), min(train_cpu))
            print(f"{name:8}{speeds[0]:12.2f}{speeds[1]:12.2f}  {'':8}{costs[0]:12.0f}{costs[1]:12.0f}")
        else:
            print(f"{name:8}not measured: {rounds[0]}")


if __name__ == "__main__":
    main()
