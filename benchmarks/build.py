"""Images/s of building 1024-pixel PNG files to 320 pixels, beside Pillow decoding the same files on the same cores.

    python -m benchmarks.build [--images 400] [--workers CORES] [--folder DIR]

The target is 0.8 of bare decoding: a build then costs little more than reading the files once. Pillow decodes in
processes, one per worker, so that no lock of Python holds it back. Both start with warm files; the build's own start is
counted, and it keeps freed memory, as `mediax.main` and `python -m mediax.datasets` do. Processor time is given beside
images/s because other load on the machine disturbs it less.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import tempfile
import time
import types
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mediax import builder, images, memory
from mediax.phantoms import chest

SOURCE = builder.Source("Benchmark", "none", "none", "none", "none", "none", "none", "images/0.png")


class Builder(builder.Builder):
    """Grey files with one label."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(size=320),)

    def features(self):
        return {"labels": tfds.features.Tensor(shape=(1,), dtype=np.int8)}

    def find(self, folder):
        return folder / "images"

    def rows(self, folder):
        label = {"labels": np.zeros(1, np.int8)}
        return {"train": [builder.Row(path.stem, path.stem, path, "-", label) for path in sorted(folder.iterdir())]}


def write_images(folder: Path, count: int, size: int = 1024) -> list[Path]:
    """Writes generated radiographs with the noise of a detector, which decides how fast a PNG file is decoded."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [chest.frontal(seed, size=512).image for seed in range(8)]
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            image = cv2.resize(drawn[number % len(drawn)], (size, size), interpolation=cv2.INTER_CUBIC)
            noise = rng.normal(0, 0.01, image.shape).astype(np.float32)
            # As the distributed files were written, by a common encoder: our own's are faster to decode.
            Image.fromarray(images.to_uint8(image + noise)).save(path)
    return paths


def decode(path: Path) -> float:
    """Decodes a file with Pillow; returns the processor time that it took, in seconds."""
    start = time.process_time()
    with Image.open(path) as image:
        np.asarray(image)
    return time.process_time() - start


def main() -> None:
    """Prints both rates, both processor times and their ratios, the best of three runs each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="keeps the files for the next time")
    arguments = parser.parse_args()
    memory.keep_freed()
    with tempfile.TemporaryDirectory() as temporary:
        raw = (arguments.folder or Path(temporary)) / "build"
        paths = write_images(raw / "images", arguments.images)
        spawn = multiprocessing.get_context("spawn")
        decoding, building = [], []
        with concurrent.futures.ProcessPoolExecutor(arguments.workers, mp_context=spawn) as pool:
            list(pool.map(decode, paths, chunksize=8))  # starts the processes, warms the files
            for run in range(3):
                start = time.perf_counter()
                busy = sum(pool.map(decode, paths, chunksize=8))
                decoding.append((time.perf_counter() - start, busy))
                start, busy_start = time.perf_counter(), time.process_time()
                module = types.SimpleNamespace(Builder=Builder)
                data_dir = Path(temporary) / str(run)
                builder.prepare(module, data_dir=data_dir, manual_dir=raw, workers=arguments.workers)
                building.append((time.perf_counter() - start, time.process_time() - busy_start))
    theirs, ours = np.min(decoding, axis=0) / len(paths), np.min(building, axis=0) / len(paths)
    print(f"{arguments.workers} workers: {len(paths)} files of 1024 x 1024")
    for what, (wall, busy) in (("Pillow decodes", theirs), ("mediax builds", ours)):
        print(f"{what:<15}{1 / wall:8.1f} images/s, {1e3 * busy:6.2f} ms of processor time each")
    wall, busy = theirs / ours
    print(f"Building runs at {wall:.2f} of decoding, by processor time at {busy:.2f}.")


if __name__ == "__main__":
    main()
