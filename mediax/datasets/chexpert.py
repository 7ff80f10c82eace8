"""CheXpert: 224,316 chest radiographs of 65,240 patients with 14 findings, read from the reports by a labeler.

Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison", AAAI 2019
(arXiv:1901.07031). The test set's images come with CheXlocalize, Saporta et al., Nature Machine Intelligence 4 (2022).

Splits
  train   the official training patients but those of `tuning`; labels of the labeler: present, absent, uncertain, blank
  tuning  5 % of the official training patients, for choosing models without touching `valid`: `builder.held_out` with
          the salt "chexpert/tuning"; labels as in train. "train+tuning" is the official training set
  valid   the official validation set, 234 images of 200 patients; radiologists' labels, 0 or 1 only
  test    the official test set, 668 images of 500 patients; radiologists' labels, 0 or 1 only
A split whose files are not there is left out, the others are built.

Records keep the four label states, so that the policies of `read` are chosen without building again.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, catalog, images, label_states
from mediax.errors import InputError
from mediax.phantoms import chest, pool

CLASSES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
CLASS_SETS = {
    "all": CLASSES,
    "competition": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
}

SOURCE = builder.Source(
    title="CheXpert v1.0",
    homepage="https://stanfordmlgroup.github.io/competitions/chexpert",
    licence="Stanford University research use agreement: non-commercial, no redistribution",
    access="registration at Stanford AIMI",
    download_size="about 11 GB (small) or 440 GB (full resolution)",
    images="223,414 training, 234 validation and 668 test images",
    citation="Irvin et al., AAAI 2019, arXiv:1901.07031",
    tree="""
CheXpert-v1.0-small/            or CheXpert-v1.0/, or the four folders of the full release,
  train.csv  valid.csv          `CheXpert-v1.0 batch 1 (validate & csv)/` to `CheXpert-v1.0 batch 4 (train 3)/`
  train/patient00001/study1/view1_frontal.jpg
  valid/patient64541/study1/view1_frontal.jpg
CheXpert/                       for the test set, from CheXlocalize; groundtruth.csv serves too
  test_labels.csv
  test/patient64741/study1/view1_frontal.jpg
""",
)

# Tables that give a split, the preferred one first: CheXlocalize repeats the validation set, and its test table names
# each image where groundtruth.csv names studies.
TABLES = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "val_labels.csv"),
    "test": ("test_labels.csv", "groundtruth.csv"),
}
SEARCHED = re.compile(r"chexpert.*|chexlocalize.*|train|valid|val|test", re.IGNORECASE)
PATIENT = re.compile(r"patient\d+")
SEXES, PROJECTIONS = ("Female", "Male", "Unknown", ""), ("AP", "PA", "LL", "RL", "")


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds which views and which classes (all 14, or the 5 of the competition) are built."""

    views: Literal["all", "frontal", "lateral"] = "all"
    classes: Literal["all", "competition"] = "all"


class Release(NamedTuple):
    """What lies in a folder: the label tables of each split and, for each patient, the folders with that name."""

    tables: dict[str, Path]
    patients: dict[str, list[Path]]


