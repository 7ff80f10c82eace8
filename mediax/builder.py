"""What all datasets share: finding the raw files, checking them, building ArrayRecord files for TFDS, reading records.

A dataset is one file in `mediax/datasets`: `CLASSES`, `SOURCE`, a `Builder(builder.Builder)`, `phantom`, `classes`
and `read`. Its Builder says where its files lie (`find`), what is annotated (`rows`) and, where the defaults do not
fit, how one image becomes one record (`load`, `example`). Everything else is here.
"""

import abc
import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import datetime
import errno
import fcntl
import functools
import gzip
import hashlib
import io
import itertools
import os
import shutil
import sys
import time
import typing
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from mediax import annotations, catalog, images, shards
from mediax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a dataset comes from: all that a user without it needs to know. `tree` is the expected folder layout."""

    title: str
    homepage: str
    licence: str
    access: str
    download_size: str
    images: str
    citation: str
    tree: str


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    """What is fixed when a dataset is built. A dataset with more such choices subclasses this with more fields.

    `size` is the side of the square images in pixels, None keeps the files' own size; `aspect` is explained at
    `images.Fit`; `encoding` is "png" (lossless) or "jpeg<quality>". With nothing of this chosen, 8-bit PNG and JPEG
    files are stored byte for byte. A field annotated as Literal accepts only its values.

    `name`, and so the folder of the built set, follows from the values that differ from their defaults:
    `Config(size=320, aspect="crop")` is "320-crop", `Config()` is "native". So a default is part of the VERSION.
    """

    name: str = ""
    size: int | None = None
    aspect: Literal["stretch", "crop", "letterbox"] = "stretch"
    encoding: str = "png"

    def __post_init__(self):
        for field in own_fields(self):
            allowed, value = typing.get_args(field.type), getattr(self, field.name)
            if typing.get_origin(field.type) is Literal and value not in allowed:
                raise InputError(f"builder config: {field.name}={value!r}: {catalog.suggestion(value, allowed)}")
        if self.size is not None and not (isinstance(self.size, int) and self.size > 0):
            raise InputError(f"builder config: size={self.size!r}: expected a positive number of pixels, or None")
        if self.encoding != "png":
            images.jpeg_quality(self.encoding)
        self.name = self.name or "-".join(self._words()) or "native"

    def _words(self) -> Iterator[str]:
        """The values that differ from their defaults; with the name of the field, where the value tells too little."""
        for name, value in self.chosen().items():
            yield str(value) if name == "size" or isinstance(value, str) else f"{name}{value}"

    def chosen(self) -> dict[str, Any]:
        """The values that differ from their defaults."""
        values = [(field, getattr(self, field.name)) for field in own_fields(self)]
        return {field.name: value for field, value in values if value != field.default}


def own_fields(config: Config) -> list[dataclasses.Field]:
    """The fields that mediax adds to those of TFDS's BuilderConfig."""
    inherited = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    return [field for field in dataclasses.fields(config) if field.name not in inherited]


@dataclasses.dataclass(frozen=True)
class Row:
    """One image to come. `where` names the annotation that asks for it ("train.csv, line 17"), for error messages.

    `image` is a file or decoded pixels u8[H,W,C]; `fields` are the record's other features, as `Builder.features` lists
    them, or whatever a Builder's own `annotations` makes them from. Coordinates are in pixels of the file.
    """

    id: str
    patient_id: str
    image: Path | np.ndarray
    where: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


class Info(tfds.core.DatasetInfo):
    """What TFDS keeps of a dataset."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: no bucket knows our datasets, and TFDS's search leaves an empty temporary folder each time."""


