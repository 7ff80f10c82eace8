"""A toy dataset with masks and boxes: what every dataset gets from mediax/builder.py and mediax/images.py."""

import concurrent.futures
import dataclasses
import errno
import filecmp
import gzip
import hashlib
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mediax import builder, catalog, images, shards
from mediax.errors import InputError

SOURCE = builder.Source(
    title="Toy Set",
    homepage="https://example.org/toy",
    licence="CC0",
    access="open",
    download_size="3 kB",
    images="six images",
    citation="Nobody, 2024",
    tree="""
labels.csv
images/
  a0.png
""",
)


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    views: Literal["all", "frontal"] = "all"


class Builder(builder.Builder):
    """One row of labels.csv is an image with a mask of its bright part and the box around it."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (Config(size=16), Config())

    def features(self):
        return {
            "mask": tfds.features.Image(shape=(None, None, 1)),
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "age": np.float32,
        }

    def find(self, folder):
        return folder if (folder / "labels.csv").is_file() else None

    def rows(self, folder):
        splits = {"train": [], "test": [], "nothing": []}
        for where, line in builder.read_table(folder / "labels.csv", required=("image", "patient", "split")):
            age = builder.number(where, line, "age")
            path = folder / "images" / f"{line['image']}.png"
            splits[line["split"]].append(builder.Row(line["image"], line["patient"], path, where, {"age": age}))
        return splits

    def example(self, row):
        if "TOY_DELAY" in os.environ:
            time.sleep(float(os.environ["TOY_DELAY"]))
        pixels = self.load(row)
        rows, columns = np.nonzero(pixels[..., 0] > 127)
        box = [[rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]]
        fit = self.fit(pixels)
        mask = (pixels > 127).astype(np.uint8)
        return {
            "image": self.encode(fit.image(pixels)),
            "mask": images.encode(fit.image(mask, nearest=True)),
            "boxes": fit.boxes(box),
            "original_size": np.int32(pixels.shape[:2]),
            **row.fields,
        }


MODULE = types.SimpleNamespace(Builder=Builder)


def write_toy(folder: Path, *, images_per_split: int = 3, table: str | None = None) -> Path:
    """Pictures of 40x20 pixels with a bright square; returns the folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["image,patient,split,age"]
    for split, letter in (("train", "a"), ("test", "b")):
        for index in range(images_per_split):
            pixels = np.random.default_rng(index).integers(0, 100, (40, 20), dtype=np.uint8)
            pixels[10:20, 5:15] = 255
            Image.fromarray(pixels).save(folder / "images" / f"{letter}{index}.png")
            lines.append(f"{letter}{index},p{letter}{index // 2},{split},{30 + index}")
    (folder / "labels.csv").write_text(table or "\n".join(lines) + "\n")
    return folder


def prepare(tmp_path, data="data", **options):
    return builder.prepare(MODULE, data_dir=tmp_path / data, manual_dir=tmp_path / "raw", **options)


@pytest.fixture
def raw(tmp_path):
    return write_toy(tmp_path / "raw" / "test_builder")


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


# Building and reading.


def test_records_hold_ids_encoded_images_masks_and_boxes(tmp_path, raw):
    records = builder.source(MODULE, split="train", data_dir=tmp_path / "data", manual_dir=tmp_path / "raw")
    assert len(records) == 3
    assert {record["id"] for record in records} == {"a0", "a1", "a2"}
    record = records[0]
    assert isinstance(record["patient_id"], str)
    assert images.decode(record["image"]).shape == (16, 16, 1)
    np.testing.assert_allclose(record["boxes"], [[10 / 40, 5 / 20, 20 / 40, 15 / 20]])
    mask = images.decode(record["mask"])[..., 0]
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(np.argwhere(mask).min(0), [4, 4])
    np.testing.assert_array_equal(np.argwhere(mask).max(0), [7, 11])


def test_columns_are_read_without_images(tmp_path, raw):
    columns = builder.Records(prepare(tmp_path), "train").columns()
    assert sorted(columns) == ["age", "boxes", "id", "original_size", "patient_id"]
    assert sorted(zip(columns["id"], columns["patient_id"], columns["age"])) == [
        ("a0", "pa0", 30),
        ("a1", "pa0", 31),
        ("a2", "pa1", 32),
    ]


