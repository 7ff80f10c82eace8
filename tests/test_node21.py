import shutil

import numpy as np
import pytest

from mediax import builder, images
from mediax.datasets import node21
from mediax.errors import InputError

COUNT, SIZE = 12, 64


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Every layout, each in a manual folder of its own."""
    folder = tmp_path_factory.mktemp("node21")
    for release in node21.PHANTOM_LAYOUTS:
        node21.phantom(folder / release / "node21", release=release, index=release == "full", count=COUNT, size=SIZE)
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    """A copy of the full release that a test may damage; returns the folder with the table."""
    shutil.copytree(phantoms / "full", tmp_path / "raw")
    return tmp_path / "raw" / "node21" / "cxr_images" / "proccessed_data"


def build(tmp_path, manual, data="data", **config):
    return builder.prepare(node21, data_dir=tmp_path / data, manual_dir=manual, builder_config={"size": 32, **config})


def records(directory):
    splits = ("train", "validation", "test")
    return {record["id"]: (split, record) for split in splits for record in builder.Records(directory, split)}


@pytest.mark.parametrize("release", ["full", "corrected", "first"])
def test_every_layout_builds_to_the_drawn_boxes(phantoms, tmp_path, release):
    built = records(build(tmp_path, phantoms / release))
    positive = 0
    for number in range(COUNT):
        radiograph = node21.phantom_radiograph(0, number, size=SIZE)
        boxes = [box[1:] for box in radiograph.boxes if box[0] == "Nodule"]
        positive += bool(boxes)
        if release == "first" and not boxes:
            assert f"c{number:04d}" not in built
            continue
        example = node21.read(built[f"{'n' if boxes else 'c'}{number:04d}"][1])
        np.testing.assert_allclose(example["boxes"] * SIZE, np.reshape(boxes, (-1, 4)), atol=1e-4)
        assert example["labels"].tolist() == [float(bool(boxes))]
        assert example["box_labels"].tolist() == [0] * len(boxes)
        np.testing.assert_allclose(example["spacing_mm"], np.array(radiograph.spacing_mm) * 2, rtol=1e-5)
        expected = images.to_uint8(radiograph.image / radiograph.image.max())[..., None]
        assert np.abs(images.Fit(SIZE, SIZE, 32).image(expected) - example["image"].astype(float)).max() <= 1
    assert max(len(record["boxes"]) for _, record in built.values()) > 1  # several lines of one image are one record
    assert len(built) == (positive if release == "first" else COUNT)


def test_splits_are_stratified_and_follow_from_the_seed(phantoms, tmp_path):
    nodules = {f"{number}": node21.Nodules("", [[0] * 4] * (number < 300)) for number in range(1000)}
    splits = node21.assign(nodules, 0)
    for split, share in (("test", 0.2), ("validation", 0.1), ("train", 0.7)):
        members = [name for name in nodules if splits[name] == split]
        assert len(members) == round(1000 * share)
        assert sum(bool(nodules[name].boxes) for name in members) == round(300 * share)
    assert node21.assign(dict(reversed(nodules.items())), 0) == splits
    assert node21.assign(nodules, 1) != splits
    zero, one = (records(build(tmp_path, phantoms / "full", split_seed=seed)) for seed in (0, 1))
    assert {name: split for name, (split, _) in zero.items()} != {name: split for name, (split, _) in one.items()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("c0000.mha,0", "c0000.mha,2", "label is '2', expected 1"),
        ("c0000.mha,0", "c0000.mha,1", "nodule of '0' x '0' pixels has no area"),
        ("c0002.mha,0,0,0,0,0", "c0001.mha,0,0,0,0,0", "c0001.mha was listed before, by .*line 3"),
        ("c0002.mha", "c0099.mha", "no line names c0002.mha, nor 0 other images"),
        ("label", "class", "the raw data of NODE21"),
    ],
)
def test_bad_tables_are_named(tmp_path, raw, old, new, message):
    table = raw / "metadata.csv"
    text = table.read_text().replace("n0001.mha", "c0001.mha")
    (raw / "images" / "n0001.mha").rename(raw / "images" / "c0001.mha")
    assert old in text
    table.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        build(tmp_path, tmp_path / "raw")


def test_a_box_outside_of_the_image_and_an_absent_image_are_named(tmp_path, raw):
    table = raw / "metadata.csv"
    text = table.read_text()
    table.write_text(text.replace("n0001.mha,1,", "n0001.mha,1,9"))
    with pytest.raises(InputError, match=r"metadata\.csv, line 3: the box .* leaves the image of 64 x 64"):
        build(tmp_path, tmp_path / "raw")
    table.write_text(text)
    (raw / "images" / "c0002.mha").unlink()
    with pytest.raises(InputError, match=r"line \d+: the image .*c0002\.mha is absent"):
        build(tmp_path, tmp_path / "raw")


def test_extensions_in_capitals_and_images_not_cleaned_up(tmp_path, raw):
    (raw / "images" / "c0002.mha").rename(raw / "images" / "c0002.MHA")
    (raw / "images" / ".DS_Store").write_text("")
    assert "c0002" in records(build(tmp_path, tmp_path / "raw"))
