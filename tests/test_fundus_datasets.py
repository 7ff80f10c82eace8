"""The datasets of fundus photographs, built from their phantoms and compared with what was drawn."""

import functools
import gzip
import shutil

import cv2
import numpy as np
import openpyxl
import pytest
from PIL import Image

from mediax import batch, builder, catalog, images, photographs
from mediax.datasets import chase_db1, drions_db, drishti_gs, drive, fire, hrf, stare
from mediax.errors import InputError
from mediax.phantoms import fundus

SEED = 3
ASPECTS = images.ASPECTS
# Name of a tree -> dataset, arguments of its phantom.
TREES = {
    "drive": (drive, {"images": 3, "size": 64}),
    "drive_current": (drive, {"images": 2, "size": 64, "release": "current"}),
    "stare": (stare, {"images": 6, "size": 64}),
    "stare_unzipped": (stare, {"images": 3, "size": 64, "zipped": False}),
    "hrf": (hrf, {"images": 6, "size": 64}),
    "hrf_groups": (hrf, {"images": 4, "size": 64, "layout": "groups"}),
    "chase_db1": (chase_db1, {"children": 5, "size": 64}),
    "drishti_gs": (drishti_gs, {"images": 4, "size": 64}),
    "drishti_gs_current": (drishti_gs, {"images": 2, "size": 64, "release": "current"}),
    "drions_db": (drions_db, {"images": 3, "size": 64}),
    "fire": (fire, {"pairs": ("A01", "P37", "S01", "S02"), "size": 64}),
}
VESSELS = ("drive", "stare", "stare_unzipped", "hrf", "hrf_groups", "chase_db1")


