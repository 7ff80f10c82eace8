import functools
import hashlib
import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from mediax import builder, vocabulary
from mediax.datasets import medmnist
from mediax.errors import InputError


def arrays(flag="pneumoniamnist", count=5):
    """A small set in the format of a flag; image i of a split is constant."""
    subset, rng = medmnist.SUBSETS[flag], np.random.default_rng(0)
    made = {}
    for split, key in enumerate(medmnist.SPLITS.values()):
        shape = (28, 28) if subset.channels == 1 else (28, 28, 3)
        images = np.stack([np.full(shape, 10 * index + split, np.uint8) for index in range(count)])
        if subset.channels == 3:
            images[..., 2] += 100
        labels = {
            "binary-class": np.arange(count)[:, None] % 2,
            "multi-label": rng.integers(0, 2, (count, len(subset.classes))),
            "ordinal-regression": np.arange(count)[:, None] % 5,
        }[subset.task]
        made |= {f"{key}_images": images, f"{key}_labels": labels.astype(np.uint8)}
    return made


def write(folder, flag="pneumoniamnist", **changes):
    """Writes a set; a change to None leaves an array out."""
    made = {name: array for name, array in (arrays(flag) | changes).items() if array is not None}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{flag}.npz", **made)
    return made


def records(tmp_path, split="train", config=None):
    return builder.source(
        medmnist,
        split=split,
        data_dir=tmp_path / "data",
        manual_dir=tmp_path / "raw",
        builder_config=config,
    )


@pytest.mark.parametrize("folder", ["raw", "raw/medmnist"])
def test_images_and_splits_are_the_file_s(tmp_path, folder):
    made = write(tmp_path / folder)
    for split, key in medmnist.SPLITS.items():
        examples = [medmnist.read(record) for record in records(tmp_path, split)]
        assert len(examples) == 5
        for example in examples:
            index = int(example["id"].removeprefix(f"{key}_"))
            assert example["patient_id"] == example["id"]
            assert example["image"].dtype == np.uint8
            assert example["labels"].dtype == np.float32
            np.testing.assert_array_equal(example["image"][..., 0], made[f"{key}_images"][index])
            np.testing.assert_array_equal(example["labels"], made[f"{key}_labels"][index])


def test_chestmnist_has_fourteen_labels_of_which_several_may_hold(tmp_path):
    made = write(tmp_path / "raw", "chestmnist")
    examples = {record["id"]: medmnist.read(record) for record in records(tmp_path, config="chestmnist")}
    for index, label in enumerate(made["train_labels"]):
        np.testing.assert_array_equal(examples[f"train_{index:06d}"]["labels"], label)
    assert len(medmnist.classes("chestmnist")) == 14


def test_retinamnist_has_colour_and_a_grade(tmp_path):
    made = write(tmp_path / "raw", "retinamnist")
    for record in records(tmp_path, "test", {"flag": "retinamnist"}):
        example, index = medmnist.read(record), int(record["id"].removeprefix("test_"))
        np.testing.assert_array_equal(example["image"], made["test_images"][index])
        grade = made["test_labels"][index, 0]
        assert example["target"].tolist() == [grade]
        assert example["target"].dtype == np.float32
        assert example["labels"].argmax() == grade
        assert example["labels"].sum() == 1


def test_images_can_be_enlarged_when_built(tmp_path):
    write(tmp_path / "raw")
    config = {"flag": "pneumoniamnist", "size": 64}
    assert medmnist.read(records(tmp_path, config=config)[0])["image"].shape == (64, 64, 1)