class Builder(builder.Builder):
    """Builds records with `labels` (states i8[K]: 1, 0, -1 uncertain, -2 not mentioned), study, view, sex and age."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        Config(size=size, views=views, classes=classes)
        for size in (320, 128, 224, 512, None)
        for views in ("all", "frontal", "lateral")
        for classes in CLASS_SETS
    )

    def features(self):
        return {
            "labels": tfds.features.Tensor(shape=(len(CLASS_SETS[self.builder_config.classes]),), dtype=np.int8),
            "study_id": tfds.features.Text(),
            "view": tfds.features.Text(),  # frontal | lateral
            "projection": tfds.features.Text(),  # AP | PA | LL | RL, empty for lateral views and in the test set
            "sex": tfds.features.Text(),  # Female | Male | Unknown
            "age": np.float32,  # years, NaN in the test set
        }

    def find(self, folder):
        """Finds the tables and patients of every layout: small, full in one folder or in four, test set."""
        files: dict[str, list[Path]] = {name: [] for names in TABLES.values() for name in names}
        patients: dict[str, list[Path]] = {}
        search(folder, files, patients)
        for name, found in files.items():
            if len(found) > 1:
                raise InputError(f"chexpert: {name} lies in {' and in '.join(map(str, found))}: keep one release there")
        tables = {
            split: next((files[name][0] for name in names if files[name]), None) for split, names in TABLES.items()
        }
        tables = {split: path for split, path in tables.items() if path}
        return Release(tables, patients) if tables else None

    def rows(self, release):
        splits: dict[str, list[builder.Row]] = {"train": [], "tuning": [], "valid": [], "test": []}
        for split, table in release.tables.items():
            rows = list(self.table_rows(release, table))
            report_unlisted(table, {row.image for row in rows}, self.workers)
            for row in rows:
                if self.builder_config.views not in ("all", row.fields["view"]):
                    continue
                tuning = split == "train" and builder.held_out(row.patient_id, 0.05, salt="chexpert/tuning")
                splits["tuning" if tuning else split].append(row)
        return splits

    def table_rows(self, release: Release, table: Path) -> Iterator[builder.Row]:
        """The rows of one table, of all views."""
        kept = [CLASSES.index(name) for name in CLASS_SETS[self.builder_config.classes]]
        lines, states = read_labels(table)
        for (where, line), labels in zip(lines, states):
            for path in image_paths(release, table, where, line):
                patient, study = path.parts[-3:-1]
                view = (line.get("Frontal/Lateral") or path.stem.rpartition("_")[2]).lower()
                if view not in ("frontal", "lateral"):
                    raise InputError(f"{where}: the view is {view!r}, expected Frontal or Lateral")
                if line.get("Sex", "") not in SEXES or line.get("AP/PA", "") not in PROJECTIONS:
                    found = f"Sex {line.get('Sex', '')!r}, AP/PA {line.get('AP/PA', '')!r}"
                    raise InputError(f"{where}: {found}; expected {' or '.join(SEXES)}, {' or '.join(PROJECTIONS)}")
                fields = {
                    "labels": labels[kept],
                    "study_id": f"{patient}_{study}",
                    "view": view,
                    "projection": line.get("AP/PA", ""),
                    "sex": line.get("Sex") or "Unknown",
                    "age": builder.number(where, line, "Age"),
                }
                yield builder.Row(f"{patient}_{study}_{path.stem}", patient, path, where, fields)


def report_unlisted(table: Path, listed: Collection[Path], workers: int) -> None:
    """Logs how many images lie beside the listed ones, or beside their patients, that no line of the table names."""
    homes = {path.parents[2] for path in listed if path.is_file()}
    patients = [Path(entry.path) for home in homes for entry in os.scandir(home) if PATIENT.fullmatch(entry.name)]
    views = builder.in_order(lambda folder: list(folder.glob("study*/view*_*.[jJ][pP][gG]")), patients, workers)
    if unlisted := [path for found in views for path in found if path not in listed]:
        logging.warning("chexpert: left out %d images that %s does not list", len(unlisted), table)


def search(folder: Path, files: dict[str, list[Path]], patients: dict[str, list[Path]], depth: int = 5) -> None:
    """Collects CheXpert's tables and patient folders, looking only into folders with CheXpert's names."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        # Other datasets have a train.csv too, without these columns.
        if entry.name in files and {"Path", "Study"} & set(builder.table_columns(Path(entry.path))):
            files[entry.name].append(Path(entry.path))
        elif PATIENT.fullmatch(entry.name):
            patients.setdefault(entry.name, []).append(Path(entry.path))
        elif depth and SEARCHED.fullmatch(entry.name) and entry.is_dir():
            search(Path(entry.path), files, patients, depth - 1)


