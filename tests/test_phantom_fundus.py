"""The fundus phantom: its truth is exact, its grade follows from its lesions, and its pairs fit on each other."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mediax.errors import InputError
from mediax.phantoms import fundus
from mediax.phantoms.fundus import Camera, Lesion, Person, grade_of, pair, photograph, sample_lesions
from mediax.phantoms.fundus_lesions import BEADING, HAEMORRHAGE, MANY, MICROANEURYSM, QUADRANTS, VITREOUS

SOMEBODY = Person(50.0, 0.4, 3)
ANATOMY = {"Vessels", "Arteries", "Veins", "Optic Disc", "Optic Cup", "Fovea", "Field of View"}


def digest(photo) -> str:
    parts = [photo.image, *(photo.masks[name] for name in sorted(photo.masks))]
    parts += [photo.lesion_masks[name] for name in sorted(photo.lesion_masks)]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts) + repr(photo.boxes).encode()).hexdigest()


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def centre(mask) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def height(mask) -> int:
    return np.ptp(np.flatnonzero(mask.any(axis=1))) + 1


def test_same_bytes_in_another_process():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_phantom_fundus import digest, photograph\n"
        "print(digest(photograph(11, grade=4, size=96, difficulty=0.3)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == digest(photograph(11, grade=4, size=96, difficulty=0.3))
    assert output.strip() != digest(photograph(12, grade=4, size=96, difficulty=0.3))


@pytest.mark.parametrize("size", [(584, 565), (605, 700), (292, 438), 64])
def test_shapes(size):
    photo = photograph(2, grade=2, size=size)
    shape = (size, size) if isinstance(size, int) else size
    assert photo.image.shape == (*shape, 3) and photo.image.dtype == np.uint8
    assert set(photo.masks) == ANATOMY
    for mask in (*photo.masks.values(), *photo.lesion_masks.values()):
        assert mask.shape == shape and mask.dtype == bool and mask.any()
        assert not (mask & ~photo.masks["Field of View"]).any()


def test_a_finer_size_samples_the_same_eye():
    coarse, fine = (photograph(9, grade=3, size=size, person=SOMEBODY) for size in (200, 600))
    assert coarse.lesions == fine.lesions
    for name in ("Optic Disc", "Optic Cup", "Fovea", "Field of View"):
        assert dice(coarse.masks[name], fine.masks[name][1::3, 1::3]) > 0.94, name
    wide = cv2.dilate(coarse.masks["Vessels"].astype(np.uint8), np.ones((3, 3))) > 0
    assert wide[fine.masks["Vessels"][1::3, 1::3]].mean() > 0.97
    binned = fine.image.reshape(200, 3, 200, 3, 3).mean(axis=(1, 3))
    assert np.abs(binned - coarse.image).mean() < 6
    assert coarse.spacing_mm[0] == pytest.approx(3 * fine.spacing_mm[0])
    for name, place in coarse.landmarks.items():
        np.testing.assert_allclose(3 * np.array(place), fine.landmarks[name])


def test_left_and_right():
    for seed in range(6):
        right, left = (photograph(seed, side=side, size=96) for side in ("right", "left"))
        assert right.landmarks["Optic Disc"][1] > right.landmarks["Fovea"][1] + 20
        assert left.landmarks["Optic Disc"][1] < left.landmarks["Fovea"][1] - 20
        assert right.person == left.person


def test_structures_look_as_they_should():
    for seed in range(8):
        photo = photograph(seed, size=256, field_of_view_degrees=45)
        green = photo.image[..., 1].astype(float)
        field, vessels, disc = (photo.masks[name] for name in ("Field of View", "Vessels", "Optic Disc"))
        retina = field & ~vessels & ~disc
        red, middle, blue = photo.image[retina].mean(axis=0)
        assert red > 1.5 * middle > 1.5 * blue
        assert green[disc].mean() > 1.4 * green[retina].mean()
        assert green[photo.masks["Optic Cup"] & ~vessels].mean() > green[disc & ~photo.masks["Optic Cup"]].mean()
        y, x = np.array(photo.landmarks["Fovea"]).astype(int)
        ring = cv2.circle(np.zeros(field.shape, np.uint8), (x, y), 50, 1, 6) > 0
        assert green[y - 3 : y + 4, x - 3 : x + 4].mean() < 0.92 * green[ring & retina].mean()
        assert 0.06 < vessels.sum() / field.sum() < 0.2
        assert photo.image[~field].mean() < 8


def test_vessels_are_darker_than_what_lies_beside_them():
    for seed in range(4):
        photo = photograph(seed, size=(584, 565), field_of_view_degrees=45)
        green = photo.image[..., 1].astype(float)
        away = cv2.erode(photo.masks["Field of View"].astype(np.uint8), np.ones((25, 25))) > 0
        away &= cv2.dilate(photo.masks["Optic Disc"].astype(np.uint8), np.ones((41, 41))) == 0
        near = cv2.dilate(photo.masks["Vessels"].astype(np.uint8), np.ones((9, 9))) > 0
        only = {name: photo.masks[name] & ~photo.masks[other] & away for name, other in
                (("Arteries", "Veins"), ("Veins", "Arteries"))}  # fmt: skip
        beside = green[near & ~photo.masks["Vessels"] & away].mean()
        assert green[only["Veins"]].mean() < green[only["Arteries"]].mean() < beside - 4
        np.testing.assert_array_equal(photo.masks["Vessels"], photo.masks["Arteries"] | photo.masks["Veins"])
        centre_of_fovea = np.array(photo.landmarks["Fovea"]).astype(int)
        avascular = photo.masks["Vessels"][tuple(slice(c - 5, c + 6) for c in centre_of_fovea)]
        assert not avascular.any()


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.85])
def test_cup_to_disc_ratio_is_measured_on_the_masks(ratio):
    for seed in range(4):
        photo = photograph(seed, cup_to_disc=ratio, size=512, aim="disc", field_of_view_degrees=30)
        measured = height(photo.masks["Optic Cup"]) / height(photo.masks["Optic Disc"])
        assert measured == pytest.approx(ratio, abs=0.03)
        assert not (photo.masks["Optic Cup"] & ~photo.masks["Optic Disc"]).any()
        assert photo.cup_to_disc == ratio


def test_cups_of_glaucoma_are_larger():
    rng = np.random.default_rng(0)
    ratios = [[fundus.sample_cup_to_disc(rng, glaucoma) for _ in range(200)] for glaucoma in (False, True)]
    assert max(ratios[0]) < 0.62 < 0.65 < min(ratios[1]) and max(ratios[1]) < 0.95


@pytest.mark.parametrize("grade", range(5))
def test_lesions_bear_out_their_grade(grade):
    for seed in range(40):
        assert grade_of(sample_lesions(np.random.default_rng(seed), grade)) == grade
    for seed in range(6):
        photo = photograph(seed, grade=grade, size=160, camera=Camera(aim="disc" if seed % 2 else "macula"))
        assert photo.grade == grade == grade_of(photo.lesions)
        assert set(photo.lesion_masks) == {lesion.kind for lesion in photo.lesions}
        shown = [lesion for lesion in photo.lesions if lesion.kind != BEADING]
        assert len([box for box in photo.boxes if box[0] != BEADING]) == len(shown)


def test_the_international_scale():
    def lesions(kind, quadrants, form=""):
        places = [(1.5 + 2 * x, 2.0 * y) for x, y in quadrants]
        return [Lesion(kind, place, 0.05, seed, form) for seed, place in enumerate(places)]

    dots, every = lesions(MICROANEURYSM, QUADRANTS), QUADRANTS * MANY
    assert grade_of([]) == 0 and grade_of(dots) == 1
    assert grade_of(dots + lesions(HAEMORRHAGE, QUADRANTS[:1], "blot")) == 2
    assert grade_of(lesions(HAEMORRHAGE, every, "dot")) == 2
    assert grade_of(lesions(HAEMORRHAGE, every + QUADRANTS[:3], "dot")) == 2
    assert grade_of(lesions(HAEMORRHAGE, every + QUADRANTS, "dot")) == 3
    assert grade_of(lesions(BEADING, QUADRANTS[:1])) == 2 and grade_of(lesions(BEADING, QUADRANTS[:2])) == 3
    assert grade_of(lesions(VITREOUS, QUADRANTS[:1], "preretinal")) == 4


def test_boxes_are_tight_around_lesions():
    for seed, kind in enumerate(kind for kind in fundus.KINDS if kind != BEADING):
        form = {HAEMORRHAGE: "flame", VITREOUS: "preretinal"}.get(kind, "")
        lesion = Lesion(kind, (0.8, -1.3), 0.5, seed, form, 0.7)
        photo = photograph(seed, lesions=[lesion], size=200)
        ((name, ymin, xmin, ymax, xmax),) = photo.boxes
        rows, columns = np.nonzero(photo.lesion_masks[kind])
        assert (ymin, xmin, ymax, xmax) == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        assert name == kind
        y, x = photo.view.pixels(lesion.centre)[::-1]
        assert ymin - 2 <= y <= ymax + 2 and xmin - 2 <= x <= xmax + 2


def test_lesions_change_their_own_place():
    camera = Camera(quality=None, noise=0)
    for seed in range(4):
        lesions = [
            lesion for lesion in sample_lesions(np.random.default_rng(seed), 2, radius=4.5) if lesion.kind != BEADING
        ]
        healthy = photograph(seed, size=256, camera=camera).image.astype(float)
        ill = photograph(seed, size=256, camera=camera, lesions=lesions)
        change = np.abs(ill.image - healthy).sum(axis=-1)
        marked = np.any(list(ill.lesion_masks.values()), axis=0)
        near = cv2.dilate(marked.astype(np.uint8), np.ones((9, 9))) > 0
        assert change[near].sum() > 0.97 * change.sum()
        sign = {HAEMORRHAGE: -1, MICROANEURYSM: -1, "Hard Exudate": 1, "Soft Exudate": 1}
        for kind, mask in ill.lesion_masks.items():
            assert sign[kind] * (ill.image - healthy)[mask][:, 1].mean() > 4, kind


def test_cameras_shape_the_field():
    plain = photograph(1, size=(200, 260), camera=Camera(fill=0.9)).masks["Field of View"]
    assert height(plain) == pytest.approx(180, abs=2) == np.ptp(np.flatnonzero(plain.any(axis=0))) + 1
    cut = photograph(1, size=(200, 260), camera=Camera(fill=0.9, cut=0.8)).masks["Field of View"]
    assert height(cut) == pytest.approx(144, abs=2)
    notched = photograph(1, size=(200, 260), camera=Camera(fill=0.9, notch=45)).masks["Field of View"]
    row, column = centre(notched & ~plain)
    assert row < 100 and column > 130
    narrow, wide = (photograph(1, size=200, field_of_view_degrees=degrees).spacing_mm[0] for degrees in (30, 60))
    assert wide == pytest.approx(2 * narrow, rel=0.06)


def test_difficulty_hides_thin_vessels():
    def contrast(difficulty):
        photo = photograph(4, size=(584, 565), difficulty=difficulty, person=SOMEBODY)
        solid = photo.masks["Vessels"].astype(np.uint8)
        thin = (solid > 0) & (cv2.morphologyEx(solid, cv2.MORPH_OPEN, np.ones((3, 3))) == 0)
        beside = (cv2.dilate(solid, np.ones((7, 7))) > 0) & (solid == 0) & photo.masks["Field of View"]
        green = photo.image[..., 1].astype(float)
        return (green[beside].mean() - green[thin].mean()) / green[beside].std()

    assert contrast(0) > 1.5 * contrast(0.5) > 2 * contrast(1)


def test_the_second_reader_disagrees_a_little():
    agreement = {name: [] for name in ANATOMY}
    for seed in range(4):
        masks = photograph(seed, size=(584, 565), field_of_view_degrees=45).masks
        read = fundus.second_reader(masks, seed)
        for name in ANATOMY:
            agreement[name].append(dice(masks[name], read[name]))
        assert not (read["Optic Cup"] & ~read["Optic Disc"]).any()
        assert not (read["Vessels"] & ~masks["Field of View"]).any()
        np.testing.assert_array_equal(read["Vessels"], read["Arteries"] | read["Veins"])
        np.testing.assert_array_equal(read["Vessels"], fundus.second_reader(masks, seed)["Vessels"])
    mean = {name: np.mean(values) for name, values in agreement.items()}
    assert 0.72 < mean["Vessels"] < 0.88 and mean["Arteries"] > 0.6 and mean["Veins"] > 0.6
    assert 0.94 < mean["Optic Disc"] < 0.995 and 0.8 < mean["Optic Cup"] < 0.97
    assert mean["Field of View"] == mean["Fovea"] == 1


def test_the_first_reader_errs_as_much_as_asked():
    photo = photograph(3, size=(584, 565), field_of_view_degrees=45)
    exact, field = photo.masks["Vessels"], photo.masks["Field of View"]
    readings = {error: fundus.first_reader(photo.masks, 3, error) for error in (0, 0.25, 1)}
    np.testing.assert_array_equal(readings[0]["Vessels"], exact)
    agreement = [dice(exact, reading["Vessels"]) for reading in readings.values()]
    second = fundus.second_reader(photo.masks, 3)["Vessels"]
    assert agreement[0] == 1 > agreement[1] > 0.93 > 0.88 > agreement[2] > 0.72
    for error in (0.25, 1):
        reading = readings[error]
        assert not (reading["Vessels"] & ~field).any() and (reading["Vessels"] != second).any()
        np.testing.assert_array_equal(reading["Vessels"], reading["Arteries"] | reading["Veins"])
        np.testing.assert_array_equal(reading["Vessels"], fundus.first_reader(photo.masks, 3, error)["Vessels"])
        for name in ("Optic Disc", "Fovea"):
            np.testing.assert_array_equal(reading[name], photo.masks[name])
    for error in (-0.1, 1.1):
        with pytest.raises(InputError, match=f"first_reader_error: found {error}, expected a number from 0 to 1"):
            fundus.first_reader(photo.masks, 3, error)


def test_the_soft_map_is_a_share_of_experts():
    cup = photograph(3, size=256, aim="disc", field_of_view_degrees=30).masks["Optic Cup"]
    soft = fundus.soft_map(cup, "Optic Cup", seed=1, experts=4)
    assert soft.dtype == np.float32 and set(np.unique(soft)) == {0, 0.25, 0.5, 0.75, 1}
    assert dice(soft >= 0.5, cup) > 0.85


@pytest.mark.parametrize("category", fundus.CATEGORIES)
def test_pairs_fit_on_each_other(category):
    for seed in range(3):
        two = pair(seed, category=category, size=320, field_of_view_degrees=45)
        assert two.reference_points.shape == two.moving_points.shape == (10, 2)
        np.testing.assert_allclose(two.transform(two.moving_points), two.reference_points, atol=1e-6)
        np.testing.assert_allclose(two.transform.inverse(two.reference_points), two.moving_points, atol=1e-6)
        assert (two.overlap > 0.75) == (category != "P")
        onto = two.transform.inverse
        brought = onto.resample(two.moving.masks["Vessels"].astype(np.float32)) > 0.5
        both = onto.resample(two.moving.masks["Field of View"].astype(np.float32)) > 0.5
        both &= two.reference.masks["Field of View"]
        assert dice(brought & both, two.reference.masks["Vessels"] & both) > 0.8
        assert (len(two.moving.lesions) > len(two.reference.lesions)) == (category == "A")
        for photo, points in ((two.reference, two.reference_points), (two.moving, two.moving_points)):
            x, y = np.floor(points).astype(int).T
            near = cv2.dilate(photo.masks["Vessels"].astype(np.uint8), np.ones((5, 5)))
            assert near[y, x].all()


def test_the_motion_of_a_pair_can_be_prescribed():
    still = pair(1, shift_mm=0.0, rotation_degrees=0.0, zoom=1.0, size=128)
    np.testing.assert_allclose(still.reference_points, still.moving_points, atol=1e-6)
    assert not np.array_equal(still.reference.image, still.moving.image)
    assert digest(still.reference) == digest(pair(1, size=128).reference)
    changed = [pair(1, category="A", size=96, **motion).reference for motion in ({}, {"shift_mm": 0.5, "zoom": 1.02})]
    assert digest(changed[0]) == digest(changed[1])
    turned = pair(1, shift_mm=0.0, rotation_degrees=8.0, zoom=1.05, size=128)
    matrix, _ = cv2.estimateAffinePartial2D(turned.reference_points, turned.moving_points)
    assert np.hypot(matrix[0, 0], matrix[1, 0]) == pytest.approx(1.05, rel=1e-3)
    assert abs(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))) == pytest.approx(8, abs=0.05)
    # The eye is round: a shifted gaze is no affine map, and nearly one where it is small.
    shifted = pair(1, shift_mm=3.0, rotation_degrees=0.0, zoom=1.0, size=512)
    source = np.column_stack([shifted.reference_points, np.ones(10)])
    residual = shifted.moving_points - source @ np.linalg.lstsq(source, shifted.moving_points, rcond=None)[0]
    assert 0.3 < np.abs(residual).max() < 30


def test_wrong_values_are_explained():
    for arguments, word in (
        ({"side": "both"}, "side"),
        ({"grade": 5}, "grade"),
        ({"cup_to_disc": 1.2}, "cup_to_disc"),
        ({"difficulty": 2}, "difficulty"),
        ({"aim": "sky"}, "aim"),
        ({"field_of_view_degrees": 120}, "field_of_view_degrees"),
        ({"grade": 2, "lesions": []}, "lesions"),
    ):
        with pytest.raises(InputError, match=word):
            photograph(0, size=32, **arguments)
    with pytest.raises(InputError, match="category"):
        pair(0, category="Q")
    with pytest.raises(InputError, match="Drusen"):
        Lesion("Drusen", (0, 0), 1.0, 0)
    with pytest.raises(InputError, match="age"):
        Person(-1.0, 0.5, 0)
