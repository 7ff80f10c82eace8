"""Lets `compare` judge gradients that are zero by their size: the reference's are rounding, and agree with nothing.

In training, what a bias adds to a channel is taken away again if a BatchNorm follows every 1x1 convolution that reads
the channel. The gradient of such a bias is zero, and the reference's norm in float64 is 1e-16 to 2e-14 beside the
1e1 to 4e2 of the largest gradient.
"""

import numpy as np
from references import compare

_ZERO = 1e-12  # of the largest gradient's norm


def expect(monkeypatch, is_zero) -> None:
    """Until `monkeypatch` is undone: gradients that the reference has zero must be so, and those names alone may be.

    `is_zero` tells by its published name whether a gradient may be zero.
    """
    compare_others = compare.assert_summary

    def assert_summary(family, ours, expected, prefix, shapes, tolerance):
        names, norms = expected[f"{prefix}/names"], expected[f"{prefix}/norms"]
        zero = norms < _ZERO * norms.max(initial=0)
        assert all(map(is_zero, names[zero]))
        zeros = family.translate({name: np.zeros(shapes[name]) for name in names[zero].tolist()})["backbone"]
        assert all(np.linalg.norm(ours["backbone"][path]) < _ZERO * norms.max(initial=0) for path in zeros)
        kept = {f"{prefix}/{kind}": expected[f"{prefix}/{kind}"][~zero] for kind in ("names", "norms", "projections")}
        rest = {path: array for path, array in ours["backbone"].items() if path not in zeros}
        compare_others(family, ours | {"backbone": rest}, expected | kept, prefix, shapes, tolerance)

    monkeypatch.setattr(compare, "assert_summary", assert_summary)
