"""The chest phantom: its truth is exact, its anatomy plausible, and nothing but the findings tells of the findings."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mediax.errors import InputError
from mediax.phantoms import chest
from mediax.phantoms.chest import FINDINGS, Patient, frontal, lateral, sample_findings, sample_patient

ADULT = Patient("Male", 45.0, 4)


def heart_to_thorax(radiograph) -> float:
    """The cardiothoracic ratio as a reader measures it: widest heart over widest thorax."""
    lungs = (radiograph.masks["Left Lung"] | radiograph.masks["Right Lung"]).any(axis=0)
    heart = radiograph.masks["Heart"].any(axis=0)
    return np.ptp(np.flatnonzero(heart)) / np.ptp(np.flatnonzero(lungs))


def centre(mask) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def overlap(a, b) -> float:
    return (a & b).sum() / (a | b).sum()


def digest(radiograph) -> str:
    parts = [radiograph.image, *(radiograph.masks[name] for name in sorted(radiograph.masks)), *radiograph.instances]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts) + repr(radiograph.boxes).encode()).hexdigest()


@pytest.mark.parametrize("draw", [frontal, lateral])
def test_same_arguments_same_bytes(draw):
    first = draw(7, findings=["Nodule", "Edema"], size=128)
    second = draw(7, findings={"Edema", "Nodule"}, size=128)
    assert digest(first) == digest(second)
    assert digest(first) != digest(draw(8, findings=["Nodule", "Edema"], size=128))


def test_same_bytes_in_another_process():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_phantom_chest import FINDINGS, digest, frontal\n"
        "print(digest(frontal(11, findings=set(FINDINGS), size=96, view='AP')))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == digest(frontal(11, findings=FINDINGS, size=96, view="AP"))


@pytest.mark.parametrize("draw", [frontal, lateral])
def test_boxes_are_tight_around_instances(draw):
    for seed in range(8):
        radiograph = draw(seed, findings=FINDINGS, size=160)
        assert {finding for finding, *_ in radiograph.boxes} == set(FINDINGS) == set(radiograph.finding_masks)
        assert len(radiograph.boxes) == len(radiograph.instances)
        union = {finding: np.zeros((160, 160), bool) for finding in FINDINGS}
        for (finding, ymin, xmin, ymax, xmax), mask in zip(radiograph.boxes, radiograph.instances):
            rows, columns = np.nonzero(mask)
            assert (ymin, xmin, ymax, xmax) == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            assert 0 <= ymin < ymax <= 160 and 0 <= xmin < xmax <= 160
            union[finding] |= mask
        for finding in FINDINGS:
            np.testing.assert_array_equal(union[finding], radiograph.finding_masks[finding])


def test_without_findings_nothing_is_marked():
    radiograph = frontal(3, size=96)
    assert radiograph.boxes == radiograph.instances == ()
    assert radiograph.finding_masks == {}


def test_cardiothoracic_ratio():
    for seed in range(25):
        patient = sample_patient(seed, age=20.0 + 2.5 * seed)
        severity = seed / 24
        normal = heart_to_thorax(frontal(seed, patient=patient, size=256))
        enlarged = heart_to_thorax(
            frontal(seed, patient=patient, size=256, findings=["Cardiomegaly"], severity=severity)
        )
        assert 0.36 < normal < 0.5 < 0.52 < enlarged < 0.75


def test_portable_image_shows_a_larger_heart_and_less_breath():
    upright, portable = (
        [frontal(seed, patient=ADULT, view=view, size=160) for seed in range(10)] for view in ("PA", "AP")
    )
    assert np.mean([*map(heart_to_thorax, portable)]) > np.mean([*map(heart_to_thorax, upright)]) + 0.01
    lung_height = [
        np.mean([np.ptp(np.flatnonzero(r.masks["Left Lung"].any(axis=1))) for r in group])
        for group in (upright, portable)
    ]
    assert lung_height[1] < 0.95 * lung_height[0]


def test_left_is_on_the_right_of_the_image():
    for seed in range(10):
        radiograph = frontal(seed, size=128)
        assert centre(radiograph.masks["Left Lung"])[1] > centre(radiograph.masks["Right Lung"])[1]
        assert centre(radiograph.masks["Left Clavicle"])[1] > centre(radiograph.masks["Right Clavicle"])[1]
        assert radiograph.landmarks["Cardiac Apex"][1] > centre(radiograph.masks["Spine"])[1]
        assert radiograph.landmarks["Aortic Knob"][1] > radiograph.landmarks["Carina"][1]


def test_positioning_spreads_the_patients_and_moves_nothing_else():
    def hearts(**options):
        drawn = [frontal(seed, size=64, **options) for seed in range(12)]
        places = np.array([centre(radiograph.masks["Heart"]) for radiograph in drawn])
        return drawn, places.std(axis=0).mean(), np.std([radiograph.masks["Heart"].sum() for radiograph in drawn])

    usual, spread, areas = hearts()
    same, *_ = hearts(positioning=1.0)
    assert all((a.image == b.image).all() for a, b in zip(usual, same))
    _, wider, more_areas = hearts(positioning=5.0)
    assert wider > 3 * spread and more_areas > 1.5 * areas


def test_right_dome_stands_higher():
    level = [frontal(seed, size=64).landmarks for seed in range(20)]
    higher = [marks["Right Hemidiaphragm"][0] < marks["Left Hemidiaphragm"][0] for marks in level]
    assert np.mean(higher) > 0.7  # a turned image may level them


def test_organs_look_as_dense_as_they_are():
    for seed in range(6):
        radiograph = frontal(seed, patient=Patient("Male", 30.0 + 5 * seed, seed), size=192)
        mean = {name: radiograph.image[mask].mean() for name, mask in radiograph.masks.items()}
        lung = 0.5 * (mean["Left Lung"] + mean["Right Lung"])
        assert lung + 0.15 < mean["Heart"] < mean["Diaphragm"]
        assert mean["Spine"] > mean["Heart"]
        outside = ~radiograph.masks["Body"]
        assert np.median(radiograph.image[outside]) < lung


def test_same_patient_looks_the_same_on_another_day():
    def aligned(first, second):
        shift = np.rint(centre(first) - centre(second)).astype(int)
        return overlap(first, np.roll(second, shift, axis=(0, 1)))

    days = [frontal(seed, patient=ADULT, size=192) for seed in range(6)]
    for name in ("Left Lung", "Right Lung"):
        masks = [day.masks[name] for day in days]
        overlaps = [aligned(first, second) for i, first in enumerate(masks) for second in masks[:i]]
        assert np.mean(overlaps) > 0.88 and min(overlaps) > 0.78
    width = [np.ptp(np.flatnonzero(day.masks["Heart"].any(axis=0))) * day.spacing_mm[1] for day in days]
    assert np.ptp(width) < 0.04 * np.mean(width)
    other = frontal(0, patient=Patient("Female", 70.0, 9), size=192)
    assert not np.array_equal(days[0].image, other.image)


def test_resolution_changes_only_the_sampling():
    coarse = frontal(9, findings=FINDINGS, size=128)
    fine = frontal(9, findings=FINDINGS, size=512)
    assert [finding for finding, *_ in coarse.boxes] == [finding for finding, *_ in fine.boxes]
    for name in ("Left Lung", "Right Lung", "Heart", "Diaphragm"):
        assert overlap(coarse.masks[name], fine.masks[name][2::4, 2::4]) > 0.94
    assert coarse.spacing_mm[0] == pytest.approx(4 * fine.spacing_mm[0])
    binned = fine.image.reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert np.abs(binned - coarse.image).mean() < 0.03
    for name, point in coarse.landmarks.items():
        np.testing.assert_allclose(4 * np.array(point), fine.landmarks[name])


def test_size_need_not_be_square():
    radiograph = frontal(2, findings=["Nodule"], size=(160, 195))
    assert radiograph.image.shape == (160, 195)
    assert all(mask.shape == (160, 195) for mask in radiograph.masks.values())
    assert radiograph.spacing_mm == frontal(2, size=160).spacing_mm


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_its_own_place(finding):
    """Compares the same image with and without the finding: the change lies on the mask and a thin rim around it."""
    shares, contrasts = [], []
    for seed in range(6):
        patient = sample_patient(seed, age=50.0)
        with_it = frontal(seed, patient=patient, findings=[finding], size=256, severity=0.6)
        without = frontal(seed, patient=patient, size=256)
        change = np.abs(with_it.image - without.image)
        mask = with_it.finding_masks[finding]
        near = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))) > 0
        shares.append(change[near].sum() / change.sum())
        contrasts.append(change[mask].mean() / (change[~near].mean() + 1e-6))
    # A collapsed lobe also lifts the dome, congestion also widens vessels beyond the haze.
    least = {"Atelectasis": 0.5, "Edema": 0.6}.get(finding, 0.7)
    assert np.mean(shares) > least
    assert np.median(contrasts) > 8


def test_findings_have_the_radiologists_signs():
    def compare(finding, seed):
        arguments = {"patient": ADULT, "size": 256}
        return frontal(seed, findings=[finding], severity=0.8, **arguments), frontal(seed, **arguments)

    for seed in range(4):
        for finding, sign in (
            ("Pleural Effusion", 1),
            ("Consolidation", 1),
            ("Nodule", 1),
            ("Edema", 1),
            ("Pneumothorax", -1),
        ):
            with_it, without = compare(finding, seed)
            mask = with_it.finding_masks[finding]
            assert sign * (with_it.image[mask] - without.image[mask]).mean() > 0.03, finding
            lungs = with_it.masks["Left Lung"] | with_it.masks["Right Lung"]
            assert (mask & lungs).sum() > 0.95 * mask.sum(), finding
        effusion = compare("Pleural Effusion", seed)[0]
        assert centre(effusion.finding_masks["Pleural Effusion"])[0] > centre(effusion.masks["Left Lung"])[0]
        air = compare("Pneumothorax", seed)[0]
        assert air.boxes[0][1] < centre(air.masks["Left Lung"])[0] - 0.2 * 256
        nodules = compare("Nodule", seed)[0]
        for _, ymin, xmin, ymax, xmax in nodules.boxes:
            assert 4 <= max(ymax - ymin, xmax - xmin) * nodules.spacing_mm[0] <= 36


@pytest.mark.parametrize("draw", [frontal, lateral])
def test_images_are_sane(draw):
    for seed in range(12):
        image = draw(seed, size=96, findings=sample_findings(np.random.default_rng(seed))).image
        assert image.dtype == np.float32 and np.isfinite(image).all()
        assert image.min() >= 0 and image.max() <= 1
        assert image.std() > 0.15
        assert np.quantile(image, 0.9) - np.quantile(image, 0.1) > 0.4


def test_landmarks_lie_on_their_organs():
    radiograph = frontal(6, patient=ADULT, size=256)
    for side in ("Left", "Right"):
        rows = np.flatnonzero(radiograph.masks[f"{side} Lung"].any(axis=1))
        assert radiograph.landmarks[f"{side} Lung Apex"][0] == pytest.approx(rows[0], abs=3)
        assert radiograph.landmarks[f"{side} Costophrenic Angle"][0] == pytest.approx(rows[-1], abs=6)


def test_lateral_view():
    for seed in range(5):
        radiograph = lateral(seed, findings=["Cardiomegaly", "Pleural Effusion"], size=160)
        assert radiograph.view == "Lateral"
        assert centre(radiograph.masks["Heart"])[1] < centre(radiograph.masks["Spine"])[1]
        assert centre(radiograph.masks["Sternum"])[1] < centre(radiograph.masks["Heart"])[1]
        assert overlap(radiograph.masks["Left Lung"], radiograph.masks["Right Lung"]) > 0.85


def test_patients_differ_by_sex_and_age():
    width = {}
    for sex in ("Female", "Male"):
        group = [frontal(seed, patient=Patient(sex, 40.0, seed), size=96) for seed in range(12)]
        lungs = [(r.masks["Left Lung"] | r.masks["Right Lung"]).any(axis=0) for r in group]
        width[sex] = np.mean([lung.sum() * r.spacing_mm[1] for lung, r in zip(lungs, group)])
    assert width["Female"] < 0.95 * width["Male"]
    infant = frontal(1, patient=Patient("Male", 0.3, 1), size=192)
    assert heart_to_thorax(infant) > heart_to_thorax(frontal(1, patient=Patient("Male", 30.0, 1), size=192)) + 0.04
    assert infant.spacing_mm[0] < 0.6 * frontal(1, patient=Patient("Male", 30.0, 1), size=192).spacing_mm[0]


def test_findings_are_frequent_and_occur_together():
    rng = np.random.default_rng(0)
    drawn = [sample_findings(rng) for _ in range(4000)]
    table = np.array([[finding in present for finding in FINDINGS] for present in drawn])
    assert 0.2 < (~table.any(axis=1)).mean() < 0.35
    np.testing.assert_allclose(table.mean(axis=0), [chest.PREVALENCE[f] for f in FINDINGS], atol=0.025)
    assert table.mean(axis=0).min() >= 0.08
    heart, edema = table[:, FINDINGS.index("Cardiomegaly")], table[:, FINDINGS.index("Edema")]
    assert edema[heart].mean() > 1.5 * edema.mean()
    assert all("Nodule" in sample_findings(rng, {"Nodule": 1.0}) for _ in range(20))
    assert not any("Edema" in sample_findings(rng, {"Edema": 0.0}) for _ in range(20))


def test_wrong_names_are_explained():
    with pytest.raises(InputError, match="Fracture"):
        frontal(0, findings=["Fracture"])
    with pytest.raises(InputError, match="lateral"):
        frontal(0, view="Lateral")
    with pytest.raises(InputError, match="sex"):
        Patient("F", 40.0, 0)
    with pytest.raises(InputError, match="age"):
        Patient("Female", 400.0, 0)


def test_every_finding_is_marked_even_on_a_thumbnail():
    for seed in range(10):
        assert set(frontal(seed, findings=FINDINGS, size=28).finding_masks) == set(FINDINGS)


def test_border_and_histogram_do_not_tell_the_findings():
    """A linear probe without the chest's inside stays far from what a reader of the image can reach."""
    rng = np.random.default_rng(1)
    border, histogram, labels = [], [], []
    for seed in range(500):
        present = [finding for finding in FINDINGS if rng.random() < 0.25]  # independent: no help from company
        image = frontal(1000 + seed, findings=present, size=64).image
        border.append(np.concatenate([image[:3].ravel(), image[:, :3].ravel(), image[:, -3:].ravel()])[::4])
        histogram.append(np.histogram(image, bins=24, range=(0, 1))[0])
        labels.append([finding in present for finding in FINDINGS])
    labels = np.array(labels)

    def probe(features, label):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        return roc_auc_score(label, cross_val_predict(model, features, label, cv=4, method="decision_function"))

    on_border = [probe(np.array(border), labels[:, i]) for i in range(len(FINDINGS))]
    on_histogram = [probe(np.array(histogram), labels[:, i]) for i in range(len(FINDINGS))]
    assert np.mean(on_border) < 0.58 and max(on_border) < 0.66
    assert np.mean(on_histogram) < 0.72 and max(on_histogram) < 0.9
