"""Draws the pictures of the README: `python docs/pictures.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mediax.phantoms import chest, fundus


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


def phantom_fundus(path: Path) -> None:
    """The five grades of diabetic retinopathy, the vessels' truth, a glaucomatous disc, and a pair laid together."""
    figure, rows = plt.subplots(2, 4, figsize=(10, 5.3), layout="constrained")
    panels = iter(rows.flat)
    for grade in fundus.GRADES:
        photo = fundus.photograph(20 + grade, grade=grade, size=384)
        _show(next(panels), photo.image, f"Grade {grade} ({photo.side} eye)")
        if grade == 0:
            axes = next(panels)
            overlay = np.where(photo.masks["Vessels"][..., None], 255, photo.image // 2)
            overlay[photo.masks["Arteries"]], overlay[photo.masks["Veins"]] = (213, 94, 0), (86, 180, 233)
            _show(axes, overlay.astype(np.uint8), "Arteries, veins, disc and fovea")
            for name in ("Optic Disc", "Fovea"):
                axes.contour(photo.masks[name], levels=[0.5], colors="white", linewidths=1)
    photo = fundus.photograph(3, cup_to_disc=0.8, size=384, aim="disc", field_of_view_degrees=30)
    axes = next(panels)
    _show(axes, photo.image, "Cup-to-disc ratio 0.8")
    for name, colour in (("Optic Disc", "#56B4E9"), ("Optic Cup", "#009E73")):
        axes.contour(photo.masks[name], levels=[0.5], colors=colour, linewidths=1)
    two = fundus.pair(5, category="P", size=384)
    squares = (np.indices((384, 384)) // 48).sum(axis=0) % 2 == 0
    brought = two.transform.inverse.resample(two.moving.image)
    axes = next(panels)
    _show(axes, np.where(squares[..., None], brought, two.reference.image), f"A pair, {two.overlap:.0%} overlap")
    axes.plot(*two.reference_points.T, "o", mfc="none", mec="white", ms=5)
    figure.savefig(path, dpi=90, pil_kwargs={"optimize": True})


def _show(axes: plt.Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize=9)
    axes.axis("off")


if __name__ == "__main__":
    phantom_fundus(Path(__file__).parent / "phantom_fundus.png")
    phantom_chest(Path(__file__).parent / "phantom_chest.png")
