"""Diabetic lesions of one eye, and the grade that follows from them.

Wilkinson et al., "Proposed international clinical diabetic retinopathy and diabetic macular edema disease severity
scales", Ophthalmology 110 (2003): 0 none; 1 microaneurysms only; 2 more than these, less than severe; 3 more than 20
haemorrhages in each of four quadrants, or venous beading in two, or an intraretinal microvascular abnormality in one;
4 neovascularisation or haemorrhage into or before the vitreous.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mediax.errors import InputError
from mediax.phantoms.fundus_anatomy import DISC_CENTRE

GRADES = range(5)
MIDDLE = np.array([2.0, 0.0])  # mm from the fovea, on the way to the disc: where the four quadrants meet
QUADRANTS = ((1, -1), (1, 1), (-1, -1), (-1, 1))  # (nasal or temporal, superior or inferior): signs of x and y
MANY = 20  # haemorrhages in a quadrant that a severe eye exceeds

MICROANEURYSM = "Microaneurysm"
HAEMORRHAGE = "Haemorrhage"
HARD_EXUDATE = "Hard Exudate"
SOFT_EXUDATE = "Soft Exudate"
BEADING = "Venous Beading"
ABNORMALITY = "Intraretinal Microvascular Abnormality"
NEW_VESSELS = "Neovascularisation"
VITREOUS = "Vitreous Haemorrhage"
KINDS = (MICROANEURYSM, HAEMORRHAGE, HARD_EXUDATE, SOFT_EXUDATE, BEADING, ABNORMALITY, NEW_VESSELS, VITREOUS)
FORMS = {HAEMORRHAGE: ("dot", "blot", "flame"), VITREOUS: ("preretinal", "diffuse")}


@dataclass(frozen=True)
class Lesion:
    """One lesion, on the retina's map: `centre` (x, y) and `radius` in mm, `angle` in radians.

    `form` tells haemorrhages apart (`FORMS`); venous beading spans the quadrant that its centre lies in; `seed` fixes
    the outline. Raises InputError on an unknown kind or form.
    """

    kind: str
    centre: tuple[float, float]
    radius: float
    seed: int
    form: str = ""
    angle: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"kind: found {self.kind!r}, expected one of {list(KINDS)}.")
        forms = FORMS.get(self.kind, ("",))
        if self.form not in forms:
            raise InputError(f"form of a {self.kind}: found {self.form!r}, expected one of {list(forms)}.")

    @property
    def quadrant(self) -> tuple[int, int]:
        """The signs of x and y from the middle: one of `QUADRANTS`."""
        x, y = np.array(self.centre) - MIDDLE
        return (1 if x >= 0 else -1), (1 if y >= 0 else -1)


def grade_of(lesions: Iterable[Lesion]) -> int:
    """The international grade 0 to 4 of an eye with these lesions."""
    lesions = tuple(lesions)
    kinds = {lesion.kind for lesion in lesions}
    if kinds & {NEW_VESSELS, VITREOUS}:
        return 4
    bleeding = Counter(lesion.quadrant for lesion in lesions if lesion.kind == HAEMORRHAGE)
    beaded = {lesion.quadrant for lesion in lesions if lesion.kind == BEADING}
    if min(bleeding[quadrant] for quadrant in QUADRANTS) > MANY or len(beaded) >= 2 or ABNORMALITY in kinds:
        return 3
    if kinds - {MICROANEURYSM}:
        return 2
    return 1 if kinds else 0


def sample_lesions(
    rng: np.random.Generator,
    grade: int,
    *,
    centre: tuple[float, float] = (1.5, 0.0),
    radius: float = 5.2,
) -> tuple[Lesion, ...]:
    """Lesions whose grade is `grade`, inside the circle of the retina's map around `centre` (mm).

    Raises InputError on another grade than 0 to 4.
    """
    if grade not in GRADES:
        raise InputError(f"grade: found {grade!r}, expected a whole number from 0 to 4.")
    sampler = _Sampler(rng, np.array(centre, float), radius)
    if grade == 0:
        return ()
    if grade == 1:
        return sampler.microaneurysms(int(rng.integers(1, 9)))
    severe = grade == 3 or (grade == 4 and rng.random() < 0.5)
    lesions = sampler.severe() if severe else sampler.moderate()
    return lesions + sampler.proliferative() if grade == 4 else lesions


class _Sampler:
    """Draws lesions in a circle of the retina, off the disc and the fovea."""

    def __init__(self, rng: np.random.Generator, centre: np.ndarray, radius: float):
        self.rng, self.centre, self.radius = rng, centre, radius

    def moderate(self) -> tuple[Lesion, ...]:
        rng = self.rng
        lesions = self.microaneurysms(int(rng.integers(4, 22)))
        lesions += self.haemorrhages(int(rng.integers(1, 26)))
        lesions += self.exudates(int(rng.integers(0, 4))) + self.soft_exudates(int(rng.poisson(0.5)))
        return lesions

    def severe(self) -> tuple[Lesion, ...]:
        """At least one sign of three: haemorrhages in all quadrants, venous beading in two, an abnormality."""
        rng = self.rng
        room = self._quadrants_with_room()
        possible = np.array([len(room) == 4, len(room) >= 2, True])
        signs = (rng.random(3) < (0.6, 0.35, 0.35)) & possible
        signs[rng.choice(np.flatnonzero(possible))] = True
        lesions = self.microaneurysms(int(rng.integers(15, 40)))
        if signs[0]:
            for quadrant in QUADRANTS:
                lesions += self.haemorrhages(int(rng.integers(MANY + 1, MANY + 12)), quadrant)
        else:
            lesions += self.haemorrhages(int(rng.integers(15, 45)))
        if signs[1]:
            for index in rng.permutation(len(room))[: int(rng.integers(2, 4))]:
                lesions += (self._lesion(BEADING, 1.0, room[index]),)
        if signs[2]:
            lesions += self._several(ABNORMALITY, int(rng.integers(1, 3)), (0.25, 0.45))
        return lesions + self.exudates(int(rng.integers(0, 5))) + self.soft_exudates(int(rng.integers(0, 5)))

    def proliferative(self) -> tuple[Lesion, ...]:
        """New vessels on the disc or elsewhere, or a bleeding into or before the vitreous, or both."""
        rng = self.rng
        first = int(rng.integers(3))
        lesions = ()
        disc_in_sight = np.hypot(*(DISC_CENTRE - self.centre)) < self.radius - 0.3
        if (first == 0 or rng.random() < 0.3) and disc_in_sight:
            place = DISC_CENTRE + rng.normal(0, 0.3, 2)
            lesions += (self._at(NEW_VESSELS, place, rng.uniform(0.6, 1.0)),)
        if first == 1 or not disc_in_sight or rng.random() < 0.3:
            lesions += self._several(NEW_VESSELS, int(rng.integers(1, 3)), (0.4, 0.8))
        if first == 2 or rng.random() < 0.2:
            form = str(rng.choice(FORMS[VITREOUS]))
            size = rng.uniform(0.7, 1.4) if form == "preretinal" else rng.uniform(1.2, 2.4)
            lesions += (self._lesion(VITREOUS, size, form=form),)
        return lesions or self._several(NEW_VESSELS, 1, (0.4, 0.8))

    def microaneurysms(self, count: int) -> tuple[Lesion, ...]:
        """Up to 125 micrometres wide, mostly around the macula."""
        return self._several(MICROANEURYSM, count, (0.026, 0.055), spread=2.6)

    def haemorrhages(self, count: int, quadrant=None) -> tuple[Lesion, ...]:
        sizes = {"dot": (0.045, 0.09), "blot": (0.09, 0.21), "flame": (0.16, 0.34)}
        lesions = ()
        for form in self.rng.choice(FORMS[HAEMORRHAGE], count, p=(0.5, 0.3, 0.2)):
            size = self.rng.uniform(*sizes[str(form)])
            lesions += (self._lesion(HAEMORRHAGE, size, quadrant, form=str(form)),)
        return lesions

    def exudates(self, clusters: int) -> tuple[Lesion, ...]:
        """Clusters of specks around the macula, some of them in rings."""
        rng, lesions = self.rng, ()
        for _ in range(clusters):
            middle = np.array(self._lesion(HARD_EXUDATE, 0.1, spread=1.5).centre)
            ring, count = rng.uniform(0.3, 0.8) if rng.random() < 0.5 else 0.0, int(rng.integers(6, 36))
            start = rng.uniform(0, 2 * np.pi)
            for _ in range(count):
                turn = start + rng.normal(0, 0.9)
                place = middle + ring * np.array([np.cos(turn), np.sin(turn)]) + rng.normal(0, 0.16, 2)
                if self._is_allowed(place):
                    lesions += (self._at(HARD_EXUDATE, place, 0.028 * np.exp(rng.normal(0, 0.5))),)
        return lesions

    def soft_exudates(self, count: int) -> tuple[Lesion, ...]:
        return self._several(SOFT_EXUDATE, count, (0.14, 0.3), spread=3.5)

    def _several(self, kind: str, count: int, sizes: tuple[float, float], spread=None) -> tuple[Lesion, ...]:
        return tuple(self._lesion(kind, self.rng.uniform(*sizes), spread=spread) for _ in range(count))

    def _lesion(self, kind: str, radius: float, quadrant=None, form: str = "", spread=None) -> Lesion:
        """A lesion in the circle; in a quadrant, or with a spread in mm around the fovea, if asked."""
        for _ in range(400):
            if spread is None:
                turn, reach = self.rng.uniform(0, 2 * np.pi), self.radius * np.sqrt(self.rng.random())
                place = self.centre + reach * np.array([np.cos(turn), np.sin(turn)])
            else:
                place = self.rng.normal(0, spread, 2)
            lesion = self._at(kind, place, radius, form)
            if self._is_allowed(place) and quadrant in (None, lesion.quadrant):
                return lesion
        raise InputError(
            f"sample_lesions: found no room for a {kind} in quadrant {quadrant} within {self.radius:g} mm of"
            f" {tuple(self.centre.tolist())}; expected a field that holds all quadrants. Widen the field of view."
        )

    def _quadrants_with_room(self) -> list[tuple[int, int]]:
        """The quadrants that more than a token part of the circle lies in."""
        circle = np.mgrid[-1:1:20j, -1:1:20j].reshape(2, -1)
        circle = circle[:, np.hypot(*circle) < 1]
        x, y = self.radius * circle + (self.centre - MIDDLE)[:, None]
        return [(right, down) for right, down in QUADRANTS if ((x * right > 0) & (y * down > 0)).sum() > 15]

    def _is_allowed(self, place: np.ndarray) -> bool:
        inside = np.hypot(*(place - self.centre)) < self.radius
        return bool(inside and np.hypot(*(place - DISC_CENTRE)) > 1.3 and np.hypot(*place) > 0.22)

    def _at(self, kind: str, place: np.ndarray, radius: float, form: str = "") -> Lesion:
        x, y = place.tolist()
        # Flames and soft exudates follow the nerve fibres, which leave the disc and bend around the macula.
        away = place - DISC_CENTRE
        angle = float(np.arctan2(away[1] * 0.8, away[0])) if form == "flame" else float(self.rng.uniform(0, np.pi))
        return Lesion(kind, (round(x, 4), round(y, 4)), float(radius), int(self.rng.integers(2**31)), form, angle)
