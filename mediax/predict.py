"""Runs a finished run's network on image files: `python -m mediax.predict --workdir=RUN FILES_OR_FOLDERS... --out=DIR`.

DIR gets, of every file in its own pixels:
  predictions.csv             a line for each file: its name, what the tasks say of it, and the names of its pictures
  overlays/<name>.png         the image with what was found drawn onto it
  masks/<name>/<structure>.png    0 and 255; beside them <name>_seg.dcm, if the file is DICOM and highdicom installed
  boxes.json                  all boxes in COCO's format: images, categories, annotations with scores
  failed.csv                  the files that could not be read or are not there, and why
Masks are empty outside of a fundus photograph's field of view, if the dataset of the run knows that of its images.
A file is taken by itself: eyes that a task grades in `pairs` are graded one by one, which is said once, on stderr.
What an earlier call left in DIR of the same names is removed first, with its tables; nothing else is.
The tables are written last: where predictions.csv is, the command has come to its end. Nothing names a patient but the
files' own names.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from mediax import (
    annotations,
    builder,
    convert,
    dicom_segmentation,
    experiment,
    images,
    inference,
    outlines,
    rle,
    run,
    sharding,
    transforms,
)
from mediax.batch import Batch
from mediax.checkpoint import Checkpoints
from mediax.errors import CorruptImageError, InputError
from mediax.experiment import Reading
from mediax.files import expanded, naming_file, replace_file
from mediax.findings import Findings, joined
from mediax.model import Tree
from mediax.progress import Progress
from mediax.train import Training

if TYPE_CHECKING:  # importing pydicom takes a second, which other images can spare
    from mediax import dicom

TABLES = ("predictions.csv", "boxes.json", "failed.csv")
LONGEST_NAME = 150  # bytes, of a file system's 255
COLOURED = 0.04  # of the range: how far the channels of an image differ on average from which on it is one in colour


class File(NamedTuple):
    """A file to predict on, and the name that its results have."""

    path: Path
    name: str


class Failure(NamedTuple):
    """A file that gave no result, or not all of it."""

    path: Path
    reason: str


class Opened(NamedTuple):
    """A file that was read: how it looks, u8[H,W,C], for each stream what the network sees of it, and what to say."""

    file: File
    shown: np.ndarray
    examples: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str] = ()


@dataclass
class Result:
    """What one file gave."""

    file: File
    size: tuple[int, int]
    columns: dict[str, Any]
    boxes: list[dict[str, Any]] = field(default_factory=list)
    labels: Sequence[str] = ()
    notes: Sequence[str] = ()
    failure: Failure | None = None


def predict(network: "Network", sources: Sequence[str | Path], out: Path) -> int:
    """Predicts on files and writes into `out` what the module's docstring lists.

    Args:
      network: of a finished run.
      sources: files, and folders that are searched for images.
      out: where results go.

    Returns:
      How many files failed, absent ones and folders without images among them; each is named on stderr and in
      failed.csv.

    Raises:
      InputError: no file at all to predict on, or no place to write to.
    """
    found, failures = find(sources, outside=out.resolve())
    files = name_files(found)
    absent = [safe_name(_without_suffix(failure.path.name)) for failure in failures if not failure.path.exists()]
    clear(out, [*(file.name for file in files), *absent], keep=[file.path for file in files])
    _say(network.notes())
    workers = len(os.sched_getaffinity(0))
    opened = builder.in_order(network.open, files, workers)
    results = builder.in_order(Writer(out, network.version), network.results(opened), workers)
    done: list[Result] = []
    _say(failure.reason for failure in failures)
    with Progress(len(files)) as progress:
        for number, result in enumerate(results, start=1):
            failure, notes = (result, ()) if isinstance(result, Failure) else (result.failure, result.notes)
            if failure:
                failures.append(failure)
                notes = [*notes, failure.reason]
            if notes:
                with progress.pause():
                    _say(notes)
            if isinstance(result, Result):
                done.append(result)
            progress.update(number, images=1)
    write_tables(out, done, failures)
    print(f"{len(done)} files predicted on, {len(failures)} failed: {out}")
    return len(failures)


def _say(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(f"mediax: {sentence}", file=sys.stderr, flush=True)


class Network:
    """The best checkpoint of a run, ready to say what it finds in files.

    Args:
      workdir: the run's folder.
      task: the only task to use, as the config calls it or as `<stream>/<task>`.
      evaluation: as whose images files are read, and whose thresholds are taken; see `experiment.compose_for_files`.
      device_batch: images that a device takes at once.

    Raises:
      InputError: no checkpoint, no calibration, or no such task.
    """

    def __init__(self, workdir: Path, *, task: str = "", evaluation: str = "", device_batch: int = 8):
        workdir = Path(workdir)
        if not (workdir / "checkpoints" / "best").is_dir():
            raise InputError(f"{workdir}: holds no finished run (no checkpoints/best); give the --workdir of one")
        checkpoints = Checkpoints(workdir, "best")
        config = checkpoints.config()
        checkpoints.close()
        calibration = Calibration.read(workdir)
        training, readings = experiment.compose_for_files(calibration.config(config), workdir, evaluation)
        self._readings = choose_task(readings, task)
        self._calibration = calibration.of(self._readings)
        state, step = run.best_state(training, workdir)
        self._variables = state.evaluated()
        self._mesh = training.mesh
        self._rows = device_batch * training.mesh.size
        self._steps = {stream: make_predict_step(training, reading) for stream, reading in self._readings.items()}
        self._pipelines = {
            stream: transforms.build(reading.transform, keep_geometry=True)
            for stream, reading in self._readings.items()
        }
        self.version = f"{workdir.resolve().name}, step {step}"

    def notes(self) -> list[str]:
        """What a task does with files otherwise than with the images of a dataset, a sentence each."""
        tasks = [task for reading in self._readings.values() for task in reading.tasks.values()]
        return [
            f"task {task.name!r}: `pairs` is not used: files name no patients, so each is graded by itself, by "
            "thresholds for single images"
            for task in tasks
            if getattr(task, "pairs", False)
        ]

    def open(self, file: File) -> Opened | Failure:
        """Reads a file as the run's datasets read theirs; in a thread."""
        try:
            shown, notes = displayed(file.path)
            examples = {
                stream: self._pipelines[stream](example(reading.builder, file.path, shown), np.random.default_rng(0))
                for stream, reading in self._readings.items()
            }
        except InputError as error:
            return Failure(file.path, " ".join(str(error).split()))
        except OSError as error:
            return Failure(file.path, f"{file.path}: cannot be read ({error.strerror or error})")
        return Opened(file, shown, examples, notes)

    def results(self, opened: Iterable[Opened | Failure]) -> Iterator[tuple[Opened, Findings] | Failure]:
        """Puts files of the same shape together into batches, and passes failures on."""
        for shapes, group in itertools.groupby(opened, key=_shapes):
            if shapes is None:
                yield from group
            while shapes and (batch := list(itertools.islice(group, self._rows))):
                yield from zip(batch, self.find(batch))

    def find(self, opened: Sequence[Opened]) -> list[Findings]:
        """Gives what was found in each of up to a batch of files, in the pixels of the files."""
        found: list[list[Findings]] = [[] for _ in opened]
        for stream, reading in self._readings.items():
            examples = [each.examples[stream] for each in opened]
            predictions = self._run(stream, [each["image"] for each in examples])
            for name, task in reading.tasks.items():
                prefix = self._prefix(stream, name)
                calibration = self._calibration[stream][name]
                for row, each in enumerate(examples):
                    size = each["image"].shape[:2]
                    findings = task.findings(predictions[name], calibration, row, size)
                    original_size = tuple(each["original_size"].tolist())
                    findings = findings.moved_back(each["geometry"], size, original_size)
                    # Outside of it, where the loss and the metrics do not look, a network says anything.
                    found[row].append(findings.inside(each.get("original_field_of_view")).named(prefix))
        return [joined(each) for each in found]

    def _run(self, stream: str, pictures: Sequence[np.ndarray]) -> Tree:
        image = np.zeros((self._rows, *pictures[0].shape), np.float32)
        image[: len(pictures)] = pictures
        batch = {"image": image, "valid": np.arange(self._rows) < len(pictures)}
        try:
            return jax.device_get(self._steps[stream](*self._variables, sharding.to_device(batch, self._mesh)))
        except KeyError as error:
            raise InputError(
                f"a task of the stream {stream!r} needs the field {error} of a batch, which an image file alone does "
                "not give; choose another task with --task"
            ) from error

    def _prefix(self, stream: str, task: str) -> str:
        """What tells the findings of a task from those of others: nothing if there are none."""
        names = [(stream, task) for stream, reading in self._readings.items() for task in reading.tasks]
        if len(names) == 1:
            return ""
        return f"{task}/" if sum(task == other for _, other in names) == 1 else f"{stream}/{task}/"


