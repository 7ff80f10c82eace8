"""Whose eye it is: a person, and the outlines of one eye in millimetres on the retina's map."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from mediax.errors import InputError
from mediax.phantoms.fundus_vessels import Vessel, grow_vessels

SIDES = ("left", "right")
DISC_CENTRE = np.array([4.55, -0.5])  # mm from the fovea: nasal and a little above it
DISC_RADII = np.array([0.85, 0.93])  # mm


@dataclass(frozen=True)
class Person:
    """One person: the same person has the same two eyes on every photograph.

    `age` is in years (0 to 100), `pigmentation` from 0 (fair, the choroid shines through) to 1 (dark), `seed` fixes
    everything else. Raises InputError on other values.
    """

    age: float
    pigmentation: float
    seed: int

    def __post_init__(self):
        if not 0 <= self.age <= 100:
            raise InputError(f"age: found {self.age!r}, expected years from 0 to 100.")
        if not 0 <= self.pigmentation <= 1:
            raise InputError(f"pigmentation: found {self.pigmentation!r}, expected a number from 0 to 1.")


def sample_person(seed: int, *, age: float | None = None, pigmentation: float | None = None) -> Person:
    """A person from a screening clinic; `age` and `pigmentation` can be prescribed."""
    rng = np.random.default_rng([seed, 8001])
    drawn_age, drawn_pigmentation = float(np.clip(rng.normal(57, 14), 12, 92)), float(rng.beta(2, 2))
    return Person(
        round(drawn_age if age is None else age, 1),
        round(drawn_pigmentation if pigmentation is None else pigmentation, 3),
        seed,
    )


def sample_cup_to_disc(rng: np.random.Generator, glaucoma: bool) -> float:
    """A vertical cup-to-disc ratio: about 0.25 to 0.6 in a normal eye, 0.65 to 0.92 in a glaucomatous one."""
    return float(rng.uniform(0.66, 0.92)) if glaucoma else float(np.clip(rng.normal(0.42, 0.09), 0.22, 0.6))


@dataclass(frozen=True)
class Eye:
    """One eye; `cup_to_disc` is the vertical ratio of the cup's diameter to the disc's, None for the person's own."""

    person: Person
    side: str
    prescribed_cup_to_disc: float | None = None

    def rng(self, part: int) -> np.random.Generator:
        """The eye's own chance: the same on every photograph."""
        return np.random.default_rng([self.person.seed, 8100 + part, SIDES.index(self.side)])

    @cached_property
    def cup_to_disc(self) -> float:
        # Both eyes of a person are alike.
        shared = np.random.default_rng([self.person.seed, 8003]).normal(0.42, 0.1)
        own = float(np.clip(shared + self.rng(0).normal(0, 0.03), 0.2, 0.62))
        return own if self.prescribed_cup_to_disc is None else self.prescribed_cup_to_disc

    @cached_property
    def disc_centre(self) -> np.ndarray:
        return DISC_CENTRE + self.rng(1).normal(0, (0.12, 0.12))

    @cached_property
    def disc_radii(self) -> np.ndarray:
        """f64[2] in mm, across and along; a little taller than wide."""
        rng = np.random.default_rng([self.person.seed, 8004])
        return DISC_RADII * np.clip(rng.normal(1, 0.07), 0.85, 1.18) * np.clip(rng.normal(1, 0.025, 2), 0.94, 1.06)

    @cached_property
    def disc(self) -> np.ndarray:
        """The optic disc's outline f64[N,2]."""
        return self.disc_centre + self.disc_radii * round_outline(self.rng(2), 0.014)

    @cached_property
    def cup(self) -> np.ndarray:
        """The cup's outline f64[N,2]: `cup_to_disc` times as tall as the disc; narrower, and temporal of its middle."""
        outline = round_outline(self.rng(3), 0.02)
        tall = self.cup_to_disc * np.ptp(self.disc[:, 1]) / np.ptp(outline[:, 1])
        wide = self.cup_to_disc * self.disc_radii[0] * (0.93 - 0.12 * self.cup_to_disc**4)
        slack = self.disc_radii * (1 - self.cup_to_disc)
        return self.disc_centre + slack * (-0.18, 0.05) + outline * (wide, tall)

    @cached_property
    def vessels(self) -> tuple[Vessel, ...]:
        return _vessels(self.person.seed, self.side, tuple(self.disc_centre.tolist()))


@lru_cache(maxsize=16)
def _vessels(person_seed: int, side: str, disc: tuple[float, float]) -> tuple[Vessel, ...]:
    return tuple(grow_vessels(np.array(disc), np.random.default_rng([person_seed, 8110, SIDES.index(side)])))


def round_outline(rng: np.random.Generator, unevenness: float, samples: int = 72) -> np.ndarray:
    """A circle f64[N,2] of radius about 1 with smooth unevenness."""
    strength, phase = rng.normal(0, unevenness, 4), rng.uniform(0, 2 * np.pi, 4)
    return unit_circle(samples) * (1 + strength @ np.cos(_waves(samples) + phase[:, None]))[:, None]


@lru_cache(maxsize=8)
def unit_circle(samples: int) -> np.ndarray:
    """f64[N,2]; shared, so not to be written to."""
    angle = np.linspace(0, 2 * np.pi, samples, endpoint=False)
    return np.column_stack([np.cos(angle), np.sin(angle)])


@lru_cache(maxsize=8)
def _waves(samples: int) -> np.ndarray:
    """2 to 5 times the circle's angle, f64[4,N]."""
    return np.arange(2, 6)[:, None] * np.linspace(0, 2 * np.pi, samples, endpoint=False)
