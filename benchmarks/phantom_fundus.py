"""Fundus phantoms per second on one core: `python benchmarks/phantom_fundus.py`."""

import time

import cv2
import numpy as np

from mediax.phantoms import fundus


def images_per_second(size: int | tuple[int, int], images: int, rounds: int) -> list[tuple[float, float]]:
    """Photographs of new eyes of all grades per second of wall time and of processor time, once per round."""
    speeds = []
    for number in range(rounds):
        wall, busy = time.perf_counter(), time.process_time()
        for index in range(images):
            fundus.photograph(number * images + index, grade=index % 5, size=size)
        speeds.append((images / (time.perf_counter() - wall), images / (time.process_time() - busy)))
    return speeds


def main():
    cv2.setNumThreads(1)
    images_per_second(64, images=5, rounds=1)  # fills the caches
    for size, images in ((256, 20), ((584, 565), 10), ((2336, 3504), 1)):
        wall, busy = np.array(images_per_second(size, images, rounds=5)).T
        # The best round is the machine's own speed, the median what its other work leaves.
        print(
            f"{size} px: best {wall.max():.2f}, median {np.median(wall):.2f} images/s on one core;"
            f" of processor time, best {busy.max():.2f}"
        )


if __name__ == "__main__":
    main()