def _shapes(opened: Opened | Failure) -> tuple | None:
    if isinstance(opened, Failure):
        return None
    return tuple(example["image"].shape for example in opened.examples.values())


def choose_task(readings: Mapping[str, Reading], task: str) -> dict[str, Reading]:
    """Keeps the streams and tasks that have the name `task`, all if it is empty; each must say what it finds."""
    kept = {}
    for stream, reading in readings.items():
        named = {name: one for name, one in reading.tasks.items() if task in ("", name, f"{stream}/{name}")}
        for name, one in named.items():
            if not hasattr(one, "findings"):
                raise InputError(
                    f"task {stream}/{name} has no method `findings`: it cannot say what it finds in a file"
                )
        if named:
            kept[stream] = dataclasses.replace(reading, tasks=named)
    if not kept:
        valid = [f"{stream}/{name}" for stream, reading in readings.items() for name in reading.tasks]
        raise InputError(f"--task: the run has no task {task!r}; expected one of {', '.join(valid)}")
    return kept


@dataclass(frozen=True)
class Calibration:
    """The thresholds of a run, and what else its tasks chose on validation data, from its calibration.json."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, workdir: Path) -> "Calibration":
        """Reads the file; raises InputError if it is absent or damaged, or does not say how images were seen."""
        self = cls(workdir / "calibration.json", {})
        try:
            content = json.loads(self.path.read_text())
        except FileNotFoundError:
            raise self._error("absent, so the run's thresholds are unknown") from None
        except (OSError, ValueError) as error:
            raise self._error(f"no readable JSON file ({error})") from error
        if not isinstance(content, dict) or run.CALIBRATED_UNDER not in content:
            raise self._error("of an older version, which does not say with what evaluations thresholds were chosen")
        return cls(self.path, content)

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The run's config with the evaluations that the thresholds are from: the last ones, not those of training."""
        return {**config, "evaluations": self.content[run.CALIBRATED_UNDER]}

    def of(self, readings: Mapping[str, Reading]) -> dict[str, dict[str, Any]]:
        """What holds for each task: {stream: {task: calibration}}."""
        try:
            return {
                stream: {name: self.content[reading.evaluation][name] for name in reading.tasks}
                for stream, reading in readings.items()
            }
        except (KeyError, TypeError) as error:
            raise self._error(f"lacks {error}, an evaluation or a task of the run") from None

    def _error(self, reason: str) -> InputError:
        return InputError(
            f"{self.path}: {reason}; write it with the command that made the run and --mode=evaluate "
            f"--workdir={self.path.parent}"
        )


