"""Chest phantoms per second on one core: `python benchmarks/phantom_chest.py`."""

import time

import cv2
import numpy as np

from mediax.phantoms import chest


def images_per_second(size: int, images: int) -> tuple[float, float]:
    """Frontal radiographs with sampled findings: (per second of wall clock, per second of this process's CPU time)."""
    rng = np.random.default_rng(0)
    findings = [chest.sample_findings(rng) for _ in range(images)]
    wall, cpu = time.perf_counter(), time.process_time()
    for seed, present in enumerate(findings):
        chest.frontal(seed, findings=present, size=size, view="AP" if seed % 3 == 0 else "PA")
    return images / (time.perf_counter() - wall), images / (time.process_time() - cpu)


def main():
    cv2.setNumThreads(1)
    images_per_second(64, 5)  # fills the caches
    for size, images in ((256, 200), (512, 60)):
        wall, cpu = images_per_second(size, images)
        print(f"{size} px: {wall:.1f} images/s of wall clock, {cpu:.1f} images/s of CPU time")


if __name__ == "__main__":
    main()