def test_second_build_is_bit_identical_for_any_number_of_threads(tmp_path, raw):
    one, two = prepare(tmp_path, "one", workers=1), prepare(tmp_path, "two", workers=4)
    assert files(one) == files(two)
    assert not filecmp.cmpfiles(one, two, files(one), shallow=False)[1]
    assert any("array_record" in path.name for path in files(one))


def test_built_set_is_reused_without_raw_data(tmp_path, raw):
    first = prepare(tmp_path)
    times = [(first / path).stat().st_mtime_ns for path in files(first)]
    assert builder.prepare(MODULE, data_dir=tmp_path / "data") == first
    assert [(first / path).stat().st_mtime_ns for path in files(first)] == times
    with pytest.raises(InputError, match=r"no built set at .*native"):
        prepare(tmp_path, builder_config="native", build=False)


def test_raw_files_may_lie_directly_in_the_manual_folder(tmp_path):
    write_toy(tmp_path / "raw")
    assert len(builder.Records(prepare(tmp_path), "train+test")) == 6


def test_empty_split_is_left_out_and_unknown_split_lists_the_others(tmp_path, raw):
    with pytest.raises(InputError, match="no split 'nothing': it holds train, test"):
        builder.Records(prepare(tmp_path), "nothing")


def read_first_id(records):
    return records[0]["id"]


def test_records_pickle_small_and_read_in_a_spawned_process(tmp_path, raw):
    records = builder.Records(prepare(tmp_path), "train")
    assert len(pickle.dumps(records)) < 500
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(read_first_id, records).result() == records[0]["id"]


# Errors of the user's data: one message each.


def test_missing_data_says_all_there_is_to_know(tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(tmp_path)
    message = str(caught.value)
    for part in (
        "Toy Set",
        str(tmp_path / "raw" / "test_builder"),
        "https://example.org/toy",
        "open",
        "CC0",
        "3 kB",
        "six images",
        "      images/\n        a0.png",
        ":phantom",
    ):
        assert part in message
    with pytest.raises(InputError, match="--manual_dir is not given"):
        builder.prepare(MODULE, data_dir=tmp_path / "data")


def test_absent_image_names_line_and_file(tmp_path, raw):
    (raw / "images" / "b1.png").unlink()
    with pytest.raises(InputError, match=r"labels\.csv, line 6: the image .*b1\.png is absent, as are 1 of 6"):
        prepare(tmp_path)


def test_truncated_image_stops_the_build(tmp_path, raw):
    path = raw / "images" / "a1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"a1\.png: cannot decode(.|\n)*labels\.csv, line 3(.|\n)*on_corrupt=\"skip\""):
        prepare(tmp_path)
    with pytest.raises(InputError, match="no built set"):
        prepare(tmp_path, build=False)
    assert len(builder.Records(prepare(tmp_path, on_corrupt="skip"), "train+test")) == 5


def test_corrupt_images_are_skipped_counted_and_reported_on_demand(tmp_path, raw, caplog):
    (raw / "images" / "a1.png").write_bytes(b"no image")
    directory = prepare(tmp_path, on_corrupt="skip")
    assert "left out 1 corrupt of 3 images of split train" in caplog.text
    caplog.clear()
    records = builder.Records(directory, "train")
    assert sorted(record["id"] for record in records) == ["a0", "a2"]
    assert "without 1 corrupt images" in caplog.text
    with pytest.raises(InputError, match="on_corrupt='ignore'"):
        prepare(tmp_path, on_corrupt="ignore")