def read_labels(table: Path) -> tuple[list[tuple[str, dict[str, str]]], np.ndarray]:
    """Reads any of CheXpert's label tables; columns are found by name, in any order.

    Returns:
      The lines as (where, {column: text}), and their states i8[N,14] in the order of CLASSES.

    Raises:
      InputError: a column is missing, or a label is none of 1.0, 0.0, -1.0 and blank (integers are accepted).
    """
    lines = list(builder.read_table(table, required=CLASSES))
    states = [label_states.parse(where, line, CLASSES) for where, line in lines]
    return lines, np.asarray(states, np.int8).reshape(-1, len(CLASSES))


def image_paths(release: Release, table: Path, where: str, line: Mapping[str, str]) -> list[Path]:
    """The files that a line names: one image (`Path`), or the views of a study (`Study`).

    The leading folders of the name differ between the releases, and do not exist at all in the full release in four
    folders: the patient's folder decides. Of several, the one that lies closest to the table counts.
    """
    name = line.get("Path") or line.get("Study") or ""
    start = next((i for i, part in enumerate(name.split("/")) if PATIENT.fullmatch(part)), None)
    if start is None:
        raise InputError(
            f"{where}: {name!r} names no patient folder; expected .../patient00001/study1/view1_frontal.jpg"
        )
    patient, *rest = name.split("/")[start:]
    folders = release.patients.get(patient)
    if not folders:
        raise InputError(f"{where}: no folder {patient} was found near {table.parent}; is the download complete?")
    folder = max(folders, key=lambda folder: len(os.path.commonpath([folder, table])))
    path = folder.joinpath(*rest)
    if line.get("Path"):
        return [path]
    views = sorted(path.glob("view*_*.[jJ][pP][gG]"))
    if not views:
        raise InputError(f"{where}: {path} holds no image of the study; is the download complete?")
    return views


