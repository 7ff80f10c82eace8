"""Draws the pictures of the README: `python docs/pictures.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mediax.phantoms import chest


def phantom_chest(path: Path) -> None:
    """One radiograph for each finding, with its boxes, and the masks of lungs and heart on the first."""
    figure, rows = plt.subplots(2, 4, figsize=(10, 5.3), layout="constrained")
    for index, (axes, finding) in enumerate(zip(rows.flat, chest.FINDINGS)):
        radiograph = chest.frontal(100 + index, findings={finding}, size=384, severity=0.9)
        axes.imshow(radiograph.image, cmap="gray", vmin=0, vmax=1)
        for _, ymin, xmin, ymax, xmax in radiograph.boxes:
            axes.add_patch(plt.Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, color="#E69F00", lw=1.2))
        if index == 0:
            for name, colour in (("Left Lung", "#56B4E9"), ("Right Lung", "#009E73"), ("Heart", "#D55E00")):
                axes.contour(radiograph.masks[name], levels=[0.5], colors=colour, linewidths=1)
        axes.set_title(f"{finding} ({radiograph.sex}, {radiograph.age:.0f})", fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=90, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    phantom_chest(Path(__file__).parent / "phantom_chest.png")
