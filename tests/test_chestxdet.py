import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mediax import annotations, builder, experiment, images
from mediax.datasets import chestxdet
from mediax.errors import InputError

SIZE = 64
SIZES = {"train": 10, "test": 8, "size": SIZE}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Both releases."""
    folder = tmp_path_factory.mktemp("chestxdet")
    for release in ("chestxdet", "chestxdet10"):
        chestxdet.phantom(folder / release / "chestxdet", release=release, **SIZES)
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    """A copy of ChestX-Det that a test may damage."""
    shutil.copytree(phantoms / "chestxdet", tmp_path / "raw")
    return tmp_path / "raw" / "chestxdet"


@pytest.fixture(scope="session")
def drawn():
    """The truth: image -> what was drawn."""
    named = chestxdet.phantom_images(0, {"train": SIZES["train"], "test": SIZES["test"]}, SIZE)
    return {image.name.removesuffix(".png"): (image, image.draw()) for image in named}


def build(tmp_path, manual, **config):
    return builder.prepare(chestxdet, data_dir=tmp_path / "data", manual_dir=manual, builder_config=config)


def rows(folder, tmp_path, **config):
    """The rows of all splits, without building."""
    made = chestxdet.Builder(data_dir=tmp_path / "unused", config=config or None)
    return made.rows(made.find(folder))


def records(directory):
    return [record for split in ("train", "validation", "test") for record in builder.Records(directory, split)]


def change(folder: Path, **values) -> None:
    """Changes the annotations of the first training image that has any."""
    path = folder / "ChestX_Det_train.json"
    content = json.loads(path.read_text())
    next(image for image in content if image["syms"]).update(values)
    path.write_text(json.dumps(content))


def regions(radiograph):
    """The connected regions of what is annotated, as (class, mask without holes)."""
    for (finding, *_), instance in zip(radiograph.boxes, radiograph.instances):
        if finding in chestxdet.PHANTOM_LABELS:
            numbered = annotations.connected_instances(instance)
            for number in range(1, numbered.max() + 1):
                ring = chestxdet.outer_ring(numbered == number)
                label = chestxdet.FINDINGS.index(chestxdet.PHANTOM_LABELS[finding])
                yield label, annotations.polygon_to_mask(ring, SIZE, SIZE)


def assert_same_up_to_borders(found, expected):
    """Two masks [H,W] are equal but for pixels beside a border of the second."""
    found, expected = found.astype(bool), expected.astype(bool)
    thick, thin = (dilated(mask) for mask in (expected, ~expected))
    assert not (found & ~thick).any() and not (~found & ~thin).any()


def dilated(mask):
    """A mask bool[H,W] with the eight neighbours of its pixels."""
    padded = np.pad(mask, 1)
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).any((2, 3))


@pytest.mark.parametrize(
    "config", [{"size": None}, {"size": 40, "aspect": "crop"}, {"size": 40, "aspect": "letterbox"}]
)
def test_annotations_come_back(phantoms, tmp_path, drawn, config):
    fit = images.Fit(SIZE, SIZE, config["size"], config.get("aspect", "stretch"))
    total = 0
    for record in records(build(tmp_path, phantoms / "chestxdet", **config)):
        example = chestxdet.read(record)
        truth = list(regions(drawn[record["id"]][1]))
        total += len(truth)
        assert example["box_labels"].tolist() == [label for label, _ in truth]
        masks = np.zeros((SIZE, SIZE, 13), np.uint8)
        for label, mask in truth:
            masks[..., label] |= mask
        lengths = record["polygon_lengths"]
        polygons = np.split(fit.points_back(record["polygons"]), np.cumsum(lengths)[:-1]) if len(lengths) else []
        assert len(polygons) == len(truth)
        for (_, mask), box, polygon in zip(truth, fit.boxes_back(record["boxes"]), polygons):
            np.testing.assert_allclose(box, annotations.masks_to_boxes(mask[..., None])[0], atol=0.5)
            np.testing.assert_array_equal(annotations.polygon_to_mask(polygon[:, ::-1].round(), SIZE, SIZE), mask)
        if config["size"] is None:
            np.testing.assert_array_equal(example["masks"], masks)
        else:
            np.testing.assert_array_equal(example["masks"], fit.image(masks, nearest=True))
        assert example["mask_valid"].all()
        height, width = example["image"].shape[:2]
        assert example["box_masks"].shape == (len(truth), height, width) and example["box_masks"].dtype == np.uint8
        for filled, (_, mask) in zip(example["box_masks"], truth):
            assert_same_up_to_borders(filled, fit.image(mask[..., None], nearest=True)[..., 0])
        for label in range(13):
            union = example["box_masks"][example["box_labels"] == label].any(axis=0)
            assert_same_up_to_borders(union, example["masks"][..., label])
        assert "box_masks" not in chestxdet.read(record, instances=False)
        np.testing.assert_array_equal(example["labels"], masks.any(axis=(0, 1)))
    assert total > 10


def test_forerunner_has_boxes_and_ten_classes(phantoms, tmp_path, drawn):
    made = records(build(tmp_path, phantoms / "chestxdet10", size=40, release="chestxdet10"))
    assert {record["id"] for record in made} == drawn.keys()
    unknown = [chestxdet.FINDINGS.index(name) for name in chestxdet.ADDED]
    for record in made:
        example = chestxdet.read(record)
        assert "masks" not in example
        assert "polygons" not in example and "box_masks" not in example
        assert np.isnan(example["labels"][unknown]).all()
        assert not np.isnan(np.delete(example["labels"], unknown)).any()
        truth = [label for label, _ in regions(drawn[record["id"]][1]) if label not in unknown]
        assert example["box_labels"].tolist() == truth


@pytest.mark.parametrize(
    ("variant", "instances"),
    [
        ("chest_detection.py:chestxdet,mask_rcnn", True),
        ("chest_detection.py:chestxdet,mask_rcnn,phantom", True),
        ("chest_detection.py:chestxdet,dino", False),
        ("chest_segmentation.py:chestxdet,unet", False),
    ],
)
def test_configs_read_instances_where_they_are_learned(variant, instances):
    [stream] = experiment.load_config(f"{Path(__file__).parents[1]}/configs/{variant}").streams.values()
    assert stream.read.to_dict() == {"instances": instances}


def test_splits_are_the_official_ones_with_a_tenth_for_validation(phantoms, tmp_path, drawn):
    splits = rows(phantoms / "chestxdet" / "chestxdet", tmp_path)
    assert {row.id for row in splits["test"]} == {name for name, (image, _) in drawn.items() if image.split == "test"}
    for split in ("train", "validation"):
        assert splits[split]
        for row in splits[split]:
            held_out = builder.held_out(row.id, 0.1, salt="chestxdet/validation")
            assert held_out == (split == "validation")


def test_images_lie_in_any_folders_but_once(raw, tmp_path):
    (raw / "train_data").rename(raw / "train")
    (raw / "test_data").rename(raw / "unpacked")
    (raw / "other").mkdir()
    (raw / "unpacked").rename(raw / "other" / "test")
    (raw / "train.json").write_text("[]")  # of another dataset
    splits = rows(raw, tmp_path)
    assert all(row.image.is_file() for split in splits.values() for row in split)
    twin = next((raw / "train").iterdir())
    shutil.copy(twin, raw)
    with pytest.raises(InputError, match=f"{twin.name} lies in .* and in .*: keep one"):
        rows(raw, tmp_path)


def test_both_releases_may_lie_together(phantoms, raw, tmp_path):
    for name in ("train.json", "test.json"):
        shutil.copy(phantoms / "chestxdet10" / "chestxdet" / name, raw)
    both = [rows(raw, tmp_path, release=release) for release in ("chestxdet", "chestxdet10")]
    assert [row.id for row in both[0]["train"]] == [row.id for row in both[1]["train"]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"boxes": []}, r"ChestX_Det_train.json, image \d+.png: \d+ syms, 0 boxes, \d+ polygons; expected as many"),
        ({"syms": ["Nodul"], "boxes": [[0] * 4], "polygons": [[]]}, r"the finding 'Nodul': did you mean 'Nodule'"),
        ({"file_name": None}, r"ChestX_Det_train.json: no complete list of annotations"),
    ],
)
def test_damaged_annotations_name_the_image(raw, tmp_path, values, message):
    change(raw, **values)
    with pytest.raises(InputError, match=message):
        rows(raw, tmp_path)


def test_damaged_files(raw, tmp_path):
    change(raw, syms=["Mass"], boxes=[[900, 900, 1100, 1100]], polygons=[[[900, 900], [910, 900], [900, 910]]])
    with pytest.raises(InputError, match=r"image \d+.png: the box .* leaves the image"):
        build(tmp_path, raw.parent, size=40)
    image = next((raw / "test_data").iterdir())
    image.unlink()
    with pytest.raises(InputError, match=rf"ChestX_Det_test.json, image {image.name}: the image .* is absent"):
        build(tmp_path, raw.parent, size=40)
    table = raw / "ChestX_Det_test.json"
    table.write_text(table.read_text()[:-20])
    with pytest.raises(InputError, match=r"ChestX_Det_test.json: no complete list of annotations"):
        rows(raw, tmp_path)


def test_phantom_of_an_unknown_release_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"release='det': .*Valid: chestxdet, chestxdet10"):
        chestxdet.phantom(tmp_path, release="det")


# The real annotations, train and test instances of each class.

REAL_COUNTS = {
    "chestxdet": {
        "Atelectasis": (289, 51),
        "Calcification": (281, 67),
        "Cardiomegaly": (223, 70),
        "Consolidation": (2_110, 453),
        "Diffuse Nodule": (227, 63),
        "Effusion": (1_734, 378),
        "Emphysema": (232, 66),
        "Fibrosis": (619, 120),
        "Fracture": (546, 115),
        "Mass": (133, 34),
        "Nodule": (816, 170),
        "Pleural Thickening": (526, 105),
        "Pneumothorax": (169, 42),
    },
    "chestxdet10": {
        "Atelectasis": (289, 51),
        "Calcification": (280, 67),
        "Consolidation": (2_091, 446),
        "Effusion": (1_720, 372),
        "Emphysema": (232, 66),
        "Fibrosis": (618, 120),
        "Fracture": (546, 115),
        "Mass": (129, 31),
        "Nodule": (789, 166),
        "Pneumothorax": (169, 42),
    },
}
REAL_IMAGES = {"chestxdet": (3_025, 553), "chestxdet10": (3_001, 542)}


@pytest.mark.parametrize("release", ["chestxdet", "chestxdet10"])
def test_real_annotations_have_the_known_counts(release):
    folder = os.environ.get("MEDIAX_CHESTXDET_DATA")
    if not folder:
        pytest.skip("set MEDIAX_CHESTXDET_DATA to a folder with the JSON files of both repositories")
    for split, column in (("train", 0), ("test", 1)):
        path = Path(folder) / chestxdet.TABLES[release].format(split)
        assert chestxdet.is_table(path)
        rows = list(chestxdet.read_table(chestxdet.Release({}, {}), path, release))
        assert len(rows) == len({row.id for row in rows}) == REAL_IMAGES[release][column]
        counts = Counter(chestxdet.FINDINGS[label] for row in rows for label in row.fields["box_labels"])
        assert counts == {name: count[column] for name, count in REAL_COUNTS[release].items()}
        boxes = np.concatenate([row.fields["boxes"] for row in rows])
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert boxes.max() < chestxdet.FRAME
