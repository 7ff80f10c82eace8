import pytest

from mediax import vocabulary
from mediax.errors import InputError


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Atelectasis", "Atelectasis"),
        ("atelectasis", "Atelectasis"),
        ("Effusion", "Pleural Effusion"),  # ChestX-ray14
        ("Pleural effusion", "Pleural Effusion"),  # VinBigData
        ("Pleural_Thickening", "Pleural Thickening"),
        ("Infiltrate", "Infiltration"),  # ChestX-ray14's boxes
        ("Airspace Opacity", "Lung Opacity"),  # CheXlocalize, MIMIC-CXR's test set
        ("Nodule/Mass", "Nodule/Mass"),
        ("nodule mass", "Nodule/Mass"),
        ("ILD", "Interstitial Lung Disease"),
        ("Enlarged PA", "Enlarged Pulmonary Artery"),
        ("No finding", "No Finding"),
        ("Other diseases", "Other Disease"),
        ("ObsoletePulmonaryTuberculosis", "Latent Tuberculosis"),  # TBX11K
        ("  optic   disk ", "Optic Disc"),
    ],
)
def test_spellings_of_the_datasets_are_known(spelling, name):
    assert vocabulary.canonical(spelling) == name


def test_unknown_name_lists_close_ones():
    with pytest.raises(InputError, match=r"'Cardiomegalie' is not .* did you mean 'Cardiomegaly'"):
        vocabulary.canonical("Cardiomegalie")
    with pytest.raises(InputError, match=r"nothing in mediax/vocabulary\.py is close"):
        vocabulary.canonical("qqqqqq")


def test_no_spelling_names_two_terms():
    spellings = [
        vocabulary.key(spelling) for term in vocabulary.TERMS.values() for spelling in {term.name, *term.synonyms}
    ]
    assert len(spellings) == len(set(spellings))
    assert len(vocabulary.TERMS) == sum(map(len, vocabulary.GROUPS))


def test_parents_are_terms_and_have_no_cycle():
    for name, term in vocabulary.TERMS.items():
        assert all(parent in vocabulary.TERMS for parent in term.parents)
        assert name not in vocabulary.ancestors(name)


def test_ancestors_follow_the_hierarchy():
    assert vocabulary.parents("pneumonia") == ("Consolidation",)
    assert vocabulary.ancestors("Pneumonia") == ("Consolidation", "Lung Opacity")
    assert vocabulary.ancestors("Nodule") == ("Nodule/Mass", "Lung Lesion", "Lung Opacity")
    assert vocabulary.ancestors("No Finding") == ()