def test_split_of_corrupt_images_alone_is_an_error(tmp_path, raw):
    for path in (raw / "images").glob("b*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="all 3 images of the split 'test' are corrupt") as caught:
        prepare(tmp_path, on_corrupt="skip")
    first = next(path for path in sorted((raw / "images").glob("b*.png")) if str(path) in str(caught.value))
    line = {"b0": 5, "b1": 6, "b2": 7}[first.stem]
    assert re.search(
        rf"asked for by .*labels\.csv, line {line}: {re.escape(str(first))}: cannot decode", str(caught.value)
    )


def test_split_named_all_is_refused(tmp_path):
    write_toy(tmp_path / "raw")

    class All(Builder):
        def rows(self, folder):
            return {"all": super().rows(folder)["train"]}

    with pytest.raises(InputError, match="a split named 'all', which TFDS reserves"):
        builder.prepare(types.SimpleNamespace(Builder=All), data_dir=tmp_path / "data", manual_dir=tmp_path / "raw")
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").rglob("*array_record*"))


def test_patient_in_two_splits_is_an_error(tmp_path):
    table = "image,patient,split\na0,p1,train\nb0,p2,test\nb1,p1,test\n"
    write_toy(tmp_path / "raw", table=table)
    with pytest.raises(
        InputError, match=r"line 4: its patient is in the split 'test' and, by .*line 2, in 'train' too"
    ):
        prepare(tmp_path)


def test_image_listed_twice_is_an_error(tmp_path):
    write_toy(tmp_path / "raw", table="image,patient,split\na0,p1,train\na0,p1,train\n")
    with pytest.raises(InputError, match=r"line 3: image 'a0' was listed before, by .*line 2"):
        prepare(tmp_path)


def test_annotations_without_images_are_an_error(tmp_path):
    write_toy(tmp_path / "raw", table="image,patient,split,age\n")
    with pytest.raises(InputError, match="the annotations hold no image"):
        prepare(tmp_path)


def test_folder_that_cannot_be_written_is_an_error(tmp_path, raw):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(InputError, match="--data_dir: cannot write to"):
        prepare(tmp_path)


# Builds are atomic.


class FullDisk:
    """An ArrayRecordWriter that runs out of space in one of its methods, with the C++ original's error."""

    fails_in = "write"

    def __init__(self, path, options):
        Path(path).touch()

    def write(self, record):
        self.act("write")

    def close(self):
        self.act("close")

    def act(self, method):
        if method == self.fails_in:
            raise RuntimeError(f"RESOURCE_EXHAUSTED: {os.strerror(errno.ENOSPC)}; writing a file")


@pytest.mark.parametrize("method", ["write", "close"])
def test_full_disk_says_where_and_how_much(tmp_path, raw, monkeypatch, method):
    with monkeypatch.context() as patch:
        patch.setattr(shards.array_record_module, "ArrayRecordWriter", FullDisk)
        patch.setattr(FullDisk, "fails_in", method)
        with pytest.raises(
            InputError,
            match=r"disk of .*test_builder/16 is full: .* GB free, the build needs .* \(\d of 6 images",
        ):
            prepare(tmp_path)
    assert not list((tmp_path / "data").rglob("*array_record*"))
    assert len(builder.Records(prepare(tmp_path), "train")) == 3


def test_exception_midway_leaves_nothing_that_counts_as_built(tmp_path, raw, monkeypatch):
    example = Builder.example

    def broken(self, row):
        if row.id == "b2":
            raise RuntimeError("power cut")
        return example(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "example", broken)
        with pytest.raises(RuntimeError, match="power cut"):
            prepare(tmp_path)
    with pytest.raises(InputError, match="no built set"):
        prepare(tmp_path, build=False)
    assert len(builder.Records(prepare(tmp_path), "train+test")) == 6


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "FEWEST", 1)
    monkeypatch.setattr(shards, "MOST", 2)


def start_killed_build(tmp_path, finished: int, **options) -> None:
    """Builds in another process, in shards of two images, and kills it once so many of the shards are finished."""
    code = (
        "import pathlib, sys, test_builder\n"
        "from mediax import shards\n"
        "shards.FEWEST, shards.MOST = 1, 2\n"
        f"test_builder.prepare(pathlib.Path(sys.argv[1]), workers=1, **{options})"
    )
    tests = Path(__file__).parent
    environment = os.environ | {"TOY_DELAY": "0.3", "PYTHONPATH": f"{tests}:{tests.parent}"}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while len(finished_shards(tmp_path)) < finished:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def finished_shards(tmp_path) -> list[Path]:
    return sorted((tmp_path / "data").glob("test_builder/16/incomplete.1.0.0/*array_record*[0-9]"))


