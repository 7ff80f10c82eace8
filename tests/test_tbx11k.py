import json
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from mediax import builder, images
from mediax.datasets import tbx11k
from mediax.errors import InputError

SIZE = 96
SIZES = {"train": 16, "val": 4, "size": SIZE}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """The whole distribution, and one without COCO files."""
    folder = tmp_path_factory.mktemp("tbx11k")
    tbx11k.phantom(folder / "json" / "tbx11k", **SIZES)
    shutil.copytree(folder / "json", folder / "xml")
    shutil.rmtree(folder / "xml" / "tbx11k" / "TBX11K" / "annotations" / "json")
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    """A copy that a test may damage; returns its folder TBX11K."""
    shutil.copytree(phantoms / "json", tmp_path / "raw")
    return tmp_path / "raw" / "tbx11k" / "TBX11K"


@pytest.fixture(scope="session")
def drawn():
    """The truth: image name -> the boxes of tuberculosis that are annotated, as (class, corners)."""
    truth = {}
    for image in tbx11k.phantom_images(0, {"train": SIZES["train"], "val": SIZES["val"]}, SIZE):
        found = image.draw().boxes if image.boxed else ()
        truth[image.name] = [
            (tbx11k.CATEGORIES[tbx11k.PHANTOM_CATEGORIES[finding]], corners)
            for finding, *corners in found
            if finding in tbx11k.PHANTOM_CATEGORIES
        ]
    return truth


def rows(folder, tmp_path, **config):
    """The rows of all splits, without building."""
    made = tbx11k.Builder(data_dir=tmp_path / "unused", config=config or None)
    return made.rows(made.find(folder))


def build(tmp_path, manual, data="data", **config):
    return builder.prepare(tbx11k, data_dir=tmp_path / data, manual_dir=manual, builder_config=config)


def coco(raw: Path, change) -> None:
    """Changes TBX11K_train.json."""
    path = raw / "annotations" / "json" / "TBX11K_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("layout", ["json", "xml"])
@pytest.mark.parametrize("config", [{}, {"size": 64, "aspect": "letterbox"}])
def test_boxes_come_back_within_half_a_pixel(phantoms, tmp_path, drawn, layout, config):
    fit = images.Fit(SIZE, SIZE, config.get("size"), config.get("aspect", "stretch"))
    directory = build(tmp_path, phantoms / layout, **config)
    stems = {PurePosixPath(name).stem: name for name in drawn if not name.startswith("extra/")}
    seen = 0
    for split in ("train", "val"):
        for record in builder.Records(directory, split):
            truth = drawn[stems[record["id"]]]
            assert record["box_labels"].tolist() == [label for label, _ in truth]
            for (_, corners), box in zip(truth, fit.boxes_back(record["boxes"])):
                np.testing.assert_allclose(box, corners, atol=0.5)
                seen += 1
    assert seen >= 6


def test_labels_follow_from_folders_and_boxes(phantoms, tmp_path, drawn):
    both = 0
    for split, split_rows in rows(phantoms / "json" / "tbx11k", tmp_path).items():
        assert split_rows
        for row in split_rows:
            kind = row.image.parent.name
            labels = dict(zip(tbx11k.CLASSES, row.fields["labels"].tolist()))
            assert labels["No Finding"] == (kind == "health")
            assert labels["Sick Non-Tuberculosis"] == (kind == "sick")
            assert labels["Tuberculosis"] == (kind == "tb")
            activities = {label for label, _ in drawn[f"{kind}/{row.image.name}"]}
            if row.id == "tb1199":
                assert split == "train"
                assert [labels["Active Tuberculosis"], labels["Latent Tuberculosis"]] == [-1, -1]
                assert not row.fields["boxes_known"]
            else:
                assert labels["Active Tuberculosis"] == (0 in activities)
                assert labels["Latent Tuberculosis"] == (1 in activities)
                assert row.fields["boxes_known"]
                both += len(activities) == 2
    assert both == 1


def test_both_annotations_give_the_same(phantoms, tmp_path):
    for sources in ("tbx11k", "all"):
        by_json = rows(phantoms / "json" / "tbx11k", tmp_path, sources=sources)
        by_xml = rows(phantoms / "xml" / "tbx11k", tmp_path, sources=sources)
        for split, split_rows in by_json.items():
            assert [row.id for row in by_xml[split]] == [row.id for row in split_rows]
            for row, other in zip(split_rows, by_xml[split]):
                np.testing.assert_allclose(other.fields.pop("boxes"), row.fields.pop("boxes"), atol=1e-6)
                np.testing.assert_equal(other.fields, row.fields)


def test_extra_images_come_by_choice_and_unlabelled_ones_never(phantoms, tmp_path):
    own = {row.id for split in rows(phantoms / "json" / "tbx11k", tmp_path).values() for row in split}
    every = {
        row.id: row for split in rows(phantoms / "json" / "tbx11k", tmp_path, sources="all").values() for row in split
    }
    extra = every.keys() - own
    assert extra == {
        f"extra/{PurePosixPath(name).with_suffix('')}" for names in tbx11k.PHANTOM_EXTRA.values() for name in names
    }
    for name in extra:
        ill = PurePosixPath(name).name in ("px1", "p1", "MCUCXR_0104_1")
        expected = [0, 0, 1, -1, -1] if ill else [1, 0, 0, 0, 0]
        assert every[name].fields["labels"].tolist() == expected
        assert every[name].fields["boxes_known"] == (not ill)
    assert len(list((phantoms / "json").rglob("imgs/test/*.png"))) == 2
    assert not any("test" in str(row.image.parent.name) for row in every.values())


