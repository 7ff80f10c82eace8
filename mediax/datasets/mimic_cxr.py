"""MIMIC-CXR-JPG: 377,110 chest radiographs of 227,835 studies with 14 findings, read from the reports by two labelers.

Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs", 2019
(arXiv:1901.07042); doi:10.13026/jsn5-t979 (2.1.0), doi:10.13026/8360-t248 (2.0.0).

Splits: the official ones of the split table, by patient: `train` (368,960 images), `validate` (2,991), `test` (5,159).

Labels are those of a study, given to each of its images, frontal or lateral; the builder config `labeler` chooses them:
  chexpert     CheXpert's labeler, on all studies
  negbio       NegBio's labeler, on all studies
  radiologist  a radiologist's reading of 687 reports (release 2.1.0), to measure the labelers with; only the images of
               these studies are built, in their official splits
Images of a study without a line in the table of labels are left out and counted; a few studies of the real set have
none.

Records keep the four label states, so that the policies of `read` are chosen without building again. The classes are in
CheXpert's order. Views: AP and PA count as frontal, LATERAL and LL as lateral; a rarer projection is neither, and where
the column is blank the view is "unknown".
"""

import dataclasses
import functools
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, catalog, images, label_states, raw_files
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
    title="MIMIC-CXR-JPG 2.0.0 or 2.1.0",
    homepage="https://physionet.org/content/mimic-cxr-jpg/",
    licence="PhysioNet Credentialed Health Data License: no redistribution",
    access="PhysioNet credentials, CITI training and a signed data use agreement",
    download_size="about 570 GB",
    images="377,110 images of 227,835 studies",
    citation="Johnson et al. 2019, arXiv:1901.07042; Goldberger et al. 2000 (PhysioNet)",
    tree="""
mimic-cxr-2.0.0-split.csv.gz  mimic-cxr-2.0.0-metadata.csv.gz
mimic-cxr-2.0.0-chexpert.csv.gz  mimic-cxr-2.0.0-negbio.csv.gz      (each gzipped or not)
mimic-cxr-2.1.0-test-set-labeled.csv                                (release 2.1.0, for labeler=radiologist)
files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg
    or all of it below physionet.org/files/mimic-cxr-jpg/2.1.0/, as wget leaves it
""",
)

# The tables keep 2.0.0 in their names in release 2.1.0.
TABLES = {
    "split": "mimic-cxr-*-split.csv*",
    "metadata": "mimic-cxr-*-metadata.csv*",
    "chexpert": "mimic-cxr-*-chexpert.csv*",
    "negbio": "mimic-cxr-*-negbio.csv*",
    "radiologist": "mimic-cxr-*-test-set-labeled.csv*",
}
SPLITS = ("train", "validate", "test")
VIEWS = {"AP": "frontal", "PA": "frontal", "LATERAL": "lateral", "LL": "lateral", "": "unknown"}
PATIENT_FOLDERS = r"p\d\d|p\d{8}"  # ten folders with 65,379 others


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds whose labels, which views and which classes (all 14, or CheXpert's competition's 5) are built."""

    labeler: Literal["chexpert", "negbio", "radiologist"] = "chexpert"
    views: Literal["all", "frontal", "lateral"] = "all"
    classes: Literal["all", "competition"] = "all"


class Builder(builder.Builder):
    """Builds records with `labels` (states i8[K]: 1, 0, -1 uncertain, -2 not mentioned), study, view and projection."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        Config(size=size, labeler=labeler, views=views, classes=classes)
        for size in (512, 128, 224, 320, None)
        for labeler in ("chexpert", "negbio", "radiologist")
        for views in ("all", "frontal", "lateral")
        for classes in CLASS_SETS
    )

    def features(self):
        return {
            "labels": tfds.features.Tensor(shape=(len(CLASS_SETS[self.builder_config.classes]),), dtype=np.int8),
            "study_id": tfds.features.Text(),
            "view": tfds.features.Text(),  # frontal | lateral | other | unknown
            "projection": tfds.features.Text(),  # as in the table: AP, PA, LATERAL, LL, rarer ones, or empty
        }

    def find(self, folder):
        """Finds the tables in the bare folder or as deep as wget makes it; a table twice is an error."""
        files = list(raw_files.walk(folder, depth=5, closed=PATIENT_FOLDERS))
        tables = {
            name: raw_files.only([path for path in files if raw_files.matches(path, pattern)], f"mimic_cxr: {pattern}")
            for name, pattern in TABLES.items()
        }
        return tables if tables["split"] else None

    def rows(self, tables):
        config = self.builder_config
        for name in ("metadata", config.labeler):
            if not tables[name]:
                raise InputError(f"mimic_cxr: no {TABLES[name]} lies near {tables['split']}; download it too")
        studies = read_states(tables[config.labeler], CLASS_SETS[config.classes])
        projections = read_projections(tables["metadata"])
        splits: dict[str, list[builder.Row]] = {split: [] for split in SPLITS}
        unlabelled, listed = set(), set()
        for where, line in builder.read_table(
            tables["split"], required=("dicom_id", "study_id", "subject_id", "split")
        ):
            if line["split"] not in SPLITS:
                raise InputError(f"{where}: split is {line['split']!r}: {catalog.suggestion(line['split'], SPLITS)}")
            listed.add(line["dicom_id"])
            if line["dicom_id"] not in projections:
                raise InputError(f"{where}: {line['dicom_id']} is not in {tables['metadata']}; download both again")
            projection = projections[line["dicom_id"]]
            view = VIEWS.get(projection, "other")
            if config.views not in ("all", view):
                continue
            if line["study_id"] not in studies:
                unlabelled.add(line["study_id"])
                continue
            fields = {"study_id": line["study_id"], "view": view, "projection": projection}
            fields["labels"] = study_labels(where, line, studies)
            path = image_path(tables["split"].parent, line)
            splits[line["split"]].append(builder.Row(line["dicom_id"], line["subject_id"], path, where, fields))
        if unlisted := projections.keys() - listed:
            raise InputError(
                f"{tables['split']}: {min(unlisted)} is absent, as are {len(unlisted)} images of "
                f"{tables['metadata']} in all; download both again"
            )
        if unlabelled:
            logging.warning(
                "mimic_cxr: left out %d studies that %s does not label", len(unlabelled), tables[config.labeler]
            )
        return splits