def test_killed_build_goes_on_where_it_stopped(tmp_path, small_shards, caplog):
    write_toy(tmp_path / "raw", images_per_split=7)
    start_killed_build(tmp_path, finished=3)
    with pytest.raises(InputError, match="no built set"):
        prepare(tmp_path, build=False)
    kept = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished_shards(tmp_path)}
    # What a kill can leave too: a line that was being written, a shard that was being written, one of an older plan.
    incomplete = finished_shards(tmp_path)[0].parent
    with (incomplete / shards.Manifest.NAME).open("a") as file:
        file.write('["test_bui')
    (incomplete / "test_builder-train.array_record-00003-of-00004.partial").write_bytes(b"half")
    (incomplete / "test_builder-train.array_record-00001-of-00009").write_bytes(b"of an older plan")
    with caplog.at_level("INFO"):
        resumed = prepare(tmp_path)
    now = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in resumed.iterdir()}
    good = int(re.search(r"left \d shards; (\d) of them are good, (\d) are still to be written", caplog.text).group(1))
    assert good >= len(kept) - 1  # the kill may have fallen between a shard and its line in the manifest
    assert sum(now[name] == state for name, state in kept.items()) == good
    whole = prepare(tmp_path, "whole", workers=3)
    assert files(resumed) == files(whole)
    assert not any(filecmp.cmpfiles(resumed, whole, files(whole), shallow=False)[1:])
    assert not list((tmp_path / "data").rglob("incomplete.*"))
    assert len({record["id"] for record in builder.Records(resumed, "train+test")}) == 14


def stopped_build(tmp_path, monkeypatch, broken: str, **options):
    """Stops a build of one image after the other at the image `broken`."""
    example = Builder.example

    def stop(self, row):
        if row.id == broken:
            raise RuntimeError("power cut")
        return example(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "example", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            prepare(tmp_path, workers=1, **options)


def test_shards_of_changed_raw_data_are_written_again(tmp_path, raw, monkeypatch, small_shards, caplog):
    stopped_build(tmp_path, monkeypatch, broken="b1")
    before = finished_shards(tmp_path)
    assert len(before) >= 2
    Image.fromarray(np.full((40, 20), 200, np.uint8)).save(raw / "images" / "a0.png")
    with caplog.at_level("INFO"):
        changed = prepare(tmp_path)
    assert f"left {len(before)} shards; {len(before) - 1} of them are good" in caplog.text
    assert "the raw data or the program has changed" in caplog.text
    records = {record["id"]: record for record in builder.Records(changed, "train")}
    assert (images.decode(records["a0"]["image"]) == 200).all()


def test_changed_annotations_build_anew(tmp_path, raw, monkeypatch, small_shards, caplog):
    stopped_build(tmp_path, monkeypatch, broken="b1")
    table = raw / "labels.csv"
    table.write_text(re.sub(r",(\d\d)$", r",9\1", table.read_text(), flags=re.MULTILINE))
    with caplog.at_level("INFO"):
        records = builder.Records(prepare(tmp_path), "train")
    assert "; 0 of them are good" in caplog.text
    assert {record["age"] for record in records} == {930, 931, 932}


def test_shard_with_skipped_images_is_kept_only_if_skipping_is_still_asked_for(
    tmp_path, raw, monkeypatch, small_shards
):
    (raw / "images" / "a0.png").write_bytes(b"no image")
    stopped_build(tmp_path, monkeypatch, broken="b1", on_corrupt="skip")
    with pytest.raises(InputError, match=r"a0\.png: cannot decode"):
        prepare(tmp_path)
    assert sorted(r["id"] for r in builder.Records(prepare(tmp_path, on_corrupt="skip"), "train")) == ["a1", "a2"]


def test_shard_of_corrupt_images_alone_is_empty(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(shards, "FEWEST", 1)
    monkeypatch.setattr(shards, "MOST", 1)
    (raw / "images" / "a1.png").write_bytes(b"no image")
    records = builder.Records(prepare(tmp_path, on_corrupt="skip"), "train+test")
    assert sorted(records[index]["id"] for index in range(len(records))) == ["a0", "a2", "b0", "b1", "b2"]


def test_builds_at_the_same_time_wait_for_the_first(tmp_path, raw, monkeypatch):
    built, rows = [], Builder.rows

    def slow(self, folder):
        built.append(threading.get_ident())
        time.sleep(0.3)
        return rows(self, folder)

    monkeypatch.setattr(Builder, "rows", slow)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: prepare(tmp_path), range(3)))
    assert len(built) == len(folders) == 1


