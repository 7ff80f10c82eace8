"""The labels that labelers of radiology reports give (present, absent, uncertain, not mentioned), and their policies.

The states and policies follow Irvin et al., AAAI 2019 (arXiv:1901.07031), the smoothed policies Pham et al.
(arXiv:1911.06475), who draw each uncertain label uniformly from an interval.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mediax import catalog
from mediax.errors import InputError

PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED = 1, 0, -1, -2
STATES = {
    "1.0": PRESENT,
    "1": PRESENT,
    "0.0": ABSENT,
    "0": ABSENT,
    "-1.0": UNCERTAIN,
    "-1": UNCERTAIN,
    "": NOT_MENTIONED,
}
POLICIES = {
    "zeros": (0.0, 0.0),
    "ones": (1.0, 1.0),
    "ignore": (np.nan, np.nan),
    "smooth_zeros": (0.0, 0.3),
    "smooth_ones": (0.55, 0.85),
}


def parse(where: str, line: Mapping[str, str], columns: Sequence[str]) -> list[int]:
    """The states of a table's line, in the order of `columns`.

    Raises:
      InputError: a label is none of 1.0, 0.0, -1.0 and blank (integers are accepted).
    """
    try:
        return [STATES[line[name]] for name in columns]
    except KeyError as error:
        column = next(name for name in columns if line[name] not in STATES)
        raise InputError(f"{where}: {column} is {error}, expected 1.0, 0.0, -1.0 or nothing") from error


def to_labels(
    states: Mapping[str, int],
    *,
    known: Collection[str],
    uncertainty: str | Mapping[str, str],
    not_mentioned: Literal["absent", "unknown"],
    seeds: Sequence[Any],
) -> np.ndarray:
    """Turns states by class into labels f32[K]: 1 present, 0 absent, between them a soft label, NaN unknown.

    Args:
      states: class -> state, in the order of the labels.
      known: all classes that `uncertainty` may name.
      uncertainty: what an uncertain label becomes: "zeros", "ones", "ignore" (NaN), "smooth_zeros" (uniform in
        [0, 0.3]) or "smooth_ones" (uniform in [0.55, 0.85]); or {class: policy} with "default" for the classes not
        named. Which is best differs by class (Irvin et al.).
      not_mentioned: a blank label becomes 0 ("absent", as in the paper's baselines) or NaN ("unknown").
      seeds: of the smoothed labels, which follow from them and the class alone.

    Raises:
      InputError: an unknown option.
    """
    if not_mentioned not in ("absent", "unknown"):
        raise InputError(f'read option not_mentioned={not_mentioned!r}: expected "absent" or "unknown"')
    values = {PRESENT: 1.0, ABSENT: 0.0, NOT_MENTIONED: 0.0 if not_mentioned == "absent" else np.nan}
    labels = [
        uncertain_label(policy, *seeds, name) if states[name] == UNCERTAIN else values[states[name]]
        for name, policy in class_policies(uncertainty, states, known).items()
    ]
    return np.asarray(labels, np.float32)


def class_policies(
    uncertainty: str | Mapping[str, str], names: Collection[str], known: Collection[str]
) -> dict[str, str]:
    """The uncertainty policy of each of `names`; raises InputError unless each has one that exists."""
    if isinstance(uncertainty, str):
        uncertainty = {"default": uncertainty}
    for name in uncertainty:
        if name not in (*known, "default"):
            raise InputError(f"read option uncertainty names {name!r}: {catalog.suggestion(name, known)}")
    policies = {name: uncertainty.get(name, uncertainty.get("default")) for name in names}
    for name, policy in policies.items():
        if policy not in POLICIES:
            raise InputError(f"read option uncertainty of {name} is {policy!r}: {catalog.suggestion(policy, POLICIES)}")
    return policies


def uncertain_label(policy: str, *seeds: Any) -> float:
    """The value of an uncertain label, drawn from the seeds alone where the policy draws."""
    low, high = POLICIES[policy]
    if policy not in ("smooth_zeros", "smooth_ones"):
        return low
    return np.random.default_rng(zlib.crc32("/".join(map(str, seeds)).encode())).uniform(low, high)