def name_of(module):
    return module.__name__.rpartition(".")[2]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Gives the manual folder of a tree of TREES; it is drawn when it is first asked for."""
    drawn = {}

    def tree(name):
        if name not in drawn:
            module, options = TREES[name]
            drawn[name] = tmp_path_factory.mktemp(name)
            module.phantom(drawn[name] / name_of(module), seed=SEED, **options)
        return drawn[name]

    return tree


@pytest.fixture
def damaged(trees, tmp_path):
    """Gives a copy of a tree that a test may damage."""

    def copy(name):
        shutil.copytree(trees(name), tmp_path / "raw" / name)
        return tmp_path / "raw" / name

    return copy


@pytest.fixture
def build(trees, tmp_path):
    """Builds a tree, by name or in a folder, and gives {split: {id: record}}."""

    def built(name, manual=None, **config):
        module = TREES[name][0]
        directory = builder.prepare(
            module,
            data_dir=tmp_path / "built",
            manual_dir=manual or trees(name),
            builder_config={"size": None, "aspect": "stretch", **config},
        )
        return {
            split: {record["id"]: record for record in builder.Records(directory, split)}
            for split in builder.tfds.builder_from_directory(str(directory)).info.splits
        }

    return built


def merged(splits):
    return {name: record for records in splits.values() for name, record in records.items()}


def one(manual, pattern):
    return sorted(manual.rglob(pattern))[0]


def refused(build, name, manual, *words):
    with pytest.raises(InputError) as caught:
        build(name, manual)
    for word in words:
        assert str(word) in str(caught.value)


@functools.cache
def drawing(module, key):
    """The photograph that the phantom drew for a record of the small trees."""
    key = {drive: key[:2], chase_db1: key.removeprefix("Image_"), drions_db: key.removeprefix("image_")}.get(
        module, key
    )
    key = key.lower() if module is drishti_gs else key
    return module.phantom_photograph(SEED, key, 64)


@functools.cache
def second_reading(module, key):
    key = {drive: key[:2], chase_db1: key.removeprefix("Image_")}.get(module, key)
    return fundus.second_reader(drawing(module, key).masks, photographs.seed_of(SEED, key))["Vessels"]


@functools.cache
def drawn_pair(name):
    return fire.phantom_pair(SEED, name, 64)


def agreement(mask, truth):
    return (mask.astype(bool) & truth).sum() / (mask.astype(bool) | truth).sum()


# Masks of vessels.


@pytest.mark.parametrize("name", VESSELS)
def test_vessels_equal_what_was_drawn(build, name):
    module = TREES[name][0]
    records = merged(build(name))
    assert records
    for key, record in records.items():
        example, truth = module.read(record), drawing(module, key)
        np.testing.assert_array_equal(example["masks"][..., 0], truth.masks["Vessels"])
        assert example["masks"].any() and example["mask_valid"].all()
        if module is drive or name == "hrf":  # shipped
            np.testing.assert_array_equal(example["field_of_view"], truth.masks["Field of View"])
        else:
            assert agreement(example["field_of_view"], truth.masks["Field of View"]) > 0.9
        if module in (drive, stare):  # stored without loss
            np.testing.assert_array_equal(example["image"], truth.image)
        assert ("second_masks" in example) == (module in (stare, chase_db1) or key.endswith("_test"))
        if "second_masks" in example:
            second = second_reading(module, key)
            np.testing.assert_array_equal(example["second_masks"][..., 0], second)
            assert (second != truth.masks["Vessels"]).any()
            swapped = module.read(record, reader=2)
            np.testing.assert_array_equal(swapped["masks"], example["second_masks"])
            np.testing.assert_array_equal(swapped["second_masks"], example["masks"])


@pytest.mark.parametrize("module", [drive, stare, hrf, chase_db1], ids=name_of)
def test_a_hard_phantom_has_hard_photographs_and_a_first_reader_who_errs(build, module, tmp_path):
    name = name_of(module)
    few = {"children": 3} if module is chase_db1 else {"images": 4}
    hard = {"difficulty": 0.6, "first_reader_error": 0.8}
    module.phantom(tmp_path / "hard" / name, seed=SEED, size=128, **few, **hard)
    records = merged(build(name, tmp_path / "hard"))
    assert records
    for key, record in records.items():
        key = {drive: key[:2], chase_db1: key.removeprefix("Image_")}.get(module, key)
        photo, easy = module.phantom_photograph(SEED, key, 128, 0.6), module.phantom_photograph(SEED, key, 128)
        first = fundus.first_reader(photo.masks, photographs.seed_of(SEED, key), 0.8)["Vessels"]
        example = module.read(record)
        np.testing.assert_array_equal(example["masks"][..., 0], first)
        assert (first != photo.masks["Vessels"]).any()
        np.testing.assert_array_equal(photo.masks["Vessels"], easy.masks["Vessels"])
        if module in (drive, stare):  # stored without loss
            np.testing.assert_array_equal(example["image"], photo.image)
            assert (photo.image != easy.image).mean() > 0.5


@pytest.mark.parametrize("aspect", ASPECTS)
def test_masks_follow_the_image(build, aspect):
    for key, record in merged(build("hrf", size=96, aspect=aspect)).items():
        truth = drawing(hrf, key).masks["Field of View"]
        fit = images.Fit(*truth.shape, 96, aspect)
        expected = fit.image(truth.astype(np.uint8)[..., None], nearest=True)[..., 0]
        mask = hrf.read(record)["field_of_view"]
        assert mask.shape == (96, 96)
        np.testing.assert_array_equal(mask, expected)
        # Back in the file, only pixels next to the border may differ, and only where the crop kept them.
        back = fit.mask_back(mask).reshape(truth.shape)
        kept = fit.mask_back(np.ones((96, 96), np.uint8)).reshape(truth.shape) > 0
        solid = truth.astype(np.uint8)
        border = cv2.dilate(solid, np.ones((3, 3), np.uint8)) != cv2.erode(solid, np.ones((3, 3), np.uint8))
        assert not ((back != solid) & ~border & kept).any()


def test_drive_has_its_official_splits(build):
    splits = build("drive")
    assert set(splits["train"]) | set(splits["tuning"]) == {"21_training", "31_training", "40_training"}
    assert set(splits["tuning"]) == {"40_training"}
    assert set(splits["test"]) == {"01_test", "11_test", "20_test"}
    assert {record["patient_id"] for record in splits["test"].values()} == {"01", "11", "20"}


def test_drive_without_masks_of_the_test_images(build):
    splits = build("drive_current")
    for record in splits["test"].values():
        example = drive.read(record)
        assert not example["mask_valid"].any() and not example["masks"].any() and "second_masks" not in example
        assert example["field_of_view"].any()
        with pytest.raises(InputError, match="reader=2, but only one reader saw it"):
            drive.read(record, reader=2)
        with pytest.raises(InputError, match="expected 1 or 2"):
            drive.read(record, reader=3)


@pytest.mark.parametrize("lost", ["40_manual1.gif", "01_manual1.gif", "20_manual2.gif", "01_test_mask.gif"])
def test_drive_lacks_one_file(build, damaged, lost):
    manual = damaged("drive")
    one(manual, lost).unlink()
    refused(build, "drive", manual, lost[:2], "is absent, as are those of 1 of", "complete the download")


@pytest.mark.parametrize("lost", ["21_training.tif", "11_test.tif"])
def test_drive_lacks_an_image(build, damaged, lost):
    manual = damaged("drive")
    one(manual, lost).unlink()
    refused(build, "drive", manual, f"{lost[:2]}_manual1.gif", "the image that it belongs to is absent")


def test_drive_image_in_the_wrong_split(build, damaged):
    manual = damaged("drive")
    image = one(manual, "21_training.tif")
    image.rename(image.with_name("21_test.tif"))
    refused(build, "drive", manual, "21_manual1.gif", "the image that it belongs to is absent")


def test_mask_of_another_size(build, damaged):
    manual = damaged("drive")
    mask = one(manual, "21_manual1.gif")
    Image.open(mask).resize((60, 60)).save(mask)
    refused(build, "drive", manual, mask, "[60, 60]")


def test_corrupt_mask_is_an_error(build, damaged):
    manual = damaged("drive")
    mask = one(manual, "21_manual1.gif")
    mask.write_bytes(mask.read_bytes()[:20])
    refused(build, "drive", manual, mask, "cannot decode", "asked for by")


def test_two_copies_of_a_file(build, damaged):
    manual = damaged("drive")
    shutil.copy(one(manual, "21_training.tif"), manual / "drive")
    refused(build, "drive", manual, "21_training.tif", "is the same file of the dataset; keep one of them")


def test_files_of_macos_and_deeper_folders(build, damaged):
    manual = damaged("drive")
    (manual / "drive").rename(manual / "raw")
    (manual / "drive" / "DRIVE").mkdir(parents=True)
    (manual / "raw").rename(manual / "drive" / "DRIVE" / "datasets")
    resource = manual / "drive" / "__MACOSX" / "._21_training.tif"
    resource.parent.mkdir()
    resource.write_bytes(b"no image")
    shutil.copy(resource, one(manual, "21_training.tif").parent)
    assert len(merged(build("drive", manual))) == 6


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 254)])
@pytest.mark.parametrize("form", ["grey.png", "bit.png", "palette.gif", "colour.tif", "grey.ppm.gz"])
def test_masks_of_every_kind_decode(tmp_path, values, form):
    truth = np.zeros((7, 9), np.uint8)
    truth[2:5, 3:8] = 1
    grey = np.where(truth, values[1], values[0]).astype(np.uint8)
    if form == "bit.png":
        Image.fromarray(truth.astype(bool)).save(tmp_path / form)
        assert Image.open(tmp_path / form).mode == "1"
    elif form == "palette.gif":
        image = Image.fromarray(truth, "P")
        image.putpalette([0, 0, 0, *[values[1]] * 3])
        image.save(tmp_path / form)
    elif form == "colour.tif":
        Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / form)
    else:
        photographs.write(tmp_path / form, grey)
    np.testing.assert_array_equal(photographs.read_mask(tmp_path / form), truth)


def test_an_empty_mask_stays_empty(tmp_path):
    photographs.write(tmp_path / "mask.png", np.zeros((4, 5), np.uint8))
    assert not photographs.read_mask(tmp_path / "mask.png").any()


def test_stare_labels_are_grey_in_a_ppm(trees):
    manual = trees("stare")
    assert gzip.decompress(one(manual, "*.ah.ppm.gz").read_bytes()).startswith(b"P5")
    assert gzip.decompress((manual / "stare" / "im0001.ppm.gz").read_bytes()).startswith(b"P6")


def test_stare_splits(build):
    halves = build("stare")
    assert {*halves["train"], *halves["tuning"]} < set(stare.IMAGES[:10])
    assert set(halves["test"]) < set(stare.IMAGES[10:])
    alone = build("stare", split="im0001")
    assert set(alone["test"]) == {"im0001"} and set(alone["tuning"]) == {"im0324"}
    assert len(merged(alone)) == 6
    for split in stare.Builder.BUILDER_CONFIGS:
        assert split.split == "halves" or split.name == split.split
    assert len(stare.IMAGES) == len(set(stare.IMAGES)) == 20
    with pytest.raises(InputError, match="split='im0078': did you mean 'im00"):
        stare.Config(split="im0078")


def test_stare_without_the_second_reader(build, damaged):
    manual = damaged("stare_unzipped")
    for path in manual.rglob("*.vk.ppm"):
        path.unlink()
    for record in merged(build("stare_unzipped", manual)).values():
        assert "second_masks" not in stare.read(record)


def test_hrf_labels_and_splits(build, trees):
    splits = build("hrf")
    for key, record in merged(splits).items():
        expected = {"h": "No Finding", "dr": "Diabetic Retinopathy", "g": "Glaucoma"}[key.split("_")[1]]
        assert hrf.read(record)["labels"].tolist() == [float(name == expected) for name in hrf.CLASSES]
        assert key in splits["test"] if int(key[:2]) > 5 else key not in splits["test"]
    assert len(hrf.NAMES) == 45 and sorted(hrf.NAMES[12:15]) == ["05_dr", "05_g", "05_h"]
    names = {path.name for path in (trees("hrf") / "hrf" / "images").iterdir()}
    assert all(name.endswith(("_dr.JPG", "_g.jpg", "_h.jpg")) for name in names)
    assert Image.open(one(trees("hrf"), "*_mask.tif")).mode == "RGB"
    assert not list(trees("hrf_groups").rglob("*_mask.tif"))


def test_hrf_stores_the_files_own_bytes(build, trees):
    record = merged(build("hrf"))["01_h"]
    assert record["image"] == one(trees("hrf"), "01_h.jpg").read_bytes()


def test_chase_db1_has_three_splits_that_keep_children_together():
    sizes = {"first_20": (18, 2, 8), "last_8": (6, 2, 20), "first_8": (6, 2, 20)}
    for split, (train, tuning, test) in sizes.items():
        splits = chase_db1.Builder(config=chase_db1.Config(split=split)).splits()
        assert [len(splits[name]) for name in ("train", "tuning", "test")] == [train, tuning, test]
        children = [{key[6:8] for key in keys} for keys in splits.values()]
        assert sum(map(len, children)) == 14 == len(set.union(*children))
    last = chase_db1.Builder(config=chase_db1.Config(split="last_8")).splits()
    assert {*last["train"], *last["tuning"]} == {f"image_{n}{side}" for n in range(11, 15) for side in "lr"}


def test_chase_db1_builds_each_split(build, trees):
    assert Image.open(one(trees("chase_db1"), "*_1stHO.png")).mode == "1"
    for split in chase_db1.TRAINS:
        splits = build("chase_db1", split=split)
        assert len(merged(splits)) == 10
        for record in merged(splits).values():
            assert record["patient_id"] == record["id"][6:8]


# Optic disc and cup.


@pytest.mark.parametrize("name", ["drishti_gs", "drishti_gs_current"])
def test_drishti_gs_keeps_what_each_number_of_experts_marked(build, name):
    records = merged(build(name))
    resized = 0
    for key, record in records.items():
        truth = drawing(drishti_gs, key)
        maps = drishti_gs.phantom_maps(truth, photographs.seed_of(SEED, key.lower()))
        for experts, level in zip((1, 2, 3, 4), (64, 128, 191, 255)):
            example = drishti_gs.read(record, agreement=experts)
            assert example["masks"].shape == (*truth.image.shape[:2], 2)
            for structure, mask in zip(drishti_gs.MASK_CLASSES, np.moveaxis(example["masks"], 2, 0)):
                if int(key[-3:]) % 3:
                    np.testing.assert_array_equal(mask, maps[structure] >= level)
                else:  # its soft map is a little smaller than the image
                    resized += 1
                    assert agreement(mask, maps[structure] >= level) > 0.6
        assert example["mask_valid"].all() and set(example) >= {"field_of_view", "labels"}
        assert "agreement_masks" not in example
        assert drishti_gs.read(record)["labels"].tolist() == [float(drishti_gs.has_glaucoma(SEED, key.lower()))]
        np.testing.assert_array_equal(drishti_gs.read(record)["masks"], drishti_gs.read(record, agreement=3)["masks"])
        with pytest.raises(InputError, match="expected 1, 2, 3 or 4 experts"):
            drishti_gs.read(record, agreement=5)
    assert resized or name == "drishti_gs_current"


def test_drishti_gs_has_its_official_splits(build):
    assert len(drishti_gs.TRAIN) == len(set(drishti_gs.TRAIN)) == 50 and len(drishti_gs.TEST) == 51
    splits = build("drishti_gs")
    assert all(key.lower() in drishti_gs.TRAIN for key in {**splits["train"], **splits["tuning"]})
    assert all(key.lower() in drishti_gs.TEST for key in splits["test"])


def test_drishti_gs_image_in_the_wrong_folder(build, damaged):
    manual = damaged("drishti_gs")
    image = one(manual, "drishtiGS_002.png")
    image.rename(image.parents[2] / "Test" / "Images" / image.name)
    refused(build, "drishti_gs", manual, "drishtiGS_002.png", "an official train image")


def test_drishti_gs_without_a_diagnosis(build, damaged):
    manual = damaged("drishti_gs")
    one(manual, "*.xlsx").unlink()
    assert all(
        np.isnan(drishti_gs.read(record)["labels"]).all() for record in merged(build("drishti_gs", manual)).values()
    )


def edit_diagnosis(manual, row, total):
    table = one(manual, "*.xlsx")
    workbook = openpyxl.load_workbook(table)
    workbook.active.cell(row, 3).value = total
    workbook.save(table)
    return table


def test_drishti_gs_diagnosis_with_an_unknown_word(build, damaged):
    manual = damaged("drishti_gs")
    table = edit_diagnosis(manual, 6, "Suspect")
    refused(build, "drishti_gs", manual, f"{table}, row 6", "'Suspect'", "Normal or Glaucomatous")


def test_drishti_gs_diagnosis_without_its_column(build, damaged):
    manual = damaged("drishti_gs")
    table = edit_diagnosis(manual, 5, "Sum")
    refused(build, "drishti_gs", manual, table, "'Drishti-GS File' and 'Total'")


def test_drishti_gs_diagnosis_that_is_no_workbook(build, damaged):
    manual = damaged("drishti_gs")
    table = one(manual, "*.xlsx")
    table.write_bytes(b"<html>")
    refused(build, "drishti_gs", manual, table, "no readable Excel file")


def test_drishti_gs_folder_and_table_disagree(build, damaged, trees):
    manual = damaged("drishti_gs_current")
    shutil.copy(one(trees("drishti_gs"), "*.xlsx"), manual / "drishti_gs")
    image = one(manual, "drishtiGS_002.png")
    other = image.parents[1] / ("NORMAL" if image.parent.name == "GLAUCOMA" else "GLAUCOMA")
    other.mkdir(exist_ok=True)
    image.rename(other / image.name)
    refused(build, "drishti_gs_current", manual, "drishtiGS_002.png", "the folder says", "the opposite")


def test_drishti_gs_lacks_a_soft_map(build, damaged):
    manual = damaged("drishti_gs")
    one(manual, "drishtiGS_002_cupsegSoftmap.png").unlink()
    refused(build, "drishti_gs", manual, "drishtiGS_002.png", "soft map of the optic cup is absent")


def test_drishti_gs_soft_map_of_another_image(build, damaged):
    manual = damaged("drishti_gs")
    path = one(manual, "drishtiGS_002_ODsegSoftmap.png")
    Image.open(path).resize((200, 200)).save(path)
    refused(build, "drishti_gs", manual, path, "a soft map of 200 x 200 pixels", "resized copy")


def test_drions_db_contours_fill_the_disc(build):
    splits, differ = build("drions_db"), False
    for key, record in merged(splits).items():
        truth = drawing(drions_db, key)
        example = drions_db.read(record)
        assert agreement(example["masks"][..., 0], truth.masks["Optic Disc"]) > 0.9
        swapped = drions_db.read(record, reader=2)
        np.testing.assert_array_equal(swapped["masks"], example["second_masks"])
        differ = differ or (example["masks"] != example["second_masks"]).any()
        assert "polygons" not in example and example["mask_valid"].tolist() == [True]
    assert differ
    assert merged(splits)["image_101"]["original_size"].tolist() == [64, 95]
    assert merged(splits)["image_001"]["original_size"].tolist() == [64, 96]
    assert set(splits["tuning"]) == {"image_060"} and "image_061" in splits["test"]


@pytest.mark.parametrize("aspect", ASPECTS)
def test_drions_db_contours_follow_the_image(build, trees, aspect):
    for key, record in merged(build("drions_db", size=48, aspect=aspect)).items():
        fit = images.Fit(*record["original_size"], 48, aspect)
        path = one(trees("drions_db"), f"anotExpert1_{key[-3:]}.txt")
        points = photographs.read_numbers(path, 2)[:, ::-1]
        first = record["polygons"][: record["polygon_lengths"][0]]
        np.testing.assert_allclose(fit.points_back(first), points, atol=1e-2)
        assert drions_db.read(record)["masks"].any()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("17.0 ; 4", "line 3: found '17.0 ; 4', expected 2 numbers"),
        ("17.0 , nan", "line 3: found '17.0 , nan'"),
        ("17.0 , 4 , 9", "line 3"),
        ("40.0 , 90.0", "point 3, x, y = 40, 90, lies outside of the image of 96 x 64 pixels"),
    ],
)
def test_drions_db_contour_with_a_bad_line(build, damaged, line, words):
    manual = damaged("drions_db")
    path = one(manual, "anotExpert2_001.txt")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    refused(build, "drions_db", manual, "anotExpert2_001.txt" if "line" in words else "", words)


@pytest.mark.parametrize(("text", "words"), [("", "the file is empty"), ("1 , 2\n3 , 4", "2 points")])
def test_drions_db_contour_that_is_none(build, damaged, text, words):
    manual = damaged("drions_db")
    path = one(manual, "anotExpert1_001.txt")
    path.write_text(text)
    refused(build, "drions_db", manual, path, words)


def test_drions_db_image_that_is_none(build, damaged):
    manual = damaged("drions_db")
    image = one(manual, "image_001.jpg")
    shutil.copy(image, image.with_name("image_111.jpg"))
    refused(build, "drions_db", manual, "image_111.jpg", "expected image_001.jpg to image_110.jpg")


# Registration.


@pytest.mark.parametrize("aspect", ASPECTS)
def test_fire_points_and_images(build, trees, aspect):
    records = build("fire", size=48, aspect=aspect)["test"]
    for pair, record in records.items():
        example = fire.read(record, wrong_points="keep")
        drawn = drawn_pair(pair)
        fit = images.Fit(64, 64, 48, aspect)
        assert fire.CATEGORIES[example["category"]] == pair[0]
        assert (
            agreement(
                example["field_of_view"],
                fit.image(drawn.reference.masks["Field of View"][..., None].astype(np.uint8), nearest=True)[..., 0] > 0,
            )
            == 1
        )
        for field, photograph, points in (
            ("image", drawn.reference, drawn.reference_points),
            ("moving", drawn.moving, drawn.moving_points),
        ):
            expected = fit.image(photograph.image).astype(float)
            assert np.abs(example[field] - expected).mean() < 6  # JPEG
            keypoints = example["keypoints" if field == "image" else "moving_keypoints"]
            if pair != "P37" or field == "image":
                np.testing.assert_allclose(fit.points_back(keypoints), points[:, ::-1], atol=1e-2)


def test_fire_points_show_the_same_place(trees):
    """The columns 0 and 1 belong to the file _1: the drawn transformation maps the other two onto them."""
    rows = photographs.read_numbers(one(trees("fire"), "control_points_S01_1_2.txt"), 4)
    transform = drawn_pair("S01").transform
    np.testing.assert_allclose(transform(rows[:, 2:]), rows[:, :2], atol=0.01)
    wrong = photographs.read_numbers(one(trees("fire"), "control_points_P37_1_2.txt"), 4)
    error = np.linalg.norm(drawn_pair("P37").transform(wrong[:, 2:]) - wrong[:, :2], axis=1)
    assert error.mean() > 0.5


def test_fire_wrong_pair_is_flagged(build):
    records = build("fire", size=48)["test"]
    assert [pair for pair, record in records.items() if record["points_wrong"]] == ["P37"]
    for pair, record in records.items():
        assert np.isnan(fire.read(record)["keypoints"]).all() == (pair == "P37")
        assert np.isnan(fire.read(record)["moving_keypoints"]).all() == (pair == "P37")
        assert not np.isnan(fire.read(record, wrong_points="keep")["keypoints"]).any()
        with pytest.raises(InputError, match="wrong_points='drop'"):
            fire.read(record, wrong_points="drop")


def test_fire_pairs_that_share_a_photograph_are_one_patient(build, trees):
    records = build("fire", size=48)["test"]
    assert {pair: record["patient_id"] for pair, record in records.items()} == {
        "A01": "A01",
        "P37": "P37",
        "S01": "S01",
        "S02": "S01",
    }
    folder = trees("fire") / "fire" / "FIRE" / "Images"
    assert (folder / "S01_2.jpg").read_bytes() != (folder / "S02_2.jpg").read_bytes()


def test_groups_of_pairs_join(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_text(name)
    pairs = {"P1": "ab", "P2": "cd", "P3": "bc", "S1": "aa"}
    groups = fire.shared_photographs({pair: (tmp_path / one, tmp_path / two) for pair, (one, two) in pairs.items()})
    assert groups == {"P1": "P1", "P2": "P1", "P3": "P1", "S1": "P1"}


def test_fire_native_keeps_both_files(build, trees):
    folder = trees("fire") / "fire" / "FIRE" / "Images"
    for pair, record in build("fire")["test"].items():
        assert record["image"] == (folder / f"{pair}_1.jpg").read_bytes()
        assert record["moving"] == (folder / f"{pair}_2.jpg").read_bytes()


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("S01_2.jpg", "the file of its moving image is absent"),
        ("S01_1.jpg", "the image that it belongs to is absent"),
        ("control_points_S01_1_2.txt", "the file of its control points is absent"),
    ],
)
def test_fire_lacks_a_file(build, damaged, lost, words):
    manual = damaged("fire")
    one(manual, lost).unlink()
    refused(build, "fire", manual, "S01", words)


def test_fire_without_its_mask(build, damaged):
    manual = damaged("fire")
    one(manual, "mask.png").unlink()
    for pair, record in build("fire", manual)["test"].items():
        truth = drawn_pair(pair).reference.masks["Field of View"]
        assert agreement(fire.read(record)["field_of_view"], truth) > 0.9


def test_fire_images_of_two_sizes(build, damaged):
    manual = damaged("fire")
    path = one(manual, "A01_2.jpg")
    Image.open(path).resize((32, 32)).save(path)
    refused(build, "fire", manual, path, "32 x 32 pixels, but", "64 x 64")


def test_fire_points_of_the_unscaled_images(build, damaged):
    manual = damaged("fire")
    path = one(manual, "control_points_A01_1_2.txt")
    photographs.write_numbers(path, photographs.read_numbers(path, 4) * 10, separator=" ", decimals=3)
    refused(build, "fire", manual, path, "outside of the image of 64 x 64 pixels", "resized copy")


# All of them.


@pytest.mark.parametrize("name", [name for name in TREES if name != "hrf_groups"])
def test_examples_stack_to_a_batch_of_the_schema(build, name):
    module = TREES[name][0]
    splits = build(name, size=32, aspect="letterbox")
    patients = [{record["patient_id"] for record in records.values()} for records in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    for records in splits.values():
        examples = [module.read(record) | {"valid": True} for record in records.values()]
        assert all(example["image"].dtype == np.uint8 for example in examples)
        stacked = batch.stack(examples)
        labels = stacked.pop("labels", None)  # their classes are not the structures of the masks
        batch.check(stacked)
        if labels is not None:
            batch.check({"image": stacked["image"], "valid": np.ones(len(labels), bool), "labels": labels})
            assert labels.shape[1] == len(module.classes())
        assert {"image", "field_of_view", "id", "patient_id"} <= set(stacked)
        if hasattr(module, "MASK_CLASSES"):
            assert stacked["masks"].shape[1:] == (32, 32, len(module.MASK_CLASSES))


@pytest.mark.parametrize(
    ("name", "option"), [("drive", "release"), ("hrf", "layout"), ("drishti_gs", "release"), ("fire", "pairs")]
)
def test_phantoms_name_what_they_can_do(tmp_path, name, option):
    with pytest.raises(InputError, match="Valid: "):
        catalog.load("datasets", name).phantom(tmp_path, **{option: ("X01",) if option == "pairs" else "newest"})


def test_phantoms_do_not_depend_on_their_number(tmp_path, trees):
    drive.phantom(tmp_path, seed=SEED, images=2, size=64)
    for path in tmp_path.rglob("*.*"):
        assert path.read_bytes() == (trees("drive") / "drive" / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("count", [1, 2, 5, 9, 10, None])
def test_spread_takes_both_ends(count):
    taken = photographs.spread(range(10), count)
    assert len(taken) == len(set(taken)) == (count or 10) and taken[0] == 0
    assert count == 1 or taken[-1] == 9