def make_predict_step(training: Training, reading: Reading):
    """Builds the jitted step (params, batch_stats, batch) -> {task: predictions} of images alone."""

    def predict_step(params: Tree, batch_stats: Tree, batch: Batch) -> Tree:
        outputs = inference.forward(training.model, reading.tasks, params, batch_stats, batch, reading.views)
        return {name: task.predict(outputs[name], batch) for name, task in reading.tasks.items()}

    return jax.jit(predict_step, out_shardings=sharding.replicated(training.mesh))


# Files.


def find(sources: Sequence[str | Path], *, outside: Path) -> tuple[list[tuple[Path, Path]], list[Failure]]:
    """Finds the files to predict on as `convert.find` does, and which sources gave none.

    Raises InputError if none gave any.
    """
    found, failures = [], []
    for source in sources:
        try:
            found += convert.find([source], outside=outside)
        except InputError as error:
            failures.append(Failure(Path(source), str(error)))
    if not found:
        raise InputError("; ".join(failure.reason for failure in failures))
    return found, failures


def name_files(found: Iterable[tuple[Path, Path]]) -> list[File]:
    """Gives every file, once, a name of its own for its results, from its place below the named folder."""
    files: dict[str, File] = {}
    taken = set()
    for path, place in found:
        if (absolute := os.path.abspath(path)) in files:
            continue
        name = stem = safe_name("_".join((*place.parts[:-1], _without_suffix(place.name))))
        number = 2
        while name.lower() in taken:  # file systems may not tell upper from lower case
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        files[absolute] = File(path, name)
    return list(files.values())