def test_class_names_are_canonical():
    assert all(vocabulary.canonical(name) == name for name in medmnist.CLASSES)
    assert medmnist.classes() == ("Pneumonia",)
    assert medmnist.classes({"flag": "retinamnist"})[0] == "No Diabetic Retinopathy"
    with pytest.raises(InputError, match="flag='pneumonia': did you mean 'pneumoniamnist'"):
        medmnist.classes({"flag": "pneumonia"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, r"pneumoniamnist\.npz: no array 'val_labels'; found test_images, "),
        ({"test_images": np.zeros((5, 28, 28), np.float32)}, r"test_images is float32\[5, 28, 28\]; expected uint8"),
        ({"test_images": np.zeros((5, 28), np.uint8)}, r"test_images is uint8\[5, 28\]; expected uint8"),
        ({"test_images": np.zeros((5, 28, 28, 3), np.uint8)}, r"test_images is uint8\[5, 28, 28, 3\]; expected"),
        ({"train_labels": np.zeros((5, 1), np.float64)}, r"train_labels is float64\[5, 1\]; expected integers"),
        ({"train_labels": np.zeros((5, 14), np.uint8)}, r"train_labels is uint8\[5, 14\]; expected integers \[N, 1\]"),
        ({"train_labels": np.full((5, 1), 2, np.uint8)}, r"train_labels holds 2; expected 0 to 1"),
        ({"train_labels": np.zeros((4, 1), np.uint8)}, r"5 train_images and 4 train_labels"),
        ({"train_labels": np.array([[None]] * 5)}, r"pneumoniamnist\.npz: no readable npz file .*allow_pickle"),
    ],
)
def test_unexpected_content_is_an_error(tmp_path, changes, message):
    write(tmp_path / "raw", **changes)
    with pytest.raises(InputError, match=message):
        records(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_corrupt_file_is_an_error(tmp_path, damage):
    write(tmp_path / "raw")
    path = tmp_path / "raw" / "pneumoniamnist.npz"
    path.write_bytes({"truncated": path.read_bytes()[:-100], "empty": b"", "text": b"404 not found"}[damage])
    with pytest.raises(InputError, match=r"pneumoniamnist\.npz: no readable npz file .*download it again"):
        records(tmp_path)


# Download.


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A host on this machine in place of Zenodo."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=tmp_path / "host")
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    monkeypatch.setattr(medmnist, "URL", f"http://127.0.0.1:{host.server_port}/{{flag}}.npz?download=1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield
    host.shutdown()
    host.server_close()


def test_file_is_downloaded_and_checked(tmp_path, server, monkeypatch):
    write(tmp_path / "host")
    with pytest.raises(InputError, match=r"the MD5 .*, expected 28209eda62fecd6e6a2d98b1501bb15f; try again"):
        records(tmp_path)
    md5 = hashlib.md5((tmp_path / "host" / "pneumoniamnist.npz").read_bytes()).hexdigest()
    subset = medmnist.SUBSETS["pneumoniamnist"]._replace(md5=md5)
    monkeypatch.setitem(medmnist.SUBSETS, "pneumoniamnist", subset)
    assert len(records(tmp_path)) == 5


def test_without_network_and_file_there_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "reachable", lambda url: False)
    with pytest.raises(InputError, match=r"MedMNIST v2 is missing(.|\n)*zenodo(.|\n)*CC BY 4\.0(.|\n)*:phantom"):
        records(tmp_path)


# The phantom and the real file.


def test_phantom_has_the_real_form_and_builds(tmp_path):
    for folder in ("raw", "again"):
        medmnist.phantom(tmp_path / folder, train=12, validation=4, test=4)
    made = medmnist.read_arrays(tmp_path / "raw" / "pneumoniamnist.npz")
    again = medmnist.read_arrays(tmp_path / "again" / "pneumoniamnist.npz")
    assert list(made) == [f"{key}_{kind}" for key in ("train", "val", "test") for kind in ("images", "labels")]
    for name, array in made.items():
        np.testing.assert_array_equal(array, again[name])
        assert array.dtype == np.uint8
        assert array.shape[1:] == ((28, 28) if name.endswith("images") else (1,))
    assert set(made["test_labels"].ravel()) == {0, 1}
    assert made["train_images"].std() > 20
    assert len(records(tmp_path, "validation")) == 4


def test_real_file_has_the_official_counts(tmp_path):
    folder = Path(os.environ.get("MEDIAX_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "pneumoniamnist.npz").is_file():
        pytest.skip("no pneumoniamnist.npz: point MEDIAX_DATA to its folder")
    sizes = {}
    for split in medmnist.SPLITS:
        opened = builder.source(medmnist, split=split, data_dir=tmp_path / "data", manual_dir=folder)
        sizes[split] = (len(opened), int(np.sum(opened.columns()["labels"])))
    assert sizes == {"train": (4708, 3494), "validation": (524, 389), "test": (624, 390)}
