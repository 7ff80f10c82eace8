"""The files of a built set: what lies in which, and what tells two rows apart."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mediax import shards


def test_order_is_fixed_and_depends_on_the_key_alone():
    names = [f"image{i}" for i in range(100)]
    order = shards.shuffled(names, key=str)
    assert order == shards.shuffled(reversed(names), key=str) != names
    assert order[:3] == ["image69", "image55", "image0"]  # SHA-256: must never change


def test_shards_are_about_equal_and_no_larger_than_asked_for():
    for count, rows in itertools.product((1, 63, 64, 65, 1000), (1, 64, 4096)):
        pieces = shards.cut(range(count), rows)
        assert [item for piece in pieces for item in piece] == list(range(count))
        assert max(map(len, pieces)) <= rows
        assert len(pieces) == -(-count // rows)


@pytest.mark.parametrize(("size", "rows"), [(0, 4096), (51_200, 4096), (524_288, 512), (500_000, 512), (2e7, 64)])
def test_shards_have_about_the_target_size(size, rows):
    assert shards.rows_in_shard(size) == rows


def test_fingerprints_tell_values_apart(tmp_path):
    file = tmp_path / "mask.png"
    file.write_bytes(b"1234")
    values = [
        None, 0, False, "0", 0.0, b"0", "", (), ("a", "bc"), ("ab", "c"), ("a", ("b", "c")), {"a": 1}, {"b": 1},
        np.float32(1), np.float64(1), np.zeros(2, np.int8), np.zeros(2, np.uint8), np.zeros((1, 2), np.int8),
        {"x", "y"}, file, tmp_path / "absent.png", shards.Finished("a", 1, 1), shards.Finished("a", 1, 2),
    ]  # fmt: skip
    prints = [shards.fingerprint(value) for value in values]
    assert len(set(prints)) == len(values)
    assert [shards.fingerprint(value) for value in values] == prints
    assert shards.fingerprint({"x", "y", "z"}) == shards.fingerprint({"z", "y", "x"})
    file.write_bytes(b"12345")
    assert shards.fingerprint(file) not in prints
    assert shards.fingerprint(lambda: None) != shards.fingerprint(lambda: None)  # cannot be compared: counts as changed


def test_manifest_survives_what_a_kill_leaves(tmp_path):
    folder = tmp_path / "incomplete"
    manifest = shards.Manifest(folder)
    records = [shards.Record(b"x" * 16, b"data"), shards.Record(b"y" * 16, None)]
    for name in ("one", "two"):
        manifest.add(name, shards.write(folder / name, records))
    with manifest.path.open("a") as file:
        file.write('["three", {"finge')
    Path(folder / "three.partial").write_bytes(b"")
    again = shards.Manifest(folder)
    assert again.finished == manifest.finished
    assert again.finished["one"] == shards.Finished(shards.combined([b"x" * 16, b"y" * 16]), 1, 4, [1])
    again.keep({"two"})
    assert {path.name for path in folder.iterdir()} == {"two", shards.Manifest.NAME}
    assert set(shards.Manifest(folder).finished) == {"two"}


def test_error_midway_leaves_no_half_shard(tmp_path):
    def records():
        yield shards.Record(b"x", b"data")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        shards.write(tmp_path / "shard", records())
    assert not list(tmp_path.iterdir())
