"""Protocols: what a case is, and which patient it belongs to."""

import numpy as np
import pytest

from mediax import protocols, vocabulary
from mediax.errors import InputError

NAN = np.nan
PREDICTIONS = {"scores": np.float32([[0.1, 0.9], [0.4, 0.2], [0.3, 0.6], [0.8, 0.5]])}
TARGETS = {"labels": np.float32([[0, NAN], [1, 0], [0, NAN], [NAN, NAN]])}
HOST = {
    "id": np.array(["a", "b", "c", "d"]),
    "patient_id": np.array(["second", "first", "second", "third"]),
    "study_id": np.array(["s9", "s1", "s9", "s5"]),
}


def test_every_image_is_a_case():
    predictions, targets, groups = protocols.cases(protocols.get("image"), PREDICTIONS, TARGETS, HOST)
    np.testing.assert_array_equal(predictions["scores"], PREDICTIONS["scores"])
    np.testing.assert_array_equal(targets["labels"], TARGETS["labels"])
    assert groups.tolist() == HOST["patient_id"].tolist()


@pytest.mark.parametrize("name", ["study", "chexpert/competition"])
def test_a_study_takes_the_maximum_of_its_images(name):
    predictions, targets, groups = protocols.cases(protocols.get(name), PREDICTIONS, TARGETS, HOST)
    assert groups.tolist() == ["first", "third", "second"]  # of the studies s1, s5, s9
    np.testing.assert_array_equal(predictions["scores"], np.float32([[0.4, 0.2], [0.8, 0.5], [0.3, 0.9]]))
    np.testing.assert_array_equal(targets["labels"], [[1, 0], [NAN, NAN], [0, NAN]])


def test_a_known_label_of_any_view_is_the_study_s():
    targets = {"labels": np.float32([[NAN, 0, NAN], [1, NAN, NAN], [NAN, NAN, NAN]])}
    predictions = {"scores": np.zeros((3, 3), np.float32)}
    host = {"study_id": np.array(["s", "s", "s"])}
    _, reduced, groups = protocols.cases(protocols.get("study"), predictions, targets, host)
    np.testing.assert_array_equal(reduced["labels"], [[1, 0, NAN]])
    assert groups is None


def test_the_order_of_the_images_does_not_matter():
    order = np.array([2, 3, 1, 0])
    shuffled = [{name: values[order] for name, values in arrays.items()} for arrays in (PREDICTIONS, TARGETS, HOST)]
    expected = protocols.cases(protocols.get("study"), PREDICTIONS, TARGETS, HOST)
    found = protocols.cases(protocols.get("study"), *shuffled)
    np.testing.assert_array_equal(found[0]["scores"], expected[0]["scores"])
    np.testing.assert_array_equal(found[1]["labels"], expected[1]["labels"])
    assert found[2].tolist() == expected[2].tolist()


def test_a_dataset_without_studies_cannot_be_scored_by_study():
    with pytest.raises(InputError, match="'study' scores studies, but this dataset has no study_id"):
        protocols.cases(protocols.get("study"), PREDICTIONS, TARGETS, {"patient_id": HOST["patient_id"]})


def test_a_typo_lists_the_protocols():
    with pytest.raises(InputError, match="field protocol: no protocol 'chexpert/competion'; did you mean 'chexpert/c"):
        protocols.get("chexpert/competion")


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS.values(), ids=protocols.PROTOCOLS)
def test_every_protocol_is_described(protocol):
    assert protocols.get(protocol.name) is protocol
    assert protocol.description and protocol.source and protocol.case in ("image", "study")
    assert [vocabulary.canonical(name) for name in protocol.classes] == list(protocol.classes)