def test_colour_files_are_stored_grey(phantoms, tmp_path):
    path = next((phantoms / "json").rglob("imgs/health/*.png"))
    assert Image.open(path).mode == "RGB"
    directory = build(tmp_path, phantoms / "json")
    example = tbx11k.read(builder.Records(directory, "train")[0])
    assert example["image"].shape == (SIZE, SIZE, 1)


def test_read_gives_the_schema_and_chooses_classes():
    image = images.encode(np.zeros((4, 4, 1), np.uint8))
    boxes = {"boxes": np.zeros((0, 4), np.float32), "box_labels": np.zeros(0, np.int32), "boxes_known": False}
    record = {"id": "tb1199", "patient_id": "tb1199", "image": image, "labels": np.int8([0, 0, 1, -1, -1]), **boxes}
    np.testing.assert_array_equal(tbx11k.read(record)["labels"], np.float32([0, 0, 1, np.nan, np.nan]))
    np.testing.assert_array_equal(tbx11k.read(record, classes="image")["labels"], np.float32([0, 0, 1]))
    assert np.isnan(tbx11k.read(record, classes="activity")["labels"]).all()
    assert not tbx11k.read(record)["boxes_known"]
    assert tbx11k.classes(classes="activity") == tbx11k.BOX_CLASSES
    for function in (lambda: tbx11k.read(record, classes="tb"), lambda: tbx11k.classes(classes="tb")):
        with pytest.raises(InputError, match=r"classes='tb': .*Valid: activity, all, image"):
            function()


def test_split_names_that_contain_each_other_are_told_apart(phantoms, tmp_path):
    folder = phantoms / "json" / "tbx11k" / "TBX11K" / "annotations" / "json"
    names = {path.stem for path in folder.iterdir()}
    assert {"TBX11K_train", "TBX11K_trainval", "TBX11K_train_only_tb", "all_trainval"} <= names
    splits = rows(phantoms / "json" / "tbx11k", tmp_path)
    assert len(splits["train"]) == SIZES["train"] + 1
    assert len(splits["val"]) == SIZES["val"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=3), "annotation 1: the category is 'PulmonaryTuberculosis'"),
        (lambda c: c["annotations"][0].update(category_id=9), "annotation 1: the category is 9"),
        (lambda c: c["annotations"][0].update(image_id=999), "annotation 1: no image has the id 999"),
        (lambda c: c["annotations"][0].update(image_id=1), "a box of tuberculosis in health/h0001.png"),
        (lambda c: c["images"][0].update(file_name="h0001.png"), r"'h0001.png' is in none of health/, sick/, tb/"),
        (lambda c: c.pop("categories"), r"TBX11K_train.json: no complete COCO file \(KeyError"),
    ],
)
def test_damaged_coco_files_name_the_place(raw, tmp_path, change, message):
    coco(raw, change)
    with pytest.raises(InputError, match=message):
        rows(raw, tmp_path)


def test_damaged_boxes_and_absent_images_name_the_image(raw, tmp_path):
    coco(raw, lambda content: content["annotations"][0].update(bbox=[500, 10, 30, 30]))
    with pytest.raises(InputError, match=r"TBX11K_train.json, image tb/tb\d+.png: the box .* leaves the image"):
        build(tmp_path, raw.parent.parent)
    (raw / "imgs" / "tb" / "tb1199.png").unlink()
    with pytest.raises(InputError, match=r"image tb/tb1199.png: the image .*tb1199.png is absent"):
        build(tmp_path, raw.parent.parent)


def test_damaged_xml_files_and_absent_annotations(raw, tmp_path):
    shutil.rmtree(raw / "annotations" / "json")
    path = sorted((raw / "annotations" / "xml").iterdir())[0]
    text = path.read_text()
    path.write_text(text.replace("<difficult>0", "<difficult>1"))
    assert len(tbx11k.read_xml(path)[0]) == 0
    path.write_text(text.replace("<xmin>", "<xmin>x"))
    with pytest.raises(InputError, match=f"{path.name}: no complete annotation in Pascal VOC's format"):
        rows(raw, tmp_path)
    shutil.rmtree(raw / "annotations" / "xml")
    with pytest.raises(InputError, match=r"TBX11K_train\.json is absent, and so is .*TBX11K_train\.txt or the folder"):
        rows(raw, tmp_path)


def test_folder_may_be_nested_but_not_twice(raw, tmp_path):
    nested = tmp_path / "other" / "download"
    shutil.copytree(raw, nested / "TBX11K")
    assert rows(tmp_path / "other", tmp_path)["val"]
    with pytest.raises(InputError, match=r"a folder imgs lies in .* and in .*: keep one"):
        rows(tmp_path, tmp_path)


def test_phantom_of_an_unknown_layout_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"layout='coco': .*Valid: json, xml"):
        tbx11k.phantom(tmp_path, layout="coco")