class Builder(FileReaderBuilder, skip_registration=True):
    """Base of every dataset's TFDS builder.

    Records hold `id`, `patient_id`, `image` (encoded), `original_size` (height and width of the file's image) and
    `features()`. A subclass sets SOURCE, VERSION and BUILDER_CONFIGS and defines `features`, `find` and `rows`; it may
    override `load`, `annotations` and `download`. TFDS's name of the dataset is the name of its module.
    """

    SOURCE: Source
    CHANNELS: int = 1  # 1 grey, 3 RGB
    DTYPE: type = np.uint8  # np.uint16 for deep grey images
    RENDERS_DICOM: bool = False  # whether `load` shows DICOM files in a way of its own, as the dataset's images
    DISJOINT_PATIENTS = True  # False only where the official splits are known to share patients
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the raw files into --manual_dir."

    def __init_subclass__(cls, **kwargs):
        # TFDS's global registry would clash with its own datasets of the same names; modules are found by file name.
        cls.name = cls.__module__.rpartition(".")[2]
        super().__init_subclass__(skip_registration=True, **kwargs)

    def __init__(
        self,
        *,
        manual_dir: str | Path | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        workers: int | None = None,
        **kwargs,
    ):
        """`manual_dir`, `on_corrupt` and `workers` are explained at `prepare`; the rest goes to TFDS."""
        if on_corrupt not in ("error", "skip"):
            raise InputError(f'on_corrupt={on_corrupt!r}: expected "error" or "skip"')
        self._manual_dir = Path(manual_dir).expanduser() if manual_dir else None
        self._on_corrupt = on_corrupt
        self.workers = workers or min(32, len(os.sched_getaffinity(0)))
        self._planned = self._done = self._bytes = 0
        super().__init__(file_format="array_record", **kwargs)

    @abc.abstractmethod
    def features(self) -> dict[str, Any]:
        """The TFDS features of a record besides id, patient_id and image; masks are Images of their own here."""

    @abc.abstractmethod
    def find(self, folder: Path) -> Any:
        """Looks for the raw data in one folder; returns what `rows` needs to read it, or None if it is not there."""

    @abc.abstractmethod
    def rows(self, found: Any) -> Mapping[str, Sequence[Row]]:
        """Reads the annotations: the rows of each split. Empty splits are left out of the built set."""

    def download(self, manager: tfds.download.DownloadManager) -> Any:
        """Downloads the raw data where its owner lets anybody do so; returns what `find` does, None if it cannot."""
        del manager
        return None

    def load(self, row: Row) -> np.ndarray:
        """The pixels of a row, u8[H,W,C] or u16[H,W,C] before fitting. Runs in a thread."""
        return row.image if isinstance(row.image, np.ndarray) else images.read(row.image, channels=self.CHANNELS)

    def annotations(self, row: Row, pixels: np.ndarray) -> dict[str, Any]:
        """The record's fields besides the image, in pixels of the file; by default `row.fields`. Runs in a thread.

        Override it where annotations must be decoded, as masks are. `follow` says which fields follow the image.
        """
        del pixels
        return row.fields

    def example(self, row: Row) -> dict[str, Any]:
        """The record of a row without its ids. Runs in a thread."""
        pixels = self.load(row)
        fit = self.fit(pixels)
        record = {"original_size": np.int32(pixels.shape[:2]), **follow(self.annotations(row, pixels), fit, row.where)}
        return {"image": self.encoded(row.image, pixels), **record}

    def encoded(self, image: Path | np.ndarray, pixels: np.ndarray) -> bytes:
        """The pixels of an image as a record holds them: the file's own bytes where nothing of them changes."""
        kept = isinstance(image, Path) and not {"size", "encoding"} & set(self.builder_config.chosen())
        if kept and images.is_plain(data := image.read_bytes(), self.CHANNELS):
            return data
        return self.encode(self.fit(pixels).image(pixels))

    def fit(self, pixels: np.ndarray) -> images.Fit:
        """How the builder config fits an image [H,W,C]: apply it to the image, its masks and its boxes."""
        return images.Fit(*pixels.shape[:2], self.builder_config.size, self.builder_config.aspect)

    def encode(self, pixels: np.ndarray) -> bytes:
        """Encodes [H,W,C] as the builder config asks."""
        return images.encode(pixels, self.builder_config.encoding)

    def _create_builder_config(self, builder_config, version):  # TFDS would warn of every config that has no name yet
        del version
        return choose_config(type(self), builder_config)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, self.CHANNELS), dtype=self.DTYPE)
        names = {"id": tfds.features.Text(), "patient_id": tfds.features.Text()}
        size = tfds.features.Tensor(shape=(2,), dtype=np.int32)  # height and width of the file's image
        return Info(
            builder=self,
            description=sys.modules[type(self).__module__].__doc__ or self.SOURCE.title,
            features=tfds.features.FeaturesDict({**names, "image": image, "original_size": size, **self.features()}),
            homepage=self.SOURCE.homepage,
            citation=self.SOURCE.citation,
            license=self.SOURCE.licence,
            metadata=tfds.core.MetadataDict(skipped=[]),
        )

    def download_and_prepare(self) -> None:
        """Builds the set where it is to lie, in a folder of another name until it is complete.

        A killed or failed build leaves its finished shards there: the next one goes on with them, if nothing that they
        were made from has changed. Threads decode, at most a few images ahead of the one that is written; what is
        written does not depend on their number. Call it while holding the lock of `prepare`.
        """
        self._download_and_prepare()
        self.info.write_to_directory(self.incomplete)
        self.incomplete.rename(self.data_path)
        (Path(self.data_path) / shards.Manifest.NAME).unlink()
        self.info.update_data_dir(self.data_dir)
        logging.info("%s: built %d images", self.name, self.info.splits.total_num_examples)

    def _download_and_prepare(self, dl_manager=None, download_config=None):
        del dl_manager, download_config
        splits = self.annotated()
        check_ids(splits, disjoint_patients=self.DISJOINT_PATIENTS)
        check_files(splits, self.workers)
        logging.info("%s: building %s", self.name, self.data_path)
        planned = {split: self._plan(split, rows) for split, rows in splits.items()}
        manifest = shards.Manifest(self.incomplete)
        self._write(manifest, {name: rows for plan in planned.values() for name, rows in plan.items()})
        infos = [self._split_info(manifest, split, plan) for split, plan in planned.items()]
        self.info.set_splits(tfds.core.splits.SplitDict(infos))

    @property
    def incomplete(self) -> Path:
        """Where the set lies until it is complete."""
        return Path(self.data_path.parent) / f"incomplete.{self.data_path.name}"

    def annotated(self) -> dict[str, Sequence[Row]]:
        """The rows of each split as the raw data's annotations name them.

        Raises InputError if there are none, or if a split has the name that TFDS keeps for all splits together.
        """
        splits = {split: rows for split, rows in self.rows(self._locate()).items() if rows}
        if "all" in splits:
            raise InputError(
                f"{self.name}: its `rows` give a split named 'all', which TFDS reserves for all splits together; "
                f"expected another name, for instance 'unsplit'"
            )
        if not splits:
            raise InputError(
                f"{self.name}: the annotations hold no image for the builder config {self.builder_config.name!r}"
            )
        return splits

    def _plan(self, split: str, rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
        """The rows of each shard of a split, by the names of their files."""
        rows = shards.shuffled(rows, key=lambda row: row.id)
        pieces = shards.cut(rows, shards.rows_in_shard(self._record_bytes(rows)))
        template = self._get_filename_template(split)
        return {
            template.sharded_filepath(shard_index=index, num_shards=len(pieces)).name: piece
            for index, piece in enumerate(pieces)
        }

    def _record_bytes(self, rows: Sequence[Row], sample: int = 64) -> float:
        """A rough estimate of a record's size: PNG halves an image, and files are kept or shrink."""
        if self.builder_config.size:
            return self.builder_config.size**2 * self.CHANNELS * np.dtype(self.DTYPE).itemsize / 2
        sizes = [
            row.image.stat().st_size if isinstance(row.image, Path) else row.image.nbytes / 2 for row in rows[:sample]
        ]
        return sum(sizes) / len(sizes)

    def _write(self, manifest: shards.Manifest, planned: Mapping[str, Sequence[Row]]) -> None:
        """Writes the planned shards that are not finished yet."""
        finished = {name for name, rows in planned.items() if self._unchanged(manifest.finished.get(name), rows)}
        if manifest.finished:
            logging.info(
                "%s: a build that was stopped left %d shards; %d of them are good, %d are still to be written%s",
                self.name,
                len(manifest.finished),
                len(finished),
                len(planned) - len(finished),
                "" if finished.issuperset(manifest.finished) else " (the raw data or the program has changed since)",
            )
        manifest.keep(finished)
        todo = {name: rows for name, rows in planned.items() if name not in finished}
        self._planned = sum(map(len, todo.values()))
        # One thread more than processors: each waits now and then, for the interpreter or for a file.
        threads = self.workers + (self.workers > 1)
        records = in_order(self._record, itertools.chain.from_iterable(todo.values()), threads)
        with contextlib.closing(records):
            counted = self._counted(watched(records, self._planned, self.name))
            for name, rows in todo.items():
                manifest.add(name, shards.write(self.incomplete / name, itertools.islice(counted, len(rows))))

    def _unchanged(self, shard: shards.Finished | None, rows: Sequence[Row]) -> bool:
        """Whether a finished shard is what would be written again."""
        if shard is None or (shard.left_out and self._on_corrupt == "error"):
            return False
        return shards.combined(in_order(self._fingerprint, rows, self.workers)) == shard.fingerprint

    def _counted(self, records: Iterator[shards.Record]) -> Iterator[shards.Record]:
        for record in records:
            self._done, self._bytes = self._done + 1, self._bytes + len(record.data or b"")
            yield record

    def _record(self, row: Row) -> shards.Record:
        fingerprint, example = self._fingerprint(row), self._try_example(row)
        return shards.Record(fingerprint, None if example is None else self.serialize(row, example))

    def serialize(self, row: Row, example: Mapping[str, Any]) -> bytes:
        """The bytes of a record, as `Records` reads them."""
        features = self.info.features.encode_example({"id": row.id, "patient_id": row.patient_id, **example})
        # TFDS's own words for it leave the order of the features to the process.
        return self._serializer.get_tf_example(features).SerializeToString(deterministic=True)

    @functools.cached_property
    def _serializer(self) -> ExampleSerializer:
        return ExampleSerializer(self.info.features.get_serialized_info())

    def _fingerprint(self, row: Row) -> bytes:
        return shards.fingerprint((self._recipe, row.id, row.patient_id, row.image, row.fields))

    @functools.cached_property
    def _recipe(self) -> bytes:
        """What all records follow from besides their rows: the builder config, the features and mediax's code."""
        config = {field.name: getattr(self.builder_config, field.name) for field in own_fields(self.builder_config)}
        modules = [sys.modules[type(self).__module__], sys.modules[__name__]]
        imported = {value for module in modules for value in vars(module).values() if isinstance(value, ModuleType)}
        files = {module.__file__ for module in {*modules, *imported} if module.__name__.startswith("mediax")}
        code = [Path(file).read_bytes() for file in sorted(files)]
        return shards.fingerprint((str(self.version), config, str(self.info.features), code))

    def _split_info(
        self, manifest: shards.Manifest, split: str, planned: Mapping[str, Sequence[Row]]
    ) -> tfds.core.SplitInfo:
        """What TFDS wants to know of a finished split; counts what was left out."""
        finished = [manifest.finished[name] for name in planned]
        skipped = [rows[place].id for rows, shard in zip(planned.values(), finished) for place in shard.left_out]
        total = sum(map(len, planned.values()))
        if len(skipped) == total:
            first = next(iter(planned.values()))[0]
            raise InputError(
                f"{self.name}: all {total} images of the split {split!r} are corrupt. The first one, asked for by "
                f"{first.where}: {self._corruption(first)}"
            )
        if skipped:
            logging.warning("%s: left out %d corrupt of %d images of split %s", self.name, len(skipped), total, split)
            self.info.metadata["skipped"] += skipped
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in finished],
            num_bytes=sum(shard.bytes for shard in finished),
            filename_template=self._get_filename_template(split),
        )

    def _try_example(self, row: Row) -> dict[str, Any] | None:
        try:
            return self.example(row)
        except images.CorruptImageError as error:
            if self._on_corrupt == "skip":
                return None
            raise InputError(
                f"{error}\n  asked for by: {row.where}\n"
                f'  Replace the file, or leave such images out: on_corrupt="skip".'
            ) from error

    def _corruption(self, row: Row) -> str:
        """Says why a row was left out."""
        try:
            self.example(row)
        except images.CorruptImageError as error:
            return str(error)
        return "by now it can be decoded; start again"

    def _locate(self) -> Any:
        folders = [self._manual_dir / self.name, self._manual_dir] if self._manual_dir else []
        for folder in folders:
            if folder.is_dir() and (found := self.find(folder)) is not None:
                return found
        manager = self._make_download_manager(None, tfds.download.DownloadConfig())
        if (downloaded := self.download(manager)) is not None:
            self.info.download_size = manager.downloaded_size
            return downloaded
        source, looked = self.SOURCE, ", ".join(map(str, folders)) or "nowhere, for --manual_dir is not given"
        tree = "\n".join(f"      {line}" for line in source.tree.strip("\n").splitlines())
        raise InputError(
            f"{self.name}: the raw data of {source.title} is missing.\n"
            f"  looked in:  {looked}\n"
            f"  get it:     {source.homepage} ({source.access})\n"
            f"  licence:    {source.licence}\n"
            f"  size:       {source.download_size}, {source.images}\n"
            f"  expected, in the first of these folders:\n{tree}\n"
            f"  To try the program without it, on generated images, add `:phantom` to the config:"
            f" --config=configs/<config>.py:phantom"
        )

    def is_prepared(self) -> bool:
        """Whether the set is built: a finished set is renamed to its folder, so it is there whole or not at all."""
        return (self.data_path / "dataset_info.json").exists()

    def disk_full(self) -> InputError:
        """Words a full disk: where, and how much the build needs."""
        free = shutil.disk_usage(existing_parent(self.data_path)).free
        needed = self._bytes / self._done * (self._planned - self._done) if self._done else 0
        estimate = f"about {needed / 1e9:.3g} GB more" if needed else "more than that"
        return InputError(
            f"{self.name}: the disk of {self.data_path.parent} is full: {free / 1e9:.3g} GB free, the build needs "
            f"{estimate} ({self._done} of {self._planned} images are encoded). Free some space and start again, which "
            f"goes on with the finished part in {self.incomplete}; or delete that and choose another --data_dir, a "
            f"smaller size or a JPEG encoding."
        )