def classes(config=None, *, classes: str | None = None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels: its option `classes` ("all", "competition"), else those of the config."""
    chosen = classes or builder.choose_config(Builder, config).classes
    if chosen not in CLASS_SETS:
        raise InputError(f"chexpert: classes={chosen!r}: {catalog.suggestion(chosen, CLASS_SETS)}")
    return CLASS_SETS[chosen]


def read(
    example: Mapping[str, Any],
    *,
    classes: Literal["all", "competition"] | None = None,
    uncertainty: str | Mapping[str, str] = "ones",
    not_mentioned: Literal["absent", "unknown"] = "absent",
    seed: int = 0,
) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], labels f32[K] with 1 present, 0 absent, NaN unknown.

    Args:
      example: a record of `builder.Records`.
      classes: None gives the classes that were built.
      uncertainty, not_mentioned: the policies of `label_states.to_labels`; {class: policy} tells classes apart. `valid`
        and `test` have no uncertain and no blank labels.
      seed: of the smoothed labels, which follow from it, the image's id and the class alone.

    Raises:
      InputError: an unknown option, or classes that were not built.
    """
    built = next(names for names in CLASS_SETS.values() if len(names) == len(example["labels"]))
    states = dict(zip(built, example["labels"].tolist()))
    names = CLASS_SETS.get(classes, ()) if classes else built
    if not names or not set(names) <= set(built):
        raise InputError(f"chexpert: classes={classes!r} cannot be read from records of {len(built)} classes")
    labels = label_states.to_labels(
        {name: states[name] for name in names},
        known=CLASSES,
        uncertainty=uncertainty,
        not_mentioned=not_mentioned,
        seeds=(seed, example["id"]),
    )
    texts = {name: example[name] for name in ("id", "patient_id", "study_id", "view", "projection", "sex")}
    image = images.decode(example["image"])
    return {"image": image, "labels": labels, "age": np.float32(example["age"]), **texts}


# What the chest phantom's findings are called here, with what they imply.
PHANTOM_LABELS = {
    "Cardiomegaly": {"Cardiomegaly", "Enlarged Cardiomediastinum"},
    "Nodule": {"Lung Lesion", "Lung Opacity"},
    "Mass": {"Lung Lesion", "Lung Opacity"},
    "Consolidation": {"Consolidation", "Lung Opacity"},
    "Edema": {"Edema", "Lung Opacity"},
    "Atelectasis": {"Atelectasis", "Lung Opacity"},
}
# The views of a study; the first patients have the distribution's oddities: `view1` may be lateral, `view3` frontal.
PHANTOM_VIEWS = (
    ("frontal", "lateral"),
    ("lateral", "frontal"),
    ("frontal", "frontal", "lateral"),
    ("frontal", "lateral", "frontal"),
    *[("frontal",)] * 12,
)
SMALL, FULL, BATCH = "CheXpert-v1.0-small", "CheXpert-v1.0", "CheXpert-v1.0 batch"
# Release -> its splits: the folders that hold the patients, the table, and how the table's paths begin.
PHANTOM_LAYOUTS = {
    "small": {
        "train": ((f"{SMALL}/train",), f"{SMALL}/train.csv", f"{SMALL}/train"),
        "valid": ((f"{SMALL}/valid",), f"{SMALL}/valid.csv", f"{SMALL}/valid"),
    },
    "full": {
        "train": ((f"{FULL}/train",), f"{FULL}/train.csv", f"{FULL}/train"),
        "valid": ((f"{FULL}/valid",), f"{FULL}/valid.csv", f"{FULL}/valid"),
    },
    "full_batches": {
        "train": (
            (f"{BATCH} 2 (train 1)", f"{BATCH} 3 (train 2)", f"{BATCH} 4 (train 3)"),
            f"{BATCH} 1 (validate & csv)/train.csv",
            f"{FULL}/train",
        ),
        "valid": (
            (f"{BATCH} 1 (validate & csv)/valid",),
            f"{BATCH} 1 (validate & csv)/valid.csv",
            f"{FULL}/valid",
        ),
    },
    "test": {
        "valid": (("CheXpert/val",), "CheXpert/val_labels.csv", "val"),
        "test": (("CheXpert/test",), "CheXpert/test_labels.csv", "test"),
    },
}
PHANTOM_FIRST = {"train": 1, "valid": 64541, "test": 64741}  # number of the first patient
# The radiologists' files of the test release have two columns in another order, and none about the patient.
TEST_CLASSES = (*CLASSES[:3], "Lung Lesion", "Lung Opacity", *CLASSES[5:])
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CLASSES)


class PhantomImage(NamedTuple):
    """One image to be drawn; `columns` are its texts in the label tables but for the path."""

    rank: int  # of the patient in the split
    path: str  # below the folder of the split
    columns: dict[str, str]
    draw: Callable[..., chest.Radiograph]