def safe_name(text: str) -> str:
    """Replaces all but letters, digits, dashes and inner dots, so that a name leads to no other folder."""
    return re.sub(r"[^\w.-]+", "_", text).strip(".").encode()[:LONGEST_NAME].decode(errors="ignore") or "image"


def _without_suffix(name: str) -> str:
    """A name that ends in no format's suffix, often a DICOM identifier, stays whole."""
    suffixes = [suffix for suffix in images.SUFFIXES if name.lower().endswith(suffix)]
    return name[: len(name) - max(map(len, suffixes), default=0)]


class Displayed(NamedTuple):
    """A file as a viewer shows it, u8[H,W,C], and what of that may not be as expected, a sentence each."""

    pixels: np.ndarray
    notes: Sequence[str] = ()


def clear(out: Path, names: Iterable[str], *, keep: Iterable[Path]) -> None:
    """Makes the folder `out` if it is not there, and removes the tables and what an earlier call wrote of these names.

    Raises InputError before that if a file to `keep` is one of these.
    """
    old = [out / table for table in TABLES]
    folders = [out / "masks" / name for name in names]
    for folder in folders:
        old += [
            out / "overlays" / f"{folder.name}.png",
            folder.with_name(f"{folder.name}_seg.dcm"),
            *folder.glob("*.png"),
        ]
    if kept := {path.resolve() for path in keep}.intersection(path.resolve() for path in old):
        raise InputError(f"{min(kept)}: would be overwritten by a result; choose another folder with --out")
    with naming_file(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in old:
            path.unlink(missing_ok=True)
        for folder in folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def displayed(path: Path) -> Displayed:
    """Reads a file as a viewer shows it: DICOM by its window, 9 to 16 bits from darkest to brightest."""
    data = path.read_bytes()
    if images.is_dicom(data, path):
        from mediax import dicom  # see above

        header = dicom.read_bytes(data, name=str(path))
        return Displayed(header.to_uint8("window"), dicom_notes(path, header))
    pixels = images.read_bytes(data, name=str(path))
    notes = [f"{path}: {note}" for note in images.left_out(data)]
    if pixels.dtype == np.uint8:
        return Displayed(pixels, notes)
    low, high = int(pixels.min()), int(pixels.max())
    return Displayed(images.to_uint8((pixels.astype(np.float32) - low) / max(1, high - low)), notes)


def dicom_notes(path: Path, header: "dicom.Dicom") -> list[str]:
    """What of a DICOM file a network sees otherwise than its owner may think."""
    notes = []
    if header.stretched:
        low, high = header.pixels.min(), header.pixels.max()
        notes.append(
            f"{path}: has no window, and its values use little of their {header.bits} bits: it is taken from the "
            f"smallest, {low}, to the largest, {high}"
        )
    if not header.square:
        row, column = header.spacing_mm
        notes.append(
            f"{path}: its pixels are {row:g} mm high and {column:g} mm wide, and are taken as square, so the network "
            "sees a distorted image: resample it to square pixels first"
        )
    return notes


def loaded(of: builder.Builder, path: Path, shown: np.ndarray) -> np.ndarray:
    """Reads a file as the dataset reads its images, u8|u16[H,W,C], or takes it as a viewer shows it, u8[H,W,C].

    So is taken what the dataset's `load` does not read, being of another format than its images are, or that has more
    bits than they have; and DICOM, of which the stored values alone say little, unless its images are rendered from
    such files.
    """
    if of.RENDERS_DICOM or not images.is_dicom_file(path):
        with contextlib.suppress(CorruptImageError):
            pixels = of.load(builder.Row(path.name, "", path, str(path)))
            if pixels.dtype == of.DTYPE:
                return pixels
    return images.with_channels(shown, of.CHANNELS)


def example(of: builder.Builder, path: Path, shown: np.ndarray) -> dict[str, Any]:
    """Makes of a file what a built record of the dataset holds: image u8[h,w,C] or f32[h,w,C], and where it came from.

    `geometry` f[3,3] maps the pixels of the file to those of the image, for transforms to continue and to invert. Of
    a dataset whose records have a field of view, so has the example, computed from the image: `field_of_view`
    u8[h,w], and in the pixels of the file `original_field_of_view` u8[H,W].

    Raises InputError for a grey file where the dataset is in colour, and the reverse.
    """
    check_channels(path, shown, of.CHANNELS)
    pixels = loaded(of, path, shown)
    if pixels.shape[:2] != shown.shape[:2]:
        raise InputError(
            f"{path}: the dataset {of.name!r} crops its images when they are built, to {pixels.shape[:2]} from "
            f"{shown.shape[:2]} pixels, so what is found cannot be put back in place"
        )
    fit = of.fit(pixels)
    stored = images.decode(of.encode(fit.image(pixels)))
    (height, width), (top, left) = fit.scaled(), fit.offset()
    seen = {}
    if "field_of_view" in of.features():
        whole = annotations.field_of_view(pixels)
        seen = {
            "field_of_view": fit.image(whole[..., None], nearest=True)[..., 0],
            "original_field_of_view": whole,
        }
    return seen | {
        "image": stored if stored.dtype == np.uint8 else np.float32(stored) / np.float32(np.iinfo(stored.dtype).max),
        "geometry": np.array([[width / fit.width, 0, left], [0, height / fit.height, top], [0, 0, 1]], np.float64),
        "original_size": np.array([fit.height, fit.width], np.int32),
    }


def check_channels(path: Path, shown: np.ndarray, channels: int) -> None:
    """Raises InputError if an image u8[H,W,C] is grey and should have three channels, or is in colour and should not.

    Grey values that are stored three times over are grey.
    """
    coloured = shown.shape[2] == 3 and np.ptp(shown, axis=2).mean() > 255 * COLOURED
    if channels == 1 and coloured:
        raise InputError(f"{path}: is in colour; the network was trained on grey images")
    if channels == 3 and shown.shape[2] == 1:
        raise InputError(f"{path}: is grey; the network was trained on images in colour")


# Results.


@dataclass(frozen=True)
class Writer:
    """Writes the pictures of one file's findings below `out`, each whole or not at all; in a thread."""

    out: Path
    version: str  # of the network

    def __call__(self, found: tuple[Opened, Findings] | Failure) -> Result | Failure:
        if isinstance(found, Failure):
            return found
        (file, shown, _, notes), findings = found
        self._replace(f"overlays/{file.name}.png", images.encode(outlines.draw(shown, findings)))
        for structure, mask in findings.masks.items():
            place = f"masks/{file.name}/{safe_name(structure)}.png"
            self._replace(place, images.encode(mask[..., None].astype(np.uint8) * 255))
        return Result(
            file,
            shown.shape[:2],
            columns(findings),
            boxes=[coco_box(box, shown.shape[:2]) for box in findings.boxes],
            labels=findings.box_labels,
            notes=notes,
            failure=self._segmentation(file, findings.masks),
        )

    def _segmentation(self, file: File, masks: Mapping[str, np.ndarray]) -> Failure | None:
        """Writes the masks of a DICOM file as a DICOM Segmentation; says what is against it."""
        if not masks or not images.is_dicom_file(file.path):
            return None
        try:
            content = dicom_segmentation.encode(file.path, masks, version=self.version)
        except InputError as error:
            return Failure(file.path, str(error))
        return self._replace(f"masks/{file.name}_seg.dcm", content)

    def _replace(self, place: str, content: bytes) -> None:
        path = self.out / place
        with naming_file(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def columns(findings: Findings) -> dict[str, Any]:
    """What predictions.csv says of a file: scores, decisions, the area of each mask, the number of called boxes."""
    counts = collections.Counter(box.label for box in findings.boxes if box.called)
    return (
        {name: f"{score:.6g}" for name, score in findings.scores.items()}
        | {f"{name} called": "" if called is None else int(called) for name, called in findings.decisions.items()}
        | {f"{name} pixels": int(mask.sum()) for name, mask in findings.masks.items()}
        | {f"{label} boxes": counts[label] for label in findings.box_labels}
    )


def coco_box(box, size: tuple[int, int]) -> dict[str, Any]:
    """A box as COCO has it, in pixels, without the ids of image and category."""
    ymin, xmin, ymax, xmax = (np.array(box.corners) * np.tile(size, 2)).tolist()
    height, width = ymax - ymin, xmax - xmin
    annotation = {"label": box.label, "score": box.score, "bbox": [xmin, ymin, width, height], "area": height * width}
    if box.mask is not None:
        annotation |= {"segmentation": {"size": [*size], "counts": rle.coco_encode(box.mask)}}
        annotation |= {"area": int(box.mask.sum())}
    return annotation


def write_tables(out: Path, results: Sequence[Result], failures: Sequence[Failure]) -> None:
    """Writes the tables of all files, predictions.csv last."""
    rows = [{"file": str(result.file.path), "name": result.file.name} for result in results]
    if any(result.labels for result in results):
        replace_file(out / "boxes.json", (json.dumps(coco(results), indent=1) + "\n").encode())
    if failures:
        write_table(out / "failed.csv", [{"file": str(path), "reason": reason} for path, reason in failures])
    write_table(out / "predictions.csv", [row | result.columns for row, result in zip(rows, results)])


def coco(results: Sequence[Result]) -> dict[str, Any]:
    """All boxes in COCO's format: images, categories, annotations; ids are counted from 1."""
    labels = list(dict.fromkeys(label for result in results for label in result.labels))
    annotations = [
        {"image_id": image, "category_id": 1 + labels.index(box["label"]), "iscrowd": 0}
        | {key: value for key, value in box.items() if key != "label"}
        for image, result in enumerate(results, start=1)
        for box in result.boxes
    ]
    return {
        "images": [
            {"id": image, "file_name": str(result.file.path), "height": result.size[0], "width": result.size[1]}
            for image, result in enumerate(results, start=1)
        ],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels, start=1)],
        "annotations": [{"id": number} | annotation for number, annotation in enumerate(annotations, start=1)],
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV whole or not at all; the columns are those of all rows."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["file", "name"]
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    # Names of files need not be text; they come out as they are.
    replace_file(path, text.getvalue().encode("utf-8", "surrogateescape"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Predicts on what the command line names; returns the exit code: 0, or 2 if a file or the command was bad."""
    options = _parse(arguments)
    try:
        network = Network(
            options.workdir, task=options.task, evaluation=options.evaluation, device_batch=options.device_batch
        )
        failed = predict(network, options.sources, options.out)
    except (InputError, OSError) as error:
        print(f"mediax: {error}", file=sys.stderr, flush=True)
        return 2
    return 2 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mediax.predict",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", metavar="FILE_OR_FOLDER", help="folders are searched for images")
    parser.add_argument("--workdir", type=expanded, required=True, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=expanded, required=True, metavar="DIR", help="where results go")
    parser.add_argument("--device-batch", type=int, default=8, metavar="N", help="images a device takes at once")
    parser.add_argument("--task", default="", metavar="NAME", help="the only task to use (default: all)")
    parser.add_argument(
        "--evaluation",
        default="",
        metavar="NAME",
        help="as whose images files are read, and whose thresholds are taken (default: test, else the first)",
    )
    options = parser.parse_args(arguments)
    if options.device_batch < 1:
        parser.error("--device-batch: expected at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