def box_features() -> dict[str, Any]:
    """The features of a dataset with boxes; `box_labels` are indices into its BOX_CLASSES."""
    return {
        "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
        "box_labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    }


def polygon_features() -> dict[str, Any]:
    """The features of polygons, one for each box: all points in a row, and how many belong to each polygon."""
    return {
        "polygons": tfds.features.Tensor(shape=(None, 2), dtype=np.float32),
        "polygon_lengths": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    }


def mask_feature(structures: int) -> tfds.features.Image:
    """The feature of up to 16 masks of an image: one lossless picture whose bit k is structure k."""
    return tfds.features.Image(shape=(None, None, 1), dtype=np.uint8 if structures <= 8 else np.uint16)


def point_feature() -> tfds.features.Tensor:
    """The feature of points: f32[N,2], y and x as fractions of the image."""
    return tfds.features.Tensor(shape=(None, 2), dtype=np.float32)


def spacing_feature() -> tfds.features.Tensor:
    """The feature of the pixel spacing: f32[2], row and column in mm, NaN where unknown."""
    return tfds.features.Tensor(shape=(2,), dtype=np.float32)


def follow(fields: Mapping[str, Any], fit: images.Fit, where: str) -> dict[str, Any]:
    """Moves the annotations of a file into the image that is built from it; what each is follows from its name.

    Fields:
      boxes: f32[N,4] ymin, xmin, ymax, xmax in pixels of the file, to fractions. A border up to `BOX_SLACK` pixels
        outside is drawn in.
      keypoints, *_keypoints: f32[N,2] y, x in pixels of the file, to fractions.
      polygons: a list of f32[N,2] y, x in pixels of the file, to `polygons` (fractions, in a row) and
        `polygon_lengths`.
      masks, *_masks: u8[H,W,K] of the file's size, to one encoded picture with a bit for each structure.
      field_of_view: u8[H,W], to one encoded picture.
      spacing_mm: f32[2] of the file, to that of the built image.
    All others are kept as they are.

    Raises:
      InputError: a box without area, or outside the image; masks of another size than the image.
    """
    moved = {}
    for name, value in fields.items():
        if name == "boxes":
            moved[name] = fit.boxes(_inside(np.asarray(value, np.float32).reshape(-1, 4), fit, where))
        elif name == "keypoints" or name.endswith("_keypoints"):
            moved[name] = fit.points(np.asarray(value, np.float32).reshape(-1, 2))
        elif name == "polygons":
            points = [np.asarray(polygon, np.float32).reshape(-1, 2) for polygon in value]
            moved[name] = fit.points(np.concatenate([np.zeros((0, 2), np.float32), *points]))
            moved["polygon_lengths"] = np.int32([len(polygon) for polygon in points])
        elif name in ("masks", "field_of_view") or name.endswith("_masks"):
            masks = np.atleast_3d(value)
            if masks.shape[:2] != (fit.height, fit.width):
                raise InputError(f"{where}: {name} {list(masks.shape[:2])}, the image {[fit.height, fit.width]} pixels")
            moved[name] = images.encode(annotations.pack_masks(fit.image(masks, nearest=True)))
        elif name == "spacing_mm":
            moved[name] = fit.spacing(np.asarray(value, np.float32))
        else:
            moved[name] = value
    return moved


BOX_SLACK = 2.0  # pixels: rounding and one-based coordinates reach so far beyond a border, a wrong image's box further


def _inside(boxes: np.ndarray, fit: images.Fit, where: str) -> np.ndarray:
    extent = np.float32([fit.height, fit.width, fit.height, fit.width])
    for box in boxes:
        words = f"{where}: the box ymin, xmin, ymax, xmax = {', '.join(f'{value:g}' for value in box)}"
        if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
            raise InputError(f"{words} has no area; correct or remove its line")
        if (box < -BOX_SLACK).any() or (box > extent + BOX_SLACK).any():
            raise InputError(
                f"{words} leaves the image of {fit.height} x {fit.width} pixels. Is the image a resized copy? The "
                f"annotation needs the files as they are distributed."
            )
    return np.clip(boxes, 0, extent)


def example_of(record: Mapping[str, Any], *, structures: int = 0) -> dict[str, Any]:
    """What a record says in the batch schema, without `labels` and `target`: the start of a dataset's `read`.

    Args:
      record: a record of `Records`.
      structures: K, how many masks there are, if there are masks.

    Returns:
      image u8[H,W,C], id, patient_id, and of what the record has: boxes f32[N,4], box_labels i32[N], box_valid bool[N],
      False for a box that lies outside of the built image;
      masks u8[H,W,K] and mask_valid bool[K] (all True unless the record says otherwise); *_masks; keypoints;
      field_of_view u8[H,W]; spacing_mm; polygons as a list of f32[P,2].
    """
    example = {name: record[name] for name in ("id", "patient_id")} | {"image": images.decode(record["image"])}
    for name, value in record.items():
        if name in ("masks", "field_of_view") or name.endswith("_masks"):
            masks = annotations.unpack_masks(images.decode(value), 1 if name == "field_of_view" else structures)
            example[name] = masks[..., 0] if name == "field_of_view" else masks
        elif name in ("boxes", "box_labels", "boxes_known", "spacing_mm", "mask_valid") or name.endswith("keypoints"):
            example[name] = value
    if "boxes" in record:
        # Of a box that `crop` cut away, no area is left.
        example["box_valid"] = (record["boxes"][:, :2] < record["boxes"][:, 2:]).all(1)
    if "masks" in record:
        example.setdefault("mask_valid", np.ones(structures, bool))
    if "polygons" in record:
        ends = np.cumsum(record["polygon_lengths"])
        example["polygons"] = [
            record["polygons"][end - length : end] for end, length in zip(ends, record["polygon_lengths"])
        ]
    return example


def prepare(
    dataset: str | ModuleType,
    *,
    data_dir: str | Path,
    manual_dir: str | Path | None = None,
    builder_config: str | Mapping[str, Any] | Config | None = None,
    build: bool = True,
    on_corrupt: Literal["error", "skip"] = "error",
    workers: int | None = None,
) -> Path:
    """Builds a dataset once and returns the folder of the built set; a later call finds it there.

    Builds are atomic: a killed or failed build leaves nothing that a later call would take for a built set, but its
    finished part, with which the next one goes on. Processes that ask for the same set at the same time wait for the
    first one.

    Args:
      dataset: name of a module in `mediax/datasets`, or the module itself.
      data_dir: where built sets lie, `<data_dir>/<dataset>/<builder config>/<version>`.
      manual_dir: where raw files lie, in `<manual_dir>/<dataset>` or directly; needed for the first build alone.
      builder_config: a named config of the dataset, its values as a mapping, a Config, or None for the default.
      build: False only looks for a built set.
      on_corrupt: "error" stops at an image that cannot be decoded; "skip" leaves it out, counts it and reports the
        number; the ids are kept in the built set's metadata.
      workers: threads that decode, by default one per core.

    Raises:
      InputError: raw data missing, inconsistent or corrupt; disk full; unknown builder config.
    """
    module = catalog.load("datasets", dataset) if isinstance(dataset, str) else dataset
    make = functools.partial(
        module.Builder,
        data_dir=Path(data_dir).expanduser(),
        config=builder_config,
        manual_dir=manual_dir,
        on_corrupt=on_corrupt,
        workers=workers,
    )
    builder = make()
    if not builder.is_prepared():
        if not build:
            raise InputError(f"{builder.name}: no built set at {builder.data_path}; build it first")
        with locked(builder.data_path.parent):
            _build(make())
    return Path(builder.data_path)


def _build(builder: Builder) -> None:
    if builder.is_prepared():  # another process built it while this one waited for the lock
        return
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # of downloads
    try:
        builder.download_and_prepare()
    except Exception as error:
        # ArrayRecord's writer is C++ and reports a full disk in words only.
        if any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise builder.disk_full() from error
        raise


def choose_config(builder: type[Builder], chosen: str | Mapping[str, Any] | Config | None = None) -> Config:
    """The builder config that a user names, gives by values or leaves to the default; InputError for an unknown one."""
    named = {config.name: config for config in builder.BUILDER_CONFIGS}
    default = builder.BUILDER_CONFIGS[0]
    if chosen is None:
        return default
    if isinstance(chosen, str):
        if chosen not in named:
            raise InputError(f"{builder.name} has no builder config {chosen!r}: {catalog.suggestion(chosen, named)}")
        return named[chosen]
    if isinstance(chosen, Mapping):
        valid = [field.name for field in own_fields(default)]
        for field in chosen:
            if field not in valid:
                raise InputError(f"builder config of {builder.name}: no {field!r}: {catalog.suggestion(field, valid)}")
        chosen = type(default)(**chosen)
    return named.get(chosen.name, chosen)


class AbsentSplit(InputError):
    """A built set has no split of the name."""


class Records(Sequence):
    """Random access to the records of one split of a built set: what `read` of a dataset module takes.

    A record is a dict; images are encoded bytes, texts str, the rest NumPy. Pickled it is a folder and a split, and it
    opens the files where it is used: cheap for grain's worker processes. It needs no dataset module to read.
    `split` is in TFDS's language: "train", "train+tuning", "train[:10%]".
    """

    def __init__(self, directory: str | Path, split: str):
        self.directory = str(directory)
        self.split = split
        skipped = self._builder.info.metadata.get("skipped", []) if self._builder.info.metadata else []
        if skipped:
            logging.warning("%s: built without %d corrupt images", self.directory, len(skipped))
        len(self)  # opens the files now, so that an unknown split is reported here and not in a worker

    def __getstate__(self):
        return {"directory": self.directory, "split": self.split}

    @functools.cached_property
    def _builder(self) -> tfds.core.DatasetBuilder:
        return tfds.builder_from_directory(self.directory)

    def _names(self, kind: type) -> list[str]:
        return [name for name, feature in self._builder.info.features.items() if isinstance(feature, kind)]

    @functools.cached_property
    def _texts(self) -> list[str]:
        return self._names(tfds.features.Text)

    @functools.cached_property
    def _source(self) -> Sequence:
        undecoded = dict.fromkeys(self._names(tfds.features.Image), tfds.decode.SkipDecoding())
        try:
            return self._builder.as_data_source(split=self.split, decoders=undecoded)
        except (ValueError, KeyError) as error:
            held = self._builder.info.splits
            if all(name.partition("[")[0].strip() in held for name in self.split.split("+")):
                raise InputError(
                    f"{self.directory}, split {self.split!r}: no slice of {', '.join(held)}; expected one as in "
                    "'train[:50%]', 'train[100:]' or 'train[:10%]+train[90%:]', within its bounds"
                ) from error
            raise AbsentSplit(
                f"{self.directory} has no split {self.split!r}: it holds {', '.join(held)}. "
                f"If the raw data was incomplete when this set was built, delete the folder and build it again."
            ) from error

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index) -> dict[str, Any]:
        record = self._source[range(len(self))[index]]  # range raises IndexError, which ends an iteration
        return record | {name: record[name].decode() for name in self._texts}

    def __repr__(self) -> str:
        return f"Records({self.directory!r}, {self.split!r})"

    def columns(self) -> dict[str, list[Any]]:
        """All features but the images, as lists over the records, in their order."""
        names = [name for name in self._builder.info.features if name not in self._names(tfds.features.Image)]
        rows = [[record[name] for name in names] for record in self]
        return {name: [row[column] for row in rows] for column, name in enumerate(names)}