def phantom(
    root: Path,
    *,
    seed: int = 0,
    patients: int = 48,
    valid_patients: int = 12,
    test_patients: int = 12,
    release: str | Sequence[str] = ("small", "test"),
    size: int = 160,
) -> None:
    """Writes generated radiographs under `root`, laid out as CheXpert is, oddities included.

    The first patients of a split show each finding of `chest.FINDINGS` once, the next one none, the others random ones.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/chexpert`.
      patients, valid_patients, test_patients: how many there are in each split, about 2.7, 1.3 and 1.3 images each.
      release: "small", "full" (one folder), "full_batches" (four folders), "test" (with CheXlocalize), or several.
      size: short side of the images in pixels; about 320 in the small release.
    """
    counts = {"train": patients, "valid": valid_patients, "test": test_patients}
    for name in (release,) if isinstance(release, str) else release:
        if name not in PHANTOM_LAYOUTS:
            raise InputError(f"chexpert: release={name!r}: {catalog.suggestion(name, PHANTOM_LAYOUTS)}")
        for split, (folders, table, prefix) in PHANTOM_LAYOUTS[name].items():
            drawn = [image for rank in range(counts[split]) for image in phantom_patient(seed, split, rank)]
            shape = (round(size * 390 / 320), size)
            radiographs = pool.in_order(lambda image, shape=shape: image.draw(size=shape), drawn)
            for image, radiograph in zip(drawn, radiographs):
                path = Path(root) / folders[image.rank * len(folders) // counts[split]] / image.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(images.encode(images.to_uint8(radiograph.image[..., None]), "jpeg90"))
            lines = [{"Path": f"{prefix}/{image.path}", **image.columns} for image in drawn]
            builder.write_table(Path(root) / table, ("Path", *TEST_CLASSES) if name == "test" else COLUMNS, lines)
            if split == "test":
                studies = {image.path.rpartition("/")[0]: image.columns for image in drawn}
                lines = [{"Study": f"{FULL}/test/{study}", **columns} for study, columns in studies.items()]
                builder.write_table(
                    Path(root) / "groundtruth.csv", ("Study", *TEST_CLASSES), lines, final_newline=False
                )


def phantom_patient(seed: int, split: str, rank: int) -> Iterator[PhantomImage]:
    """The images of one patient; a few of the first training patients have what is rare in the real tables."""
    number, train = PHANTOM_FIRST[split] + rank, split == "train"
    rng = np.random.default_rng([seed, number])
    patient = chest.sample_patient(int(rng.integers(2**31)))
    sex, age, projections = patient.sex, int(patient.age), ("AP", "AP", "AP", "AP", "PA")
    if train:
        sex, age = "Unknown" if rank == 2 else sex, 0 if rank == 3 else age
        projections = {5: ("LL",), 6: ("RL",)}.get(rank, projections)
    for study in range(1, 1 + (int(rng.integers(1, 4)) if train else 1)):
        findings = chest.sample_findings(rng)
        if study == 1 and rank <= len(chest.FINDINGS):
            findings = frozenset(chest.FINDINGS[rank : rank + 1])
        severity = float(rng.random())
        labels = phantom_labels(rng, split, findings, severity)
        views = PHANTOM_VIEWS[rank if study == 1 and rank < 4 else int(rng.integers(len(PHANTOM_VIEWS)))]
        for view, kind in enumerate(views, 1):
            projection = str(rng.choice(projections)) if kind == "frontal" else ""
            drawing = {"patient": patient, "findings": findings, "severity": severity}
            if kind == "frontal":
                drawing["view"] = "PA" if projection == "PA" else "AP"
            yield PhantomImage(
                rank=rank,
                path=f"patient{number:05d}/study{study}/view{view}_{kind}.jpg",
                columns={"Sex": sex, "Age": str(age), "Frontal/Lateral": kind.title(), "AP/PA": projection, **labels},
                draw=functools.partial(getattr(chest, kind), int(rng.integers(2**31)), **drawing),
            )


def phantom_labels(rng: np.random.Generator, split: str, findings: frozenset[str], severity: float) -> dict[str, str]:
    """The label texts of a study: complete in `valid` and `test`; in `train` with blanks and, mostly where a finding is
    subtle, uncertain ones."""
    truth = set().union(*(PHANTOM_LABELS.get(finding, {finding}) for finding in findings))
    if "Consolidation" in truth and rng.random() < 0.4:
        truth.add("Pneumonia")
    if not truth - {"Support Devices"}:
        truth.add("No Finding")
    if split != "train":
        yes, no = ("1", "0") if split == "test" else ("1.0", "0.0")
        return {name: yes if name in truth else no for name in CLASSES}
    labels = {}
    for name, chance in zip(CLASSES, rng.random(len(CLASSES))):
        if name in truth:
            labels[name] = "-1.0" if chance < 0.5 * (1 - severity) and name != "No Finding" else "1.0"
        else:
            labels[name] = "" if chance < 0.8 or name == "No Finding" else "0.0" if chance < 0.99 else "-1.0"
    return labels
