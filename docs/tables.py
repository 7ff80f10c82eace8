"""Writes the tables of the documentation from the code: `python docs/tables.py`; a test fails where they are stale.

In README.md, up to the next `<!-- end -->`: after `<!-- datasets -->` what each dataset is, after `<!-- configs -->`
each config in every variant, with its dataset, task, models and protocols. In docs/datasets.md: what each dataset
annotates, what follows from that by the vocabulary, and what it says of itself. In docs/models.md: how far each model
is from its reference, as `pytest --parity=docs/parity.json` measured it.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mediax import catalog, experiment, vocabulary  # noqa: E402
from mediax.datasets.__main__ import tasks  # noqa: E402

KINDS = {
    "CLASSES": "classes",
    "BOX_CLASSES": "boxes",
    "MASK_CLASSES": "masks",
    "TARGETS": "targets",
}


# Test file -> the script that ran the reference, and the reference; in float64 but for those of PRECISION.
REFERENCES = {
    "autoencoder": ("autoencoder.py", "Keras"),
    "convnext": ("backbones.py", "facebookresearch/ConvNeXt, transformers"),
    "deformable_detr": ("detection.py", "transformers"),
    "densenet": ("convolutional.py", "torchvision, TorchXRayVision"),
    "dino": ("dino.py", "IDEA-Research/DINO"),
    "efficientnet_lite": ("convolutional.py", "efficientnet_lite_pytorch, timm"),
    "internimage": ("internimage.py", "OpenGVLab/InternImage"),
    "mask_rcnn": ("detection.py", "torchvision"),
    "resnet": ("backbones.py", "torchvision"),
    "swin": ("swin.py", "microsoft/Swin-Transformer, torchvision, IDEA-Research/DINO"),
    "unet": ("segmentation.py", "segmentation-models-pytorch, jvanvugt/pytorch-unet"),
    "unet_plus_plus": ("segmentation.py", "segmentation-models-pytorch"),
    "upernet": ("segmentation.py", "transformers, its head alone and with its Swin"),
    "vit": ("vit.py", "facebookresearch/dinov2, timm, transformers, facebookresearch/detectron2"),
}

PRECISION = {"autoencoder": "float32", "internimage": "float64, sampling grid float32"}


def dataset_table() -> str:
    """One row for each dataset."""
    lines = ["| dataset | what it is | tasks | images | access |", "|---|---|---|---|---|"]
    for name in catalog.names("datasets"):
        module = catalog.load("datasets", name)
        cells = (f"`{name}`", module.SOURCE.title, ", ".join(tasks(module)), module.SOURCE.images, module.SOURCE.access)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def config_table() -> str:
    """One row for each config, dataset and task, with the variants that there are of it."""
    rows: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for path in experiment.config_files():
        for variant in experiment.variants(path):
            config = experiment.load_config(f"{path}:{variant}").to_dict()
            streams = config["streams"].values()
            datasets = unique(stream["dataset"] for stream in (*streams, *config["evaluations"].values()))
            learnt = unique(spec.get("name", name) for stream in streams for name, spec in stream["tasks"].items())
            row = (path.name, ", ".join(datasets), ", ".join(learnt), ", ".join(final_protocols(config)))
            rows.setdefault(row, []).append((variant, model_name(config)))
    lines = ["| config | variants | dataset | task | models | protocols |", "|---|---|---|---|---|---|"]
    for (file, datasets, learnt, protocols), cells in rows.items():
        names = ", ".join(f"`{variant}`" for variant, _ in cells if variant)
        models = ", ".join(unique(model for _, model in cells))
        lines.append(f"| `{file}` | {names} | {datasets} | {learnt} | {models} | {protocols} |")
    return "\n".join(lines)


def unique(names: Iterable[str]) -> list[str]:
    """The names but the empty one, each once, in their order."""
    return [name for name in dict.fromkeys(names) if name]


def final_protocols(config: Mapping[str, Any]) -> list[str]:
    """The protocols of what is evaluated in the end alone; of all evaluations if there is no such one."""
    evaluations = config["evaluations"].values()
    final = [spec for spec in evaluations if not spec["during_training"]]
    return unique(spec["protocol"] for spec in final or evaluations)


def model_name(config: Mapping[str, Any]) -> str:
    """Backbone, its variant and the heads that are more than a linear layer: "resnet 50 + unet".

    A backbone whose depth or width is the config's own is marked: "resnet 18 (own size)".
    """
    backbone = config["backbone"]
    resized = {"depths", "width", "widths"} & set(backbone["options"])
    tasks = [spec for stream in config["streams"].values() for spec in stream["tasks"].values()]
    heads = unique(spec.get("head", {}).get("name", "") for spec in tasks)
    own = " ".join(unique([backbone["name"], backbone["options"].get("variant", ""), "(own size)" if resized else ""]))
    return " + ".join([own, *(head for head in heads if head not in ("pooled", backbone["name"]))])


def implied(names) -> list[str]:
    """What holds wherever one of some findings does, and is not among them."""
    above = [ancestor for name in names for ancestor in vocabulary.ancestors(name)]
    return [name for name in dict.fromkeys(above) if name not in names]


def dataset_pages() -> str:
    """What each dataset annotates and what follows from it, with what its file says of splits and labels."""
    parts = [
        "# Datasets\n\nWritten by `python docs/tables.py` from `mediax/datasets/`. *Implied* names are not "
        "annotated but hold wherever an annotated one does (`mediax/vocabulary.py`). Whatever a dataset neither "
        "annotates nor implies is unknown in it, and no loss counts it.\n"
    ]
    for name in catalog.names("datasets"):
        module = catalog.load("datasets", name)
        source = module.SOURCE
        parts.append(f"## {name}: {source.title}\n")
        parts.append(f"Licence: {source.licence}. Access: {source.access}. Download: {source.download_size}.\n")
        annotated = []
        for constant, words in KINDS.items():
            if values := getattr(module, constant, ()):
                parts.append(f"- {words}: {', '.join(values)}")
                annotated += values if constant != "TARGETS" else ()
        if names := implied(tuple(dict.fromkeys(annotated))):
            parts.append(f"- implied: {', '.join(names)}")
        parts.append("\n```\n" + module.__doc__.strip() + "\n```\n")
    return "\n".join(parts)


def model_page() -> str:
    """How far each model is from its reference."""
    found = json.loads((ROOT / "docs" / "parity.json").read_text())
    lines = [
        "# Models and their references\n\nWritten by `python docs/tables.py` from `docs/parity.json`, which "
        "`python -m pytest -m '' tests/test_MODEL.py --parity=docs/parity.json` measures. Both networks have the same "
        "seeded weights. A figure is the largest difference in any comparison of the tests: of an array, relative to "
        "its largest entry; of a loss, relative to itself; of a gradient that the reference keeps as its norm and its "
        "product with a random direction, relative to the norm. Detectors' losses are outputs; gradients are those of "
        "every parameter. Mediax ran in float32 or in float64, as its tests say.\n",
        "| model | reference | its precision | comparisons | outputs | outputs in training mode | gradients |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for model, (script, reference) in REFERENCES.items():
        row = found[model]
        figures = ["" if row[kind] is None else f"{row[kind]:.1e}" for kind in ("inference", "training", "gradient")]
        source = f"[{reference}](../tests/references/{script})"
        precision = PRECISION.get(model, "float64")
        lines.append(f"| `{model}` | {source} | {precision} | {row['comparisons']} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def contents() -> dict[Path, str]:
    """The text that each file should have."""
    readme = (ROOT / "README.md").read_text()
    for name, table in {"datasets": dataset_table(), "configs": config_table()}.items():
        pattern, text = rf"<!-- {name} -->.*?<!-- end -->", f"<!-- {name} -->\n{table}\n\n<!-- end -->"
        readme = re.sub(pattern, lambda _, text=text: text, readme, flags=re.DOTALL)
    docs = ROOT / "docs"
    return {ROOT / "README.md": readme, docs / "datasets.md": dataset_pages(), docs / "models.md": model_page()}


if __name__ == "__main__":
    for path, text in contents().items():
        path.write_text(text)
        print(os.path.relpath(path))
