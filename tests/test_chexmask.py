import csv
import shutil

import cv2
import numpy as np
import pytest

from mediax import builder, images, rle
from mediax.datasets import chexmask
from mediax.errors import InputError

COUNT, SIZE = 8, 64


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """One manual folder with the tables and the images of all five sources."""
    folder = tmp_path_factory.mktemp("chexmask")
    chexmask.phantom(folder / "chexmask", sources=tuple(chexmask.SOURCES), count=COUNT, size=SIZE)
    return folder


@pytest.fixture
def raw(phantom, tmp_path):
    """A copy that a test may damage, of ChestX-ray14 and CheXpert alone; returns the manual folder."""
    for name in ("chexmask", "chestxray14", "chexpert"):
        shutil.copytree(phantom / name, tmp_path / "raw" / name)
    return tmp_path / "raw"


def build(tmp_path, manual, data="data", **config):
    return builder.prepare(chexmask, data_dir=tmp_path / data, manual_dir=manual, builder_config={"size": 48, **config})


def records(directory):
    splits = builder.tfds.builder_from_directory(str(directory)).info.splits
    return {record["id"]: (split, record) for split in splits for record in builder.Records(directory, split)}


def drawing(source, number):
    """The built record's id, and the drawing's image and masks u8[H,W,3]."""
    radiograph = chexmask.phantom_radiograph(0, source, number, size=SIZE)
    masks = np.stack([radiograph.masks[name] for name in chexmask.MASK_CLASSES], axis=-1).astype(np.uint8)
    return chexmask.row_id(chexmask.phantom_name(source, number, COUNT)), radiograph.image, masks