class Study(NamedTuple):
    """The labels of a study; the radiologist's table names no patient."""

    where: str
    patient_id: str | None
    states: np.ndarray


def read_states(table: Path, names: tuple[str, ...]) -> dict[str, Study]:
    """Reads a table of labels by study; its columns are found by name, in any order."""
    # The radiologist's table calls one column as the Fleischner society does.
    columns = ["Lung Opacity" if name == "Airspace Opacity" else name for name in builder.table_columns(table)]
    studies: dict[str, Study] = {}
    for where, line in builder.read_table(table, header=columns, required=("study_id", *names)):
        study = line["study_id"]
        if study in studies:
            raise InputError(f"{where}: study {study} was labelled before, by {studies[study].where}; keep one line")
        studies[study] = Study(where, line.get("subject_id"), np.array(label_states.parse(where, line, names), np.int8))
    return studies


def study_labels(where: str, line: Mapping[str, str], studies: Mapping[str, Study]) -> np.ndarray:
    """The states of an image's study; raises InputError if its table names another patient."""
    study = studies[line["study_id"]]
    if study.patient_id not in (None, line["subject_id"]):
        raise InputError(
            f"{where}: study {line['study_id']} of patient {line['subject_id']}, by {study.where} of patient "
            f"{study.patient_id}; download the tables of one release"
        )
    return study.states


def read_projections(table: Path) -> dict[str, str]:
    """Image -> its ViewPosition, which may be blank."""
    lines = builder.read_table(table, required=("dicom_id", "ViewPosition"))
    return {line["dicom_id"]: line["ViewPosition"].upper() for _, line in lines}


def image_path(folder: Path, line: Mapping[str, str]) -> Path:
    """Where an image lies beside the tables: files/p10/p10000032/s50414267/<image>.jpg."""
    patient, study, name = (line[column] for column in ("subject_id", "study_id", "dicom_id"))
    return folder / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{name}.jpg"