def source(dataset: str | ModuleType, *, split: str, **options) -> Records:
    """The records of one split of a dataset, built first if need be; the options are those of `prepare`."""
    return Records(prepare(dataset, **options), split)


def held_out(patient_id: str, share: float, *, salt: str) -> bool:
    """The rule of every derived split: whether a patient belongs to the held-out `share`.

    It holds for a patient if the first 64 bits of SHA-256("<salt>/<patient_id>"), as a fraction of 2**64, lie below
    `share`. So it does not depend on the order or number of patients.
    """
    digest = hashlib.sha256(f"{salt}/{patient_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[IO[str]]:
    """Opens a CSV file, gzipped or not, without its byte order mark; raises InputError if it cannot be read."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise InputError(f"{path}: no readable CSV file ({error}); download it again") from error


def table_columns(path: Path) -> list[str]:
    """The stripped column names of a CSV file, to recognise it by."""
    with open_table(path) as file:
        return [name.strip() for name in next(csv.reader(file), [])]


def read_table(
    path: Path, *, required: Iterable[str] = (), header: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (where, row) for every line of a CSV file, gzipped or not; rows map stripped names to stripped strings.

    Nothing is converted: "", "0.0", "-1" stay what they are. `header` replaces the file's first line where that is
    malformed.

    Raises:
      InputError: the file is empty, a required column is missing, or a line has more or fewer cells than the header.
    """
    names = list(header or table_columns(path))
    with open_table(path) as file:
        lines = csv.reader(file)
        if next(lines, None) is None:
            raise InputError(f"{path}: the file is empty; download it again")
        if missing := [name for name in required if name not in names]:
            raise InputError(f"{path}: columns {missing} are missing; found {names}")
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, line {lines.line_num}"
            if len(cells) != len(names):
                raise InputError(f"{where}: {len(cells)} cells, the header has {len(names)}; is the file complete?")
            yield where, {name: cell.strip() for name, cell in zip(names, cells)}


def number(where: str, row: Mapping[str, str], column: str) -> float:
    """A number of a table's row: NaN where the column is blank or absent, InputError where it is no number."""
    try:
        return float(row.get(column) or "nan")
    except ValueError as error:
        raise InputError(f"{where}: {column} is {row[column]!r}, expected a number or nothing") from error


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, final_newline: bool = True
) -> None:
    """Writes a CSV file as the phantoms need it; keys of a row that are no columns are left out."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue() if final_newline else text.getvalue().rstrip("\n"))


def check_ids(splits: Mapping[str, Sequence[Row]], *, disjoint_patients: bool) -> None:
    """Raises InputError if an id occurs twice, or a patient in two splits (unless the dataset is known for it)."""
    for problem in id_problems(splits, disjoint_patients=disjoint_patients):
        raise InputError(problem)


def id_problems(splits: Mapping[str, Sequence[Row]], *, disjoint_patients: bool) -> Iterator[str]:
    """Yields what is wrong with ids and patients, one message for each row concerned."""
    seen: dict[str, str] = {}
    homes: dict[str, tuple[str, str]] = {}
    for split, rows in splits.items():
        for row in rows:
            home, where = homes.setdefault(row.patient_id, (split, row.where))
            if home != split and disjoint_patients:
                yield (
                    f"{row.where}: its patient is in the split {split!r} and, by {where}, in {home!r} too; "
                    f"a patient may be in one split only: correct the annotation files"
                )
            if row.id in seen:
                yield f"{row.where}: image {row.id!r} was listed before, by {seen[row.id]}; keep one of them"
            seen[row.id] = row.where


def check_files(splits: Mapping[str, Sequence[Row]], workers: int) -> None:
    """Raises InputError if an annotated image file is absent, before hours are spent on the others."""
    if absent := absent_images(splits, workers):
        raise InputError(
            f"{absent[0].where}: the image {absent[0].image} is absent, as are {len(absent)} of "
            f"{sum(map(len, splits.values()))} annotated images in all. Complete the download, or remove the lines of "
            f"absent images from the annotation file."
        )


def absent_images(splits: Mapping[str, Sequence[Row]], workers: int) -> list[Row]:
    """The rows whose image file does not exist."""
    rows = [row for split in splits.values() for row in split if isinstance(row.image, Path)]
    exists = in_order(lambda row: row.image.is_file(), rows, workers)
    return [row for row, present in zip(rows, exists) if not present]


def watched(items: Iterable, total: int, name: str, *, seconds: float = 10.0) -> Iterator:
    """Passes items on, and logs every few seconds how many, how fast, and how long it will still take."""
    began = shown = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - shown >= seconds:
            shown, rate = now, count / (now - began)
            left = datetime.timedelta(seconds=round((total - count) / rate))
            logging.info("%s: %d of %d images, %.3g images/s, %s left", name, count, total, rate, left)


def in_order(function: Callable, items: Iterable, workers: int) -> Iterator:
    """Maps in threads, with few items under way at a time, and yields the results in the order of the items."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def reachable(url: str, timeout: float = 5.0) -> bool:
    """Whether a URL answers; asked first, because TFDS retries for minutes where there is no network."""
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout),
    ):
        return True
    return False


def existing_parent(path: str | Path) -> Path:
    """The nearest folder above that exists."""
    path = Path(path)
    return path if path.is_dir() else existing_parent(path.parent)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Holds `folder` against other processes; the operating system frees it when the process ends in any way."""
    with contextlib.ExitStack() as stack:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((Path(folder) / ".lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise InputError(f"--data_dir: cannot write to {folder}: {error}; choose another folder") from error
        yield