@pytest.mark.parametrize(
    ("source", "aspect"),
    [*((source, "stretch") for source in chexmask.SOURCES), ("chexpert", "crop"), ("chexpert", "letterbox")],
)
def test_every_source_gives_the_drawn_masks(phantom, tmp_path, source, aspect):
    built = records(build(tmp_path, phantom, source=source, aspect=aspect))
    assert len(built) == COUNT
    for number in range(COUNT):
        name, image, masks = drawing(source, number)
        split, record = built[name]
        example = chexmask.read(record, min_rca=0)
        fit = images.Fit(*image.shape, 48, aspect)
        np.testing.assert_array_equal(example["masks"], fit.image(masks, nearest=True))
        assert example["mask_valid"].all() and example["masks"].any(axis=(0, 1)).all()
        assert np.corrcoef(example["image"].ravel(), fit.image(image[..., None]).ravel())[0, 1] > 0.98
        assert (split == "test") == (number >= 6 if source != "padchest" else split == "test")
        # Landmarks lie on the borders of their structures: within a pixel of the file and outside no mask.
        points, start = fit.points_back(example["keypoints"]), 0
        for structure, count in chexmask.LANDMARKS.items():
            mask = masks[..., chexmask.MASK_CLASSES.index(structure)]
            inner = cv2.erode(np.pad(mask, 1), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
            rows, columns = np.floor(points[start : start + count]).astype(int).T
            assert mask[rows, columns].all() and not inner[rows, columns].any()
            start += count


@pytest.mark.parametrize("source", ["chestxray14", "mimic_cxr", "padchest", "vinbigdata"])
def test_preprocessed_masks_fit_the_image_as_the_network_saw_it(phantom, tmp_path, source):
    built = records(build(tmp_path, phantom, source=source, tables="preprocessed", size=256))
    for number in range(0, COUNT, 3):
        name, _, masks = drawing(source, number)
        example = chexmask.read(built[name][1], min_rca=0)
        path = chexmask.phantom_path(phantom / source, source, number, COUNT)
        pixels = chexmask.read_image(path)
        image, expected = (reference(pixels, each, chexmask.SOURCES[source].bordered) for each in (pixels, masks * 255))
        shown = images.Fit(1024, 1024, 256).image(expected) > 127
        overlap = (shown & (example["masks"] > 0)).sum() / (shown | (example["masks"] > 0)).sum()
        assert overlap > 0.95
        given = images.Fit(1024, 1024, 256).image(image)
        assert np.abs(given.astype(float) - example["image"]).mean() < 2
        assert example["keypoints"].min() >= 0 and example["keypoints"].max() <= 1


def reference(pixels, values, bordered):
    """The preprocessing in OpenCV's and NumPy's words: cut off the border, pad to a square, scale to 1024."""
    if bordered:
        rows, columns = (np.flatnonzero((pixels[..., 0] > 1).any(axis=axis)) for axis in (1, 0))
        values = values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width, channels = values.shape
    side = max(height, width)
    square = np.zeros((side, side, channels), values.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = values
    return cv2.resize(square, (1024, 1024), interpolation=cv2.INTER_LINEAR).reshape(1024, 1024, channels)


def test_the_black_border_is_cut_off():
    pixels = np.zeros((60, 40, 1), np.uint8)
    pixels[10:40, 5:25] = 9
    image, (scale, shift) = chexmask.preprocess(pixels, bordered=True)
    assert image.shape == (1024, 1024, 1) and scale.tolist() == [1024 / 30] * 2
    np.testing.assert_allclose(scale * (10, 5) + shift, [0, 5 * 1024 / 30])
    assert chexmask.inner_area(np.zeros((6, 4, 1), np.uint8)) == (0, 0, 6, 4)


def test_gzipped_tables_give_the_same_records(phantom, tmp_path):
    chexmask.phantom(tmp_path / "packed" / "chexmask", count=COUNT, size=SIZE, packed=True)
    tables = list((tmp_path / "packed" / "chexmask").rglob("*.csv*"))
    assert [path.suffix for path in tables] == [".gz"] * 2
    plain, packed = (records(build(tmp_path, manual, manual.name)) for manual in (phantom, tmp_path / "packed"))
    for name, (split, record) in plain.items():
        assert packed[name][0] == split
        np.testing.assert_equal(packed[name][1], record)


def test_landmarks_have_line_breaks_in_the_original_table_alone(phantom):
    for tables, folder in chexmask.FOLDERS.items():
        path = phantom / "chexmask" / folder / "ChestX-Ray8.csv"
        with path.open() as file:
            texts = [line["Landmarks"] for line in csv.DictReader(file)]
        assert all(("\n" in text) == (tables == "original") for text in texts)
        assert all(chexmask.parse_landmarks("", text).shape == (120, 2) for text in texts)
        assert len(path.read_text().splitlines()) == (1 + COUNT * 120 if tables == "original" else 1 + COUNT)


def test_rows_of_low_rca_are_unknown_or_left_out(phantom, tmp_path):
    built = records(build(tmp_path, phantom))
    poor = [record for _, record in built.values() if record["rca_mean"] < 0.7]
    assert len(poor) == 1
    example = chexmask.read(poor[0])
    assert not example["mask_valid"].any() and np.isnan(example["keypoints"]).all()
    assert chexmask.read(poor[0], min_rca=0.52, statistic="max")["mask_valid"].all()
    assert not chexmask.read(poor[0], min_rca=0.52)["mask_valid"].any()
    limit = dict(poor[0], rca_mean=0.7)
    assert chexmask.read(limit)["mask_valid"].all() and not chexmask.read(limit, min_rca=0.701)["mask_valid"].any()
    with pytest.raises(InputError, match="statistic='median'"):
        chexmask.read(poor[0], statistic="median")
    assert len(records(build(tmp_path, phantom, min_rca=0.7))) == COUNT - 1


def test_splits_follow_the_source(phantom, tmp_path):
    built = records(build(tmp_path, phantom, source="mimic_cxr"))
    splits = [built[chexmask.phantom_name("mimic_cxr", number, COUNT)][0] for number in range(COUNT)]
    assert splits == ["validation", *["train"] * 5, "test", "test"]
    source = chexmask.SOURCES["chestxray14"]
    for number in range(50):
        image = chexmask.Image(phantom, f"{number:08d}", "train")
        held_out = builder.held_out(image.patient_id, 0.1, salt="chestxray14/validation")
        assert chexmask.split_of(image, source) == ("validation" if held_out else "train")
    padchest = records(build(tmp_path, phantom, source="padchest"))
    homes = {}
    for split, record in padchest.values():
        assert homes.setdefault(record["patient_id"], split) == split
    assert len(homes) == COUNT // 2


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_bad_rows_are_named(raw, tmp_path):
    table = raw / "chexmask" / "OriginalResolution" / "ChestX-Ray8.csv"
    text = table.read_text()
    with table.open() as file:
        first = next(csv.DictReader(file))
    for old, new, message in (
        (first["Heart"], "5 1 7", r"ChestX-Ray8\.csv, line 121: Heart: run lengths: 3 numbers"),
        (first["Heart"], "5000 1", r"line 121: Heart: run lengths"),
        (",64,64\n", ",32,64\n", r"line 121: masks of 32 x 64 pixels, the image has 64 x 64"),
        ("[[", "[[ 7 ", r"line 121: 241 words in Landmarks, expected 240"),
        ("[[", "[[x", r"line 121: 240 words in Landmarks, expected 240 numbers"),
        (",64,64\n", ",64\n", r"line 121: 8 cells, the header has 9"),
        ("Landmarks", "Points", r"columns \['Landmarks'\] are missing"),
        ("00000001_000.png", "00000091_000.png", r"line 121: the image .*00000091_000\.png is absent"),
    ):
        table.write_text(text)
        edit(table, old, new)
        with pytest.raises(InputError, match=message):
            build(tmp_path, raw)


def test_absent_images_are_an_error_or_skipped(raw, tmp_path):
    (raw / "chestxray14" / "images" / "00000003_000.png").unlink()
    with pytest.raises(InputError, match=r"00000003_000\.png is absent"):
        build(tmp_path, raw)
    assert len(records(build(tmp_path, raw, absent="skip"))) == COUNT - 1
    shutil.rmtree(raw / "chestxray14")
    with pytest.raises(InputError, match="the images of chestxray14 are not: looked in"):
        build(tmp_path, raw, "two")


def test_the_official_test_list_is_needed(raw, tmp_path):
    (raw / "chestxray14" / "test_list.txt").unlink()
    with pytest.raises(InputError, match=r"holds no test_list\.txt"):
        build(tmp_path, raw)


def test_other_layouts_of_the_sources(phantom, raw, tmp_path):
    kaggle = raw / "chestxray14" / "images_001" / "images"
    kaggle.parent.mkdir()
    (raw / "chestxray14" / "images").rename(kaggle)
    assert len(records(build(tmp_path, raw))) == COUNT
    batch = raw / "chexpert" / "CheXpert-v1.0 batch 2 (train 1)"
    (raw / "chexpert" / "CheXpert-v1.0-small" / "train").rename(batch)
    plain, batches = (records(build(tmp_path, manual, manual.name, source="chexpert")) for manual in (phantom, raw))
    assert {name: split for name, (split, _) in plain.items()} == {name: split for name, (split, _) in batches.items()}


def test_a_cell_may_be_longer_than_the_csv_module_allows(raw, tmp_path):
    table = raw / "chexmask" / "OriginalResolution" / "ChestX-Ray8.csv"
    with table.open() as file:
        lines = list(csv.DictReader(file))
    noise = np.random.default_rng(0).random((400, 400)) > 0.5
    lines[0] |= {"Heart": rle.chexmask_encode(noise), "Height": 400, "Width": 400}
    limit = 131072  # the module's default
    csv.field_size_limit(limit)
    assert len(lines[0]["Heart"]) > limit
    builder.write_table(table, tuple(lines[0]), lines)
    image = raw / "chestxray14" / "images" / "00000001_000.png"
    images.write(image, np.zeros((400, 400, 1), np.uint8))
    built = records(build(tmp_path, raw, size=400))
    np.testing.assert_array_equal(chexmask.read(built["00000001_000"][1], min_rca=0)["masks"][..., 2], noise)
