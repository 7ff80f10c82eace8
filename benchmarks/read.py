"""Images/s of training batches from a built set, beside a PyTorch DataLoader over the raw files.

    python -m benchmarks.read [--torch PYTHON] [--images 400] [--workers CORES] [--folder DIR] [--batch_size 32]

Both give batches of 320-pixel images as f32[B,320,320,1], shuffled, with the same number of worker processes (0: the
main process; for mediax its reading threads). The DataLoader decodes the 1024-pixel PNG files and averages them down
with Pillow, as a dataset class without a build step does in each epoch; mediax decodes the built 320-pixel PNGs.
PYTHON is an interpreter with torch and Pillow; without it only mediax is measured. The target is 3 times.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

EPOCHS = 3
DATALOADER = """
import sys, time
import numpy as np, torch
from pathlib import Path
from PIL import Image

torch.set_num_threads(1)


class Files(torch.utils.data.Dataset):
    def __init__(self, folder):
        self.paths = sorted(Path(folder).iterdir())

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            pixels = np.asarray(image.resize((320, 320), Image.Resampling.BOX))
        return torch.from_numpy(pixels[..., None].astype(np.float32) / 255)


if __name__ == "__main__":
    folder, workers, batch_size, epochs = sys.argv[1], *map(int, sys.argv[2:])
    loader = torch.utils.data.DataLoader(
        Files(folder), batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    best = 0
    for epoch in range(epochs + 1):
        start, images = time.perf_counter(), 0
        for batch in loader:
            images += len(batch)
        best = max(best, images / (time.perf_counter() - start)) if epoch else 0  # the first one starts the workers
    print(best)
"""


def read(example):
    """Reads a record as the datasets do."""
    from mediax import builder

    return builder.example_of(example)


def mediax_rate(directory: Path, workers: int, batch_size: int) -> float:
    """Images/s of mediax's own training stream, the best of some epochs after a warm-up."""
    from mediax import builder, data

    records = builder.Records(directory, "train")
    batches = data.training_batches(records, read, batch_size=batch_size, seed=0, workers=workers)
    steps, best = len(records) // batch_size, 0.0
    for epoch in range(EPOCHS + 1):
        start = time.perf_counter()
        for _ in range(steps):
            assert next(batches)["image"].shape == (batch_size, 320, 320, 1)
        best = max(best, steps * batch_size / (time.perf_counter() - start)) if epoch else 0.0
    return best


def main() -> None:
    """Prints both rates and their ratio."""
    from absl import flags

    from benchmarks import build
    from mediax import builder

    flags.FLAGS.mark_as_parsed()  # grain's worker processes read them
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", help="an interpreter that has torch")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="keeps the files for the next time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        raw = (arguments.folder or Path(temporary)) / "build"
        build.write_images(raw / "images", arguments.images)
        module = types.SimpleNamespace(Builder=build.Builder)
        directory = builder.prepare(module, data_dir=Path(temporary) / "built", manual_dir=raw)
        print(f"{arguments.workers} worker processes, batches of {arguments.batch_size}")
        if arguments.torch:
            program = Path(temporary) / "dataloader.py"
            program.write_text(DATALOADER)
            options = map(str, (raw / "images", arguments.workers, arguments.batch_size, EPOCHS))
            done = subprocess.run([arguments.torch, program, *options], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{arguments.torch} cannot run the DataLoader:\n{done.stderr}")
            print(f"torch DataLoader over the raw files {float(done.stdout):8.1f} images/s")
        rate = mediax_rate(directory, arguments.workers, arguments.batch_size)
        ratio = f", {rate / float(done.stdout):.1f} times" if arguments.torch else ""
        print(f"mediax from the built set           {rate:8.1f} images/s{ratio}")


if __name__ == "__main__":
    main()