# Builder configs.


def test_config_is_named_by_what_differs_from_the_defaults():
    assert Config().name == "native"
    assert Config(size=320, aspect="crop", encoding="jpeg95", views="frontal").name == "320-crop-jpeg95-frontal"
    assert builder.choose_config(Builder) is Builder.BUILDER_CONFIGS[0]
    assert builder.choose_config(Builder, "native") is Builder.BUILDER_CONFIGS[1]
    assert builder.choose_config(Builder, {"size": 16}) is Builder.BUILDER_CONFIGS[0]
    assert builder.choose_config(Builder, {"size": 64, "views": "frontal"}).name == "64-frontal"
    node21 = catalog.load("datasets", "node21").Builder  # a seed of 512 is no size of 512
    assert builder.choose_config(node21, {"split_seed": 512}).name == "split_seed512"
    assert builder.choose_config(node21, {"size": 512}).split_seed == 0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("nativ", "no builder config 'nativ': did you mean 'native'"),
        ({"sise": 3}, "no 'sise': did you mean 'size'"),
        ({"views": "frontel"}, "views='frontel': did you mean 'frontal'"),
        ({"size": 0}, "size=0: expected a positive number"),
        ({"aspect": "squeeze"}, "aspect='squeeze'"),
        ({"encoding": "jpeg101"}, "encoding 'jpeg101'"),
        ({"encoding": "webp"}, "encoding 'webp'"),
    ],
)
def test_wrong_config_is_an_error(chosen, message):
    with pytest.raises(InputError, match=message):
        builder.choose_config(Builder, chosen)


def test_config_given_by_values_builds(tmp_path, raw):
    directory = prepare(tmp_path, builder_config={"size": 32, "aspect": "letterbox"})
    assert directory.parts[-3:] == ("test_builder", "32-letterbox", "1.0.0")
    record = builder.Records(directory, "train")[0]
    image, mask = images.decode(record["image"]), images.decode(record["mask"])[..., 0]
    assert image.shape == (32, 32, 1)
    assert not image[:, :8].any()
    assert not image[:, 24:].any()
    np.testing.assert_allclose(record["boxes"], [[8 / 32, 12 / 32, 16 / 32, 20 / 32]])
    np.testing.assert_array_equal(np.argwhere(mask).min(0), [8, 12])
    np.testing.assert_array_equal(np.argwhere(mask).max(0), [15, 19])


class PlainBuilder(Builder):
    """The toy set with the base class's own record of an image."""

    def features(self):
        return {"age": np.float32}

    example = builder.Builder.example


class DeepBuilder(PlainBuilder):
    """The toy set for 16-bit images."""

    DTYPE = np.uint16


def test_native_files_are_stored_byte_for_byte(tmp_path, raw):
    rgb = raw / "images" / "a1.png"
    Image.open(rgb).convert("RGB").save(rgb)
    module = types.SimpleNamespace(Builder=PlainBuilder)
    options = {"manual_dir": tmp_path / "raw", "data_dir": tmp_path / "data", "split": "train"}
    records = {record["id"]: record for record in builder.source(module, builder_config="native", **options)}
    assert records["a0"]["image"] == (raw / "images" / "a0.png").read_bytes()
    assert images.decode(records["a1"]["image"]).shape == (40, 20, 1)
    np.testing.assert_array_equal(images.decode(records["a1"]["image"])[..., 0], np.asarray(Image.open(rgb))[..., 0])
    jpeg = builder.source(module, builder_config={"encoding": "jpeg90"}, **options)
    assert jpeg[0]["image"][:2] == b"\xff\xd8"


