"""MedMNIST v2: small standardised medical images, 28x28, with official splits; one builder config per subset ("flag").

Yang et al., "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image classification",
Scientific Data 10, 41 (2023). Cite the source of a subset too: Kermany et al., Cell 172 (2018) for pneumoniamnist;
Wang et al., CVPR 2017 for chestmnist; DeepDRiD, Liu et al., Patterns 3 (2022) for retinamnist.

Splits: the official train, validation (`val` in the files) and test. The files name no patients, so every image counts
as a patient of its own: that the splits share none is the publishers' claim and cannot be checked here, and bootstrap
intervals by patient are intervals by image.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mediax import builder, images
from mediax.errors import InputError
from mediax.phantoms import chest, pool


class Subset(NamedTuple):
    """One flag: its task in MedMNIST's words, its classes in the order of the file's labels, channels, MD5 of the file.

    A binary subset has one class, the finding that label 1 stands for; an ordinal one has a class for each grade.
    """

    task: Literal["binary-class", "multi-label", "ordinal-regression"]
    classes: tuple[str, ...]
    channels: int
    md5: str


# From MedMNIST's own info.py; another subset is another entry here.
SUBSETS = {
    "pneumoniamnist": Subset("binary-class", ("Pneumonia",), 1, "28209eda62fecd6e6a2d98b1501bb15f"),
    "chestmnist": Subset(
        "multi-label",
        (
            "Atelectasis",
            "Cardiomegaly",
            "Pleural Effusion",
            "Infiltration",
            "Mass",
            "Nodule",
            "Pneumonia",
            "Pneumothorax",
            "Consolidation",
            "Edema",
            "Emphysema",
            "Pulmonary Fibrosis",
            "Pleural Thickening",
            "Hernia",
        ),
        1,
        "02c8a6516a18b556561a56cbdd36c4a8",
    ),
    "retinamnist": Subset(
        "ordinal-regression",
        (
            "No Diabetic Retinopathy",
            "Mild Diabetic Retinopathy",
            "Moderate Diabetic Retinopathy",
            "Severe Diabetic Retinopathy",
            "Proliferative Diabetic Retinopathy",
        ),
        3,
        "bd4c0672f1bba3e3a89f0e4e876791e4",
    ),
}
CLASSES = tuple(dict.fromkeys(name for subset in SUBSETS.values() for name in subset.classes))
SPLITS = {"train": "train", "validation": "val", "test": "test"}
URL = "https://zenodo.org/records/10519652/files/{flag}.npz?download=1"

SOURCE = builder.Source(
    title="MedMNIST v2",
    homepage="https://zenodo.org/records/10519652",
    licence="CC BY 4.0",
    access="open; downloaded automatically where there is a network",
    download_size="4 MB (pneumoniamnist), 82 MB (chestmnist), 3 MB (retinamnist)",
    images="5,856, 112,120 and 1,600 images",
    citation="Yang et al., Scientific Data 10, 41 (2023), doi:10.1038/s41597-022-01721-8",
    tree="pneumoniamnist.npz  (or chestmnist.npz, retinamnist.npz: <flag>.npz)",
)


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds the subset, as MedMNIST calls it."""

    flag: Literal["pneumoniamnist", "chestmnist", "retinamnist"]


