"""Which rows of a split are looked at: the best, the worst, some at random."""

import numpy as np

from mediax.samples import calls, choose, errors_of_scores, wrongness


def rows(errors, *arguments):
    """Gives the rows of each section by the first words of its title."""
    chosen = choose(np.asarray(errors, float), *arguments)
    assert all(title.endswith(f", of {len(errors):,} images") for title in chosen)
    return {title.split(",")[0]: found.tolist() for title, found in chosen.items()}


def test_the_best_the_worst_and_some_at_random():
    errors = [0.9, 0.6, -0.8, -0.99, np.nan, 0.7, -0.5, np.nan]
    found = rows(errors, 8)
    assert list(found) == ["best", "worst", "at random"]
    assert found["best"] == [3, 2] and found["worst"] == [0, 5, 1]
    assert sorted(found["at random"]) == [4, 6, 7]  # one that is right is not among the worst
    assert rows(errors, 4)["worst"] == [0, 5]


def test_they_are_those_of_the_whole_split():
    errors = np.random.default_rng(0).random(2000)
    found = rows(errors)
    assert found["worst"] == np.argsort(-errors)[:12].tolist() and found["best"] == np.argsort(errors)[:6].tolist()
    assert len(set(found["at random"])) == 6 and not set(found["at random"]) & {*found["worst"], *found["best"]}
    assert found == rows(errors) != rows(errors, 24, 1)  # chance has a seed


def test_fewer_rows_than_places_and_rows_of_which_nothing_is_known():
    assert rows([0.5]) == {"worst": [0]}
    assert set(rows(np.full(5, np.nan), 3)) == {"at random"}
    assert sorted(rows(np.full(5, np.nan))["at random"]) == [0, 1, 2, 3, 4]
    assert rows([np.inf, 0.5, np.nan, 0.2]) == {"best": [3], "worst": [0, 1], "at random": [2]}
    assert choose(np.zeros(0)) == {}


def test_confident_errors_are_worst():
    scores = np.array([[0.9, 0.1], [0.6, 0.1], [0.2, 0.1], [0.99, 0.9]])
    labels = np.array([[0, 0], [0, 0], [0, np.nan], [1, np.nan]], float)
    called = calls(scores)
    np.testing.assert_allclose(wrongness(scores, labels, called).max(1), [0.9, 0.6, 0, 0])
    errors = errors_of_scores(scores, labels, called)
    np.testing.assert_allclose(errors, [0.9, 0.6, -0.8, -0.99])  # right ones by how sure they are
    assert np.isnan(errors_of_scores(scores, labels * np.nan, called)).all()