def test_deep_images_keep_their_16_bits(tmp_path, raw):
    deep = np.arange(800, dtype=np.uint16).reshape(40, 20) * 80
    for path in (raw / "images").iterdir():
        Image.fromarray(deep).save(path)
    module = types.SimpleNamespace(Builder=DeepBuilder)
    directory = builder.prepare(
        module, builder_config="native", manual_dir=tmp_path / "raw", data_dir=tmp_path / "data"
    )
    np.testing.assert_array_equal(images.decode(builder.Records(directory, "train")[0]["image"])[..., 0], deep)


# Tables, rules, order.


def test_table_is_read_by_stripped_name_without_conversion(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbf, b ,a\r\n0,1.0,\r\n\r\n1, -1 ,0.0")
    lines = list(builder.read_table(path, required=("a", "b")))
    assert lines == [
        (f"{path}, line 2", {"": "0", "b": "1.0", "a": ""}),
        (f"{path}, line 4", {"": "1", "b": "-1", "a": "0.0"}),
    ]
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [line for _, line in builder.read_table(packed)] == [line for _, line in lines]


def test_table_with_malformed_header_takes_given_names(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,box [x,y],,,\ni,1,2\n")
    assert [row for _, row in builder.read_table(tmp_path / "boxes.csv", header=("image", "x", "y"))] == [
        {"image": "i", "x": "1", "y": "2"}
    ]


def test_broken_table_names_column_or_line(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3")
    with pytest.raises(InputError, match=r"columns \['c'\] are missing; found \['a', 'b'\]"):
        list(builder.read_table(path, required=("a", "c")))
    with pytest.raises(InputError, match="line 3: 1 cells, the header has 2"):
        list(builder.read_table(path))
    path.write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(InputError, match=r"table\.csv: no readable CSV file .*; download it again"):
        list(builder.read_table(path))
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(b"a,b\n1,2\n" * 1000)[:-20])
    with pytest.raises(InputError, match=r"table\.csv\.gz: no readable CSV file"):
        list(builder.read_table(packed))
    with pytest.raises(InputError, match="line 2: a is 'x', expected a number"):
        builder.number("line 2", {"a": "x"}, "a")
    assert np.isnan(builder.number("line 2", {"a": ""}, "a"))
    assert np.isnan(builder.number("line 2", {}, "a"))


def test_written_table_can_end_without_newline(tmp_path):
    builder.write_table(tmp_path / "deep" / "t.csv", ("a",), [{"a": 1, "b": 2}], final_newline=False)
    assert (tmp_path / "deep" / "t.csv").read_text() == "a\n1"
    builder.write_table(tmp_path / "t.csv", ("a",), [{"a": 1}])
    assert (tmp_path / "t.csv").read_text() == "a\n1\n"


def test_held_out_patients_are_a_fixed_share():
    held_out = [index for index in range(10_000) if builder.held_out(f"patient{index:05d}", 0.05, salt="salt")]
    assert 400 < len(held_out) < 600
    # Known from SHA-256 itself: the rule must never change, or models would be tested on their training patients.
    assert held_out[:5] == [
        index
        for index in range(held_out[4] + 1)
        if hashlib.sha256(b"salt/patient%05d" % index).hexdigest()[:16] < f"{int(0.05 * 2**64):016x}"
    ]
    assert held_out != [index for index in range(10_000) if builder.held_out(f"patient{index:05d}", 0.05, salt="x")]


def test_parallel_map_keeps_order_and_few_items_under_way():
    started = []

    def work(item):
        started.append(item)
        time.sleep(0.01 * (item % 3))
        return item

    results = builder.in_order(work, range(50), 2)
    assert next(results) == 0
    assert len(started) <= 11
    assert list(results) == list(range(1, 50))


def test_progress_says_how_many_how_fast_and_how_long_still(caplog):
    with caplog.at_level("INFO"):
        assert list(builder.watched(iter("abc"), 3, "toy", seconds=0)) == ["a", "b", "c"]
    first, *_, last = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"toy: 1 of 3 images, [\d.e+]+ images/s, \d:\d\d:\d\d left", first)
    assert last.startswith("toy: 3 of 3 images") and last.endswith("0:00:00 left")


def test_unreachable_host_is_noticed_at_once():
    assert not builder.reachable("http://127.0.0.1:9/nothing")


# Images.


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_images_of_any_mode_are_read(tmp_path, mode, channels):
    grey = np.where(np.arange(24).reshape(4, 6) % 2, 255, 0).astype(np.uint8)
    Image.fromarray(grey).convert("RGB").convert(mode).save(tmp_path / "image.png")
    pixels = images.read(tmp_path / "image.png")
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], channels, 2))
    assert images.read(tmp_path / "image.png", channels=1).shape == (4, 6, 1)