class Builder(builder.Builder):
    """Builds records with `labels` i8[K], 0 or 1; an ordinal subset's hold its grade, 0 to K-1, as `grade` too."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(Config(flag=flag) for flag in SUBSETS)

    @property
    def subset(self) -> Subset:
        return SUBSETS[self.builder_config.flag]

    @property
    def CHANNELS(self) -> int:  # a value of the base class that depends on the subset here
        return self.subset.channels

    def features(self):
        features = {"labels": tfds.features.Tensor(shape=(len(self.subset.classes),), dtype=np.int8)}
        return features | ({"grade": np.int32} if self.subset.task == "ordinal-regression" else {})

    def find(self, folder):
        path = folder / f"{self.builder_config.flag}.npz"
        return path if path.is_file() else None

    def download(self, manager):
        url = URL.format(flag=self.builder_config.flag)
        if not builder.reachable(url):
            return None
        path = Path(manager.download(url))
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != self.subset.md5:
            path.unlink()
            raise InputError(f"{url}: the download has the MD5 {found}, expected {self.subset.md5}; try again")
        return path

    def rows(self, path):
        arrays = read_arrays(path)
        check_arrays(path, arrays, self.subset)
        return {split: list(self.split_rows(path, key, arrays)) for split, key in SPLITS.items()}

    def split_rows(self, path: Path, key: str, arrays: Mapping[str, np.ndarray]) -> Iterator[builder.Row]:
        for index, (image, label) in enumerate(zip(arrays[f"{key}_images"], arrays[f"{key}_labels"])):
            name = f"{key}_{index:06d}"
            fields = {"labels": label.astype(np.int8)}
            if self.subset.task == "ordinal-regression":
                fields = {"labels": np.eye(len(self.subset.classes), dtype=np.int8)[label[0]], "grade": label[0]}
            yield builder.Row(name, name, image.reshape(*image.shape[:2], -1), f"{path}, {key}_images[{index}]", fields)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a MedMNIST file; raises InputError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # a damaged header makes zipfile, zlib and NumPy's parser raise all sorts
        raise InputError(f"{path}: no readable npz file ({error}); delete it and download it again") from error


def check_arrays(path: Path, arrays: Mapping[str, np.ndarray], subset: Subset) -> None:
    """Raises InputError if `{train,val,test}_{images,labels}` are not what a subset has."""
    width = len(subset.classes) if subset.task == "multi-label" else 1
    highest = len(subset.classes) - 1 if subset.task == "ordinal-regression" else 1
    colour = [3] if subset.channels == 3 else []
    for name in (f"{key}_{kind}" for key in SPLITS.values() for kind in ("images", "labels")):
        if name not in arrays:
            raise InputError(f"{path}: no array {name!r}; found {', '.join(sorted(arrays)) or 'none'}")
        array = arrays[name]
        found = f"{path}: {name} is {array.dtype}{list(array.shape)}"
        if name.endswith("images") and (array.dtype != np.uint8 or array.ndim < 3 or [*array.shape[3:]] != colour):
            raise InputError(f"{found}; expected uint8 [N, H, W{', 3' if colour else ''}]")
        if name.endswith("labels"):
            if array.dtype.kind not in "iu" or array.shape[1:] != (width,):
                raise InputError(f"{found}; expected integers [N, {width}]")
            if array.size and not 0 <= array.min() <= array.max() <= highest:
                wrong = array.max() if array.max() > highest else array.min()
                raise InputError(f"{path}: {name} holds {wrong}; expected 0 to {highest}")
    for key in SPLITS.values():
        count, labels = len(arrays[f"{key}_images"]), len(arrays[f"{key}_labels"])
        if count != labels:
            raise InputError(f"{path}: {count} {key}_images and {labels} {key}_labels; expected as many of both")


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels: those of the builder config's subset (default: pneumoniamnist)."""
    return SUBSETS[builder.choose_config(Builder, config).flag].classes


def read(example: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,C], labels f32[K]; of an ordinal subset target f32[1], the grade."""
    grade = {"target": np.float32([example["grade"]])} if "grade" in example else {}
    return {
        "image": images.decode(example["image"]),
        "labels": example["labels"].astype(np.float32),
        "id": example["id"],
        "patient_id": example["patient_id"],
        **grade,
    }


def phantom(root: Path, *, seed: int = 0, train: int = 160, validation: int = 32, test: int = 48) -> None:
    """Writes a `pneumoniamnist.npz` under `root` from generated radiographs: consolidation stands for pneumonia."""
    arrays = {}
    for number, (key, count) in enumerate({"train": train, "val": validation, "test": test}.items()):
        rng = np.random.default_rng([seed, number])
        # As in the original, about three images in four show pneumonia; both labels occur from the second image on.
        labels = np.append(np.array([1, 0]), rng.random(max(0, count - 2)) < 0.74)[:count].astype(np.uint8)
        seeds = rng.integers(2**31, size=count)
        drawn = pool.in_order(lambda job: phantom_image(*job), zip(seeds, labels))
        arrays |= {f"{key}_images": np.stack(list(drawn)), f"{key}_labels": labels[:, None]}
    Path(root).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(Path(root) / "pneumoniamnist.npz", **arrays)


def phantom_image(seed: int, pneumonia: int) -> np.ndarray:
    """A radiograph u8[28,28], drawn at 112x112 and averaged as the original images were."""
    image = chest.frontal(int(seed), findings={"Consolidation"} if pneumonia else (), size=112).image
    return images.to_uint8(cv2.resize(image, (28, 28), interpolation=cv2.INTER_AREA))
