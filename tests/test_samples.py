"""Which rows of a split are looked at: the best, the worst, some at random."""

import numpy as np
import pytest

from mediax.samples import PLACES, choose, deviations, worst


def rows(errors, *arguments, **options):
    """Gives the rows of each section by the first words of its title."""
    chosen = choose(np.asarray(errors, float), *arguments, **options)
    assert all(title.endswith(f", of {len(errors):,} images") or "annotated" in title for title in chosen)
    return {title.split(",")[0]: found.tolist() for title, found in chosen.items()}


def test_the_best_the_worst_and_some_at_random():
    errors = [0.9, 0.6, -0.8, -0.99, np.nan, 0.7, -0.5, np.nan]
    found = rows(errors, 8)
    assert list(found) == ["best", "worst", "others at random"]
    assert found["best"] == [3, 2] and found["worst"] == [0, 5, 1]
    assert sorted(found["others at random"]) == [4, 6, 7]  # one that is right is not among the worst
    assert rows(errors, 4)["worst"] == [0, 5]


def test_they_are_those_of_the_whole_split():
    errors = np.random.default_rng(0).random(2000)
    found = rows(errors)
    assert found["worst"] == np.argsort(-errors)[:12].tolist() and found["best"] == np.argsort(errors)[:6].tolist()
    assert len(set(found["others at random"])) == 6 and not set(found["others at random"]) & {
        *found["worst"],
        *found["best"],
    }
    assert found == rows(errors) != rows(errors, 24, 1)  # chance has a seed


def test_fewer_rows_than_places_and_rows_of_which_nothing_is_known():
    assert rows([0.5]) == {"worst": [0]}
    assert set(rows(np.full(5, np.nan), 3)) == {"others at random"}
    assert sorted(rows(np.full(5, np.nan))["others at random"]) == [0, 1, 2, 3, 4]
    assert rows([np.inf, 0.5, np.nan, 0.2]) == {"best": [3], "worst": [0, 1], "others at random": [2]}
    assert choose(np.zeros(0)) == {}


def test_equal_errors_are_not_told_apart_by_their_place():
    found = rows(np.repeat([0.0, 1.0], 200))
    for name in ("best", "worst"):
        places = np.array(found[name]) % 200
        assert places.min() < 100 <= places.max() and (np.diff(places) < 0).any() and (np.diff(places) > 0).any()
    assert found == rows(np.repeat([0.0, 1.0], 200)) and sum(map(len, found.values())) == PLACES


def test_the_best_show_something_where_some_images_do():
    errors, annotated = np.array([0, 0, 0, 0, 0.1, 0.2, 0.9, 1]), np.array([False] * 4 + [True] * 4)
    found = choose(errors, annotated=annotated)
    assert found["best, of 4 annotated images"].tolist() == [4, 5]
    assert found["worst, of 8 images"].tolist() == [7, 6]
    assert set(found["others at random, of 8 images"]) == {0, 1, 2, 3}
    assert set(rows(errors, annotated=np.zeros(8, bool))["best"]) == {0, 1, 2, 3}
    unknown = np.where(annotated, np.nan, errors)
    assert set(rows(unknown, annotated=annotated)["best"]) < {0, 1, 2, 3}


def test_confident_errors_are_worst():
    scores = np.array([[0.9, 0.1], [0.6, 0.1], [0.2, 0.1], [0.99, 0.9]])
    labels = np.array([[0, 0], [0, 0], [0, np.nan], [1, np.nan]], float)
    found = deviations(scores, labels)
    np.testing.assert_allclose(found[:, 0], [0.8, 0.2, -0.6, -0.98])
    np.testing.assert_allclose(worst(found), [0.8, 0.2, -0.6, -0.98])  # right ones by how sure they are
    assert np.isnan(worst(deviations(scores, labels * np.nan))).all()
    exclusive = deviations(scores[:2], np.array([[0, 1], [1, 0]]), exclusive=True)
    np.testing.assert_allclose(exclusive, [[0.9, 0.9], [-0.6, -0.9]])


def test_deviations_are_measured_from_the_threshold():
    """A positive just below a low threshold is less wrong than a sure false alarm; without a threshold none is."""
    found = deviations(np.array([[0.019, 0.95, 0.9]]), np.array([[1, 0, 1]]), np.array([0.02, 0.5, np.nan]))
    np.testing.assert_allclose(found, [[0.05, 0.9, np.nan]])
    assert worst(found) == pytest.approx([0.9])
    limits = deviations(np.array([[1.0, 1, 0, 0]]), np.array([[0, 1, 0, 1]]), np.array([1, 1, 0, 0.0]))
    np.testing.assert_allclose(limits, [[1e-6, 0, 1e-6, 0]])
