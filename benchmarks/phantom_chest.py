"""Chest phantoms per second on one core: `python benchmarks/phantom_chest.py`."""

import time

import cv2
import numpy as np

from mediax.phantoms import chest


def images_per_second(size: int, images: int, rounds: int) -> list[float]:
    """Frontal radiographs with sampled findings per second, once per round."""
    rng = np.random.default_rng(0)
    findings = [chest.sample_findings(rng) for _ in range(images)]
    speeds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for seed, present in enumerate(findings):
            chest.frontal(seed, findings=present, size=size, view="AP" if seed % 3 == 0 else "PA")
        speeds.append(images / (time.perf_counter() - start))
    return speeds


def main():
    cv2.setNumThreads(1)
    images_per_second(64, images=5, rounds=1)  # fills the caches
    for size, images in ((256, 50), (512, 20)):
        speeds = images_per_second(size, images, rounds=8)
        # The best round is the machine's own speed, the median what its other work leaves.
        print(f"{size} px: best {max(speeds):.1f}, median {np.median(speeds):.1f} images/s on one core")


if __name__ == "__main__":
    main()
