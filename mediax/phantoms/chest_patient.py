"""Who is on the radiograph: a patient whose body follows from sex, age and one seed."""

from dataclasses import dataclass

import numpy as np

from mediax.errors import InputError

SEXES = ("Female", "Male")


@dataclass(frozen=True)
class Patient:
    """One person: the same patient has the same body on every radiograph.

    `sex` is "Female" or "Male", `age` is in years (0 to 90), `seed` fixes everything else about the body. Raises
    InputError on other values.
    """

    sex: str
    age: float
    seed: int

    def __post_init__(self):
        if self.sex not in SEXES:
            raise InputError(f"sex: found {self.sex!r}, expected one of {list(SEXES)}.")
        if not 0 <= self.age <= 90:
            raise InputError(f"age: found {self.age!r}, expected years from 0 to 90.")


def sample_patient(seed: int, *, sex: str | None = None, age: float | None = None) -> Patient:
    """A patient from a hospital's mixture (one in ten a child); `sex` and `age` can be prescribed."""
    rng = np.random.default_rng([seed, 7001])
    drawn_sex = SEXES[int(rng.integers(2))]
    child, child_age, adult_age = rng.random() < 0.1, 18 * rng.random(), rng.normal(57, 18)
    drawn_age = child_age if child else float(np.clip(adult_age, 18, 90))
    return Patient(sex or drawn_sex, round(drawn_age if age is None else age, 1), seed)


@dataclass(frozen=True)
class Build:
    """The numbers that shape a body; lengths in mm, the others relative to an average young adult."""

    thorax_width: float  # inner, from rib to rib
    thorax_height: float  # from the apex of the lung to the costophrenic angle, in full inspiration
    childhood: float  # 1 for a newborn, 0 from twelve years on
    ageing: float  # 0 until forty, 1 at ninety
    habitus: float  # -1 thin, 1 obese
    heart_ratio: float  # heart's width over the thorax's, in a PA view
    heart_axis: float  # share of the heart's width that lies left of the midline
    aorta: float  # unfolding of the aortic arch, 0 to 1
    bone: float  # density
    breast: float  # size, 0 in males and children
    scoliosis: float  # mm of lateral deviation
    diaphragm_step: float  # mm that the left dome lies below the right one
    rib_tilt: float  # drop of a rib from back to front
    aeration: float  # air in the lungs


def build(patient: Patient) -> Build:
    """The body of a patient; a pure function of it."""
    rng = np.random.default_rng([patient.seed, 7002])
    draw = np.clip(rng.standard_normal(12), -2, 2)
    female = patient.sex == "Female"
    growth = float(np.interp(patient.age, [0, 1, 3, 6, 10, 15, 18], [0.36, 0.46, 0.55, 0.64, 0.76, 0.94, 1]))
    childhood = float(np.clip(1 - patient.age / 12, 0, 1))
    ageing = float(np.clip((patient.age - 40) / 50, 0, 1))
    adult_width, adult_height = (258, 246) if female else (288, 272)
    width = adult_width * growth * (1 + 0.045 * draw[0])
    height = adult_height * growth * (1 - 0.12 * childhood) * (1 - 0.05 * ageing) * (1 + 0.045 * draw[1])
    maturity = float(np.clip((patient.age - 11) / 6, 0, 1))
    return Build(
        thorax_width=float(width),
        thorax_height=float(height),
        childhood=childhood,
        ageing=ageing,
        habitus=float(np.clip(0.45 * draw[2] + 0.15 * ageing, -1, 1)),
        heart_ratio=float(np.clip(0.435 + 0.02 * draw[3] + 0.02 * ageing, 0.38, 0.475) + 0.09 * childhood),
        heart_axis=float(0.66 + 0.025 * draw[4]),
        aorta=float(np.clip(0.15 + 0.75 * ageing + 0.12 * draw[5], 0, 1)),
        bone=float((1 - 0.3 * childhood) * (1 - (0.38 if female else 0.25) * ageing) * (1 + 0.07 * draw[6])),
        breast=float(maturity * np.clip(0.75 + 0.25 * draw[7] + 0.2 * draw[2], 0.3, 1.4)) if female else 0.0,
        scoliosis=float(2.5 * draw[8] * (1 + ageing)),
        diaphragm_step=float(11 + 3 * draw[9]),
        rib_tilt=float((1 - 0.5 * childhood) * (1 + 0.12 * ageing) * (1 + 0.06 * draw[10])),
        aeration=float(1 + 0.075 * draw[11]),
    )
