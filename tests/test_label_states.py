import numpy as np
import pytest

from mediax import label_states
from mediax.errors import InputError

OPTIONS = {"known": ("a", "b", "c", "d"), "not_mentioned": "absent", "seeds": (0, "image")}


def test_parse_reads_the_texts_of_both_kinds_of_tables():
    line = {"a": "1.0", "b": "0", "c": "-1.0", "d": "", "e": "text"}
    assert label_states.parse("", line, "dabc") == [-2, 1, 0, -1]
    with pytest.raises(InputError, match=r"line 2: e is 'text', expected 1\.0, 0\.0, -1\.0 or nothing"):
        label_states.parse("line 2", line, "ae")


def test_labels_follow_the_policy_of_each_class():
    states = {"a": -1, "b": -1, "c": 1, "d": -2}
    labels = label_states.to_labels(states, uncertainty={"a": "ones", "default": "ignore"}, **OPTIONS)
    np.testing.assert_array_equal(labels, np.float32([1, np.nan, 1, 0]))
    assert labels.dtype == np.float32
    unknown = label_states.to_labels(states, uncertainty="zeros", **OPTIONS | {"not_mentioned": "unknown"})
    np.testing.assert_array_equal(unknown, np.float32([0, 0, 1, np.nan]))


def test_smoothed_labels_follow_from_the_seeds():
    states = dict.fromkeys("abcd", -1)
    first, again = (label_states.to_labels(states, uncertainty="smooth_ones", **OPTIONS) for _ in range(2))
    other = label_states.to_labels(states, uncertainty="smooth_ones", **OPTIONS | {"seeds": (1, "image")})
    np.testing.assert_array_equal(first, again)
    assert ((first >= 0.55) & (first <= 0.85)).all()
    assert len(set(first.tolist()) | set(other.tolist())) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertainty": "one"}, "of a is 'one': did you mean 'ones'"),
        ({"uncertainty": {"x": "ones"}}, "names 'x'"),
        ({"uncertainty": "ones", "not_mentioned": "zero"}, "not_mentioned='zero'"),
    ],
)
def test_unknown_options_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        label_states.to_labels(dict.fromkeys("abcd", -1), **OPTIONS | options)
