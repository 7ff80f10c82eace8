"""Window attention equals Swin, Swin V2 and torchvision's (tests/references/operators.py wrote the goldens)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, operator_cases
from references.operator_goldens import assert_equals_golden

from mediax.operators import window_attention

HEADS, WINDOW = operator_cases.SWIN_HEADS, (operator_cases.SWIN_WINDOW,) * 2


def project(x, weight, bias):
    """Query, key and value of all heads: three times f32[B,n,N,heads,d]."""
    return jnp.moveaxis((x @ weight.T + bias).reshape(*x.shape[:3], 3, HEADS, -1), 3, 0)


def test_equals_swin():
    def function(x, mask, **parameters):
        bias = nnx.eval_shape(lambda: window_attention.RelativeBias(WINDOW, HEADS, rngs=nnx.Rngs(0)))
        bias.table.set_value(parameters["relative_position_bias_table"])
        qkv = project(x, parameters["qkv__weight"], parameters["qkv__bias"])
        y = window_attention.attention(*qkv, bias=bias(), mask=mask)
        return y @ parameters["proj__weight"].T + parameters["proj__bias"]

    assert_equals_golden("swin", function, operator_cases.swin("swin") | {"mask": shift_mask()})


def test_equals_swin_v2():
    def function(x, mask, **parameters):
        bias = nnx.eval_shape(
            lambda: window_attention.ContinuousBias(WINDOW, HEADS, pretrained=(6, 6), rngs=nnx.Rngs(0))
        )
        bias.hidden.kernel.set_value(parameters["cpb_mlp__0__weight"].T)
        bias.hidden.bias.set_value(parameters["cpb_mlp__0__bias"])
        bias.out.kernel.set_value(parameters["cpb_mlp__2__weight"].T)
        q_bias, v_bias = parameters["q_bias"], parameters["v_bias"]
        qkv = project(x, parameters["qkv__weight"], jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]))
        scale = parameters["logit_scale"].reshape(HEADS)
        y = window_attention.attention(*qkv, bias=bias(), mask=mask, logit_scale=scale)
        return y @ parameters["proj__weight"].T + parameters["proj__bias"]

    assert_equals_golden("swin_v2", function, operator_cases.swin("swin_v2") | {"mask": shift_mask()})


def shift_mask():
    return window_attention.shift_mask(operator_cases.SWIN_SIZE, WINDOW, (2, 2))


def test_mask_equals_swins():
    np.testing.assert_array_equal(shift_mask(), compare.load("operators")["shift_mask/value"])


@pytest.mark.parametrize(("name", "shift"), [("shifted", 1), ("unshifted", 0)])
def test_any_size_equals_torchvision(name, shift):
    """An image of 7x5 pixels in windows of 3x3: padded at the bottom and on the right."""

    def function(x, qkv_weight, qkv_bias, proj_weight, bias):
        def attend(windows, mask):
            qkv = project(windows, qkv_weight, qkv_bias)
            return window_attention.attention(*qkv, bias=bias, mask=mask) @ proj_weight.T

        return window_attention.in_windows(x, attend, window=(3, 3), shift=(shift, shift))

    assert_equals_golden(f"in_windows/{name}", function, operator_cases.in_windows())


@pytest.mark.parametrize("size", [(7, 5), (2, 9), (1, 1)])
@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
def test_windows_go_back_to_their_places(size, shift):
    image = jnp.arange(2.0 * size[0] * size[1]).reshape(2, *size, 1)
    seen = []

    def attend(windows, mask):
        seen.append(mask)
        return 2 * windows

    doubled = jax.jit(lambda x: window_attention.in_windows(x, attend, window=(3, 4), shift=shift))(image)
    np.testing.assert_array_equal(doubled, 2 * image)
    single = [length <= side for length, side in zip(size, (3, 4))]  # windows along this axis: one, so no shift
    assert (seen[0] is None) == all(one or not by for one, by in zip(single, shift))


def test_windows_are_read_row_by_row():
    image = jnp.arange(24.0).reshape(1, 4, 6, 1)
    windows = window_attention.split(image, (2, 3))
    first = np.array([0, 1, 2, 6, 7, 8])
    np.testing.assert_array_equal(windows[0, :, :, 0], [first, first + 3, first + 12, first + 15])
    np.testing.assert_array_equal(window_attention.join(windows, (4, 6), (2, 3)), image)


def test_computes_in_bfloat16_with_a_wide_softmax():
    qkv = [jax.random.normal(key, (1, 2, 9, 2, 4)) for key in jax.random.split(jax.random.key(0), 3)]
    bias = jnp.zeros((2, 9, 9))
    for scale in (None, jnp.ones(2)):
        attend = jax.jit(partial(window_attention.attention, bias=bias, logit_scale=scale))
        exact, rounded = attend(*qkv), attend(*(x.astype(jnp.bfloat16) for x in qkv))
        assert rounded.dtype == jnp.bfloat16
        compare.assert_close(rounded.astype(jnp.float32), exact, 0.03, "attention")


def test_a_vector_of_zeros_has_a_cosine_and_a_gradient():
    def total(query):
        x = jnp.ones((1, 1, 4, 1, 2))
        y = window_attention.attention(query, x, x, bias=jnp.zeros((1, 4, 4)), logit_scale=jnp.zeros(1))
        return y.sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.zeros((1, 1, 4, 1, 2)))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_window_of_one_pixel_has_a_bias():
    for kind in (window_attention.RelativeBias, window_attention.ContinuousBias):
        assert np.isfinite(kind((1, 1), 3, rngs=nnx.Rngs(0))()).all()
