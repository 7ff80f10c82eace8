"""Writes docs/speed.md: a training step of every model beside its PyTorch reference, its time and memory, in one run.

    python benchmarks/speed.py [--torch-python PATH] [--internimage CHECKOUT] [--dino CHECKOUT] [--repeats 5]
                               [--threads 2] [--out docs/speed.md]

Runs benchmarks/models.py, benchmarks/networks.py and benchmarks/layers.py, which say what is measured and what PATH and
the CHECKOUTs are. Linux only. Other load on the machine makes the times meaningless.
"""

import argparse
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
COMMAND = "python benchmarks/speed.py --torch-python PATH --internimage CHECKOUT --dino CHECKOUT"
MEANING = """\
Best wall milliseconds of a training step (forward and backward, f32, a CPU), and the memory that the step takes beyond
what was resident before it: activations, gradients and workspace. A ratio above 1 is slower, or larger, than PyTorch;
the reason is given where a step is slower. Each network runs in a process of its own. On accelerators none of the
reasons holds: they are about the loops and the convolutions of XLA's CPU backend."""
LAYERS = "The layers that the reasons name: best wall milliseconds of forward and backward."


def tables(benchmark: str, options: list[str]) -> str:
    """The standard output of a benchmark, which is also passed on as it comes."""
    lines = []
    command = [sys.executable, str(HERE / benchmark), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"{benchmark} failed")
    return "".join(lines)


def machine() -> str:
    """Processor, cores and memory."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = names[0].partition(":")[2].strip() if names else os.uname().machine
    return f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB"


def versions(torch_python: str) -> str:
    """The versions of what was compared."""
    ours = [f"{name} {version(name)}" for name in ("jax", "flax")]
    packages = ("torch", "torchvision", "timm", "transformers", "segmentation_models_pytorch")
    code = f"from importlib.metadata import version\nfor name in {packages}: print(name, version(name))"
    theirs = subprocess.run([torch_python, "-c", code], capture_output=True, text=True, check=True).stdout
    return ", ".join([*ours, *theirs.strip().splitlines()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--internimage", metavar="CHECKOUT")
    parser.add_argument("--dino", metavar="CHECKOUT")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "speed.md")
    arguments = parser.parse_args()
    shared = ["--torch-python", arguments.torch_python]
    shared += ["--repeats", str(arguments.repeats), "--threads", str(arguments.threads)]
    parts = ["# Speed beside PyTorch", f"Written by `{COMMAND}`.", MEANING]
    parts.append(f"Measured on {machine()}, with {versions(arguments.torch_python)}.")
    for title, benchmark, option in (
        ("Backbones", "models.py", "internimage"),
        ("Segmenters and detectors", "networks.py", "dino"),
    ):
        checkout = getattr(arguments, option)
        table = tables(benchmark, shared + ([f"--{option}", checkout] if checkout else []))
        parts += [f"## {title}", table.strip()]
    layers = tables("layers.py", ["--torch-python", arguments.torch_python, "--threads", str(arguments.threads)])
    parts += ["## Single layers", LAYERS, layers.strip()]
    arguments.out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