def classes(config=None, *, classes: str | None = None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels: its option `classes` ("all", "competition"), else those of the config."""
    chosen = classes or builder.choose_config(Builder, config).classes
    if chosen not in CLASS_SETS:
        raise InputError(f"mimic_cxr: classes={chosen!r}: {catalog.suggestion(chosen, CLASS_SETS)}")
    return CLASS_SETS[chosen]


def read(
    record: Mapping[str, Any],
    *,
    classes: Literal["all", "competition"] | None = None,
    uncertainty: str | Mapping[str, str] = "ones",
    not_mentioned: Literal["absent", "unknown"] = "absent",
    seed: int = 0,
) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], labels f32[K] with 1 present, 0 absent, NaN unknown.

    Args:
      record: a record of `builder.Records`.
      classes: None gives the classes that were built.
      uncertainty, not_mentioned: the policies of `label_states.to_labels`; {class: policy} tells classes apart. All
        splits have uncertain and blank labels.
      seed: of the smoothed labels, which follow from it, the image's id and the class alone.

    Raises:
      InputError: an unknown option, or classes that were not built.
    """
    built = next(names for names in CLASS_SETS.values() if len(names) == len(record["labels"]))
    states = dict(zip(built, record["labels"].tolist()))
    names = CLASS_SETS.get(classes, ()) if classes else built
    if not names or not set(names) <= set(built):
        raise InputError(f"mimic_cxr: classes={classes!r} cannot be read from records of {len(built)} classes")
    labels = label_states.to_labels(
        {name: states[name] for name in names},
        known=CLASSES,
        uncertainty=uncertainty,
        not_mentioned=not_mentioned,
        seeds=(seed, record["id"]),
    )
    texts = {name: record[name] for name in ("study_id", "view", "projection")}
    return {**builder.example_of(record), "labels": labels, **texts}


# What the chest phantom's findings are called here, with what they imply.
PHANTOM_LABELS = {
    "Cardiomegaly": {"Cardiomegaly", "Enlarged Cardiomediastinum"},
    "Nodule": {"Lung Lesion", "Lung Opacity"},
    "Mass": {"Lung Lesion", "Lung Opacity"},
    "Consolidation": {"Consolidation", "Lung Opacity"},
    "Edema": {"Edema", "Lung Opacity"},
    "Atelectasis": {"Atelectasis", "Lung Opacity"},
}
# The projections of a study; the first studies have what is rarer: a blank, a rare projection, several laterals.
PHANTOM_PROJECTIONS = (
    ("PA", "LATERAL"),
    ("",),
    ("AP", "LL"),
    ("AP", "AP AXIAL"),
    *[("AP",), ("AP",), ("PA",)] * 4,
)
METADATA_COLUMNS = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
PHANTOM_FOLDERS = {"bare": "", "wget": "physionet.org/files/mimic-cxr-jpg"}
PHANTOM_PATIENT, PHANTOM_STUDY = 10_000_032, 50_414_267  # the first ids of the real set
PHANTOM_SHAPES = ((1.0, 0.82), (0.82, 1.0))  # height and width, relative to the longer side


class PhantomImage(NamedTuple):
    """One image to be drawn; `line` holds its texts in the tables of images, `findings` are the phantom's."""

    line: dict[str, str]
    findings: frozenset[str]
    draw: Callable[[], chest.Radiograph]


def phantom(
    root: Path,
    *,
    seed: int = 0,
    patients: int = 12,
    validate_patients: int = 4,
    test_patients: int = 8,
    release: Literal["2.0.0", "2.1.0"] = "2.1.0",
    layout: Literal["bare", "wget"] = "bare",
    gzipped: bool = True,
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as MIMIC-CXR-JPG is, oddities included.

    The first patients of a split show each finding of `chest.FINDINGS` once, the next one none. The last training study
    has no labels.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/mimic_cxr`.
      patients, validate_patients, test_patients: how many there are in each split, about 1.6 images each.
      release: 2.1.0 adds the radiologist's table, with half of the test studies.
      layout: the bare folder, or below physionet.org/ as wget leaves it.
      gzipped: whether the tables are.
      size: longer side of the images in pixels; about 3,000 in the real set.
    """
    for option, value, valid in (("release", release, ("2.0.0", "2.1.0")), ("layout", layout, PHANTOM_FOLDERS)):
        if value not in valid:
            raise InputError(f"mimic_cxr: {option}={value!r}: {catalog.suggestion(value, valid)}")
    folder = Path(root) / PHANTOM_FOLDERS[layout] / (release if layout == "wget" else "")
    counts = {"train": patients, "validate": validate_patients, "test": test_patients}
    people = [(split, rank) for split, count in counts.items() for rank in range(count)]
    drawn = [
        image
        for number, (split, rank) in enumerate(people)
        for image in phantom_patient(seed, number, split, rank, size)
    ]
    for image, radiograph in zip(drawn, pool.in_order(lambda image: image.draw(), drawn)):
        path = image_path(folder, image.line)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode(images.to_uint8(radiograph.image[..., None]), "jpeg95"))
        image.line["Rows"], image.line["Columns"] = map(str, radiograph.image.shape)
    write_phantom_tables(folder, drawn, seed, release)
    if gzipped:
        for path in folder.glob("mimic-cxr-2.0.0-*.csv"):
            # Without a time, so that two phantoms are equal.
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()


def phantom_patient(seed: int, number: int, split: str, rank: int, size: int) -> Iterator[PhantomImage]:
    """The images of one patient, number `rank` of its split."""
    rng = np.random.default_rng([seed, number])
    person = chest.sample_patient(int(rng.integers(2**31)))
    for study in range(1 + (rank % 4 == 1)):
        findings = chest.sample_findings(rng)
        if study == 0 and rank <= len(chest.FINDINGS):
            findings = frozenset(chest.FINDINGS[rank : rank + 1])
        first = rank < 4 and study == 0
        projections = PHANTOM_PROJECTIONS[rank if first else int(rng.integers(len(PHANTOM_PROJECTIONS)))]
        for projection in projections:
            line = {
                "dicom_id": "-".join(f"{part:08x}" for part in rng.integers(2**32, size=5)),
                "subject_id": str(PHANTOM_PATIENT + 7 * number),
                "study_id": str(PHANTOM_STUDY + 11 * number + study),
                "split": split,
                "ViewPosition": projection,
            }
            height, width = (round(size * side) for side in PHANTOM_SHAPES[int(rng.integers(2))])
            drawing = {"patient": person, "findings": findings, "size": (height, width)}
            if VIEWS.get(projection) != "lateral":
                drawing["view"] = "PA" if projection == "PA" else "AP"
            draw = chest.frontal if "view" in drawing else chest.lateral
            yield PhantomImage(line, findings, functools.partial(draw, int(rng.integers(2**31)), **drawing))


def write_phantom_tables(folder: Path, drawn: Sequence[PhantomImage], seed: int, release: str) -> None:
    """Writes all tables of a release, not gzipped."""
    lines = [image.line for image in drawn]
    builder.write_table(folder / "mimic-cxr-2.0.0-split.csv", ("dicom_id", "study_id", "subject_id", "split"), lines)
    builder.write_table(folder / "mimic-cxr-2.0.0-metadata.csv", METADATA_COLUMNS, lines)
    studies = {image.line["study_id"]: image for image in drawn}
    last = [image.line["study_id"] for image in drawn if image.line["split"] == "train"][-1]
    columns = ("subject_id", "study_id", *sorted(CLASSES))
    for number, labeler in enumerate(("chexpert", "negbio")):
        rng = np.random.default_rng([seed, 9000 + number])
        labels = [image.line | phantom_labels(rng, image.findings) for image in studies.values()]
        labelled = [line for line in labels if line["study_id"] != last]
        builder.write_table(folder / f"mimic-cxr-2.0.0-{labeler}.csv", columns, labelled)
    if release == "2.1.0":
        test = [image for image in studies.values() if image.line["split"] == "test"][::2]
        read = [image.line | phantom_labels(None, image.findings) for image in test]
        renamed = [{**line, "Airspace Opacity": line["Lung Opacity"]} for line in read]
        names = ["Airspace Opacity" if name == "Lung Opacity" else name for name in CLASSES[1:]]
        builder.write_table(
            folder / "mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id", *names, "No Finding"), renamed
        )


def phantom_labels(labeler: np.random.Generator | None, findings: frozenset[str]) -> dict[str, str]:
    """The label texts of a study: of a labeler, who is at times uncertain, or without one the truth."""
    truth = set().union(*(PHANTOM_LABELS.get(finding, {finding}) for finding in findings))
    if not truth - {"Support Devices"}:
        truth.add("No Finding")
    if labeler is None:
        return {name: "1.0" if name in truth else "0.0" for name in CLASSES}
    labels = {}
    for name, chance in zip(CLASSES, labeler.random(len(CLASSES))):
        if name in truth:
            labels[name] = "-1.0" if chance < 0.2 and name != "No Finding" else "1.0"
        else:
            labels[name] = "" if chance < 0.8 or name == "No Finding" else "0.0" if chance < 0.98 else "-1.0"
    return labels
