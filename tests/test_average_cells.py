"""The averages over cells of a grid: torch's adaptive average pooling, by its rule of floors and ceilings."""

from functools import partial
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mediax.layers import average_cells

IMAGE = np.random.default_rng(0).normal(size=(2, 10, 7, 3)).astype(np.float32)


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 7, 10])
def test_each_cell_is_the_mean_of_its_pixels(cells):
    found = average_cells(jnp.asarray(IMAGE), cells)
    assert found.shape == (2, cells, cells, 3)
    for i in range(cells):
        for j in range(cells):
            rows = slice(i * 10 // cells, ceil((i + 1) * 10 / cells))
            columns = slice(j * 7 // cells, ceil((j + 1) * 7 / cells))
            np.testing.assert_allclose(found[:, i, j], IMAGE[:, rows, columns].mean((1, 2)), atol=1e-6)


def test_it_is_of_full_precision_and_keeps_the_type():
    average = partial(average_cells, cells=3)
    products = [one for one in jax.make_jaxpr(average)(IMAGE).eqns if one.primitive.name == "dot_general"]
    assert len(products) == 2
    assert all(one.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for one in products)
    assert average(jnp.asarray(IMAGE, jnp.bfloat16)).dtype == jnp.bfloat16
