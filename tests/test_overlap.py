"""Pictures that are one are found, others are not."""

import numpy as np
import pytest

from mediax import images, overlap
from mediax.phantoms import chest


@pytest.fixture(scope="module")
def radiographs():
    return [images.to_uint8(chest.frontal(seed, size=128).image[..., None]) for seed in range(8)]


def pictures(name, shown, ids=None):
    return overlap.Pictures(name, ids or [f"{name}{i}" for i in range(len(shown))], np.stack(shown))


def hashes(shown):
    return [overlap.difference_hash(image) for image in shown]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: images.decode(images.encode(image, "jpeg60")),
        lambda image: images.Fit(*image.shape[:2], 64).image(image),
        lambda image: images.Fit(*image.shape[:2], 300).image(image),
        lambda image: np.round(255 * (image / 255) ** 0.8).astype(np.uint8),
        lambda image: image.astype(np.uint16) * 200,
        lambda image: np.repeat(image, 3, 2),
    ],
    ids=["compressed", "smaller", "larger", "darker", "16 bits", "colour"],
)
def test_copies_are_found_and_no_others(radiographs, change):
    first, second = pictures("a", hashes(radiographs)), pictures("b", hashes(map(change, radiographs[2:])))
    found = overlap.matches(first, second)
    assert [(match.first, match.second) for match in found] == [(f"a{i + 2}", f"b{i}") for i in range(6)]
    assert not any(match.same_id for match in found)


def test_ids_match_without_suffix_and_case(radiographs):
    shown = hashes(radiographs[:3])
    first = pictures("a", shown, ["00000001_000.png", "Case2", "1.2.826.0.1"])
    second = pictures("b", [shown[0], shown[2]], ["00000001_000", "case2.JPG"])
    found = overlap.matches(first, second)
    assert [(match.first, match.second, match.same_id) for match in found] == [
        ("00000001_000.png", "00000001_000", True),
        ("Case2", "case2.JPG", True),
        ("1.2.826.0.1", "case2.JPG", False),
    ]
    assert found[0].distance == found[2].distance == 0
    assert found[1].distance > overlap.NEAR


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2**63, (count, 4)).astype(np.uint64) for count in (23, 17))
    bits = np.unpackbits(first.view(np.uint8), axis=1)[:, None] != np.unpackbits(second.view(np.uint8), axis=1)[None]
    np.testing.assert_array_equal(overlap.distances(first, second), bits.sum(-1))
    whole = overlap.matches(pictures("a", first), pictures("b", second), near=118)
    assert 0 < len(whole) < 23 * 17
    monkeypatch.setattr(overlap, "BLOCK", 40)
    assert overlap.matches(pictures("a", first), pictures("b", second), near=118) == whole