def test_float_image_is_not_clipped_silently(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "image.tiff")
    with pytest.raises(InputError, match=r"image\.tiff: cannot decode .*floating-point"):
        images.read(tmp_path / "image.tiff")


def test_encoding_keeps_pixels_and_channel_order():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.decode(images.encode(rgb)), rgb)
    np.testing.assert_array_equal(images.decode(images.encode(rgb[..., :1])), rgb[..., :1])
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert np.abs(images.decode(images.encode(smooth, "jpeg95")).astype(int) - smooth).max() <= 2
    with pytest.raises(InputError, match="not a PNG or JPEG"):
        images.decode(b"nothing")


def test_fit_averages_when_shrinking_and_keeps_labels_pure():
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)[..., None]
    fit = images.Fit(64, 64, 32)
    assert (fit.image(checkerboard) == 100).all()
    assert set(np.unique(fit.image(checkerboard, nearest=True))) <= {0, 200}
    many = np.repeat(checkerboard, 14, 2)
    assert fit.image(many, nearest=True).shape == (32, 32, 14)


def test_fit_crops_the_long_side():
    columns = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (20, 40, 1))
    fit = images.Fit(20, 40, 20, "crop")
    np.testing.assert_array_equal(fit.image(np.ascontiguousarray(columns))[0, :, 0], np.arange(10, 30))
    np.testing.assert_allclose(fit.boxes([[0, 5, 10, 20]]), [[0, 0, 0.5, 0.5]])


def test_a_box_that_a_crop_cut_away_does_not_count():
    fields = {"boxes": [[0, 2, 10, 8], [0, 5, 10, 20]], "box_labels": np.int32([0, 0])}
    record = builder.follow(fields, images.Fit(20, 40, 20, "crop"), "a.csv, line 2") | {"id": "a", "patient_id": "p"}
    example = builder.example_of(record | {"image": images.encode(np.zeros((20, 20, 1), np.uint8))})
    assert example["box_valid"].tolist() == [False, True]
    np.testing.assert_allclose(example["boxes"][1], [0, 0, 0.5, 0.5])


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("shape", [(40, 20), (21, 33), (16, 16)])
@pytest.mark.parametrize("size", [16, 50])
def test_boxes_follow_the_image(aspect, shape, size):
    height, width = shape
    image = np.zeros((height, width, 1), np.uint8)
    box = (height // 2 - 4, width // 2 - 4, height // 2 + 4, width // 2 + 4)
    image[box[0] : box[2], box[1] : box[3]] = 255
    fit = images.Fit(height, width, size, aspect)
    fitted = fit.image(image)
    assert fitted.shape == (size, size, 1)
    rows, columns = np.nonzero(fitted[..., 0] > 127)
    found = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / size
    np.testing.assert_allclose(fit.boxes([box])[0], found, atol=1.01 / size)


def test_size_none_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 1), dtype=np.uint8)
    fit = images.Fit(5, 7, None)
    assert fit.image(image) is image
    np.testing.assert_allclose(fit.boxes([[1, 1, 4, 6]]), [[1 / 5, 1 / 7, 4 / 5, 6 / 7]])


def test_opencv_starts_no_threads_of_its_own():
    assert cv2.getNumThreads() <= 1
