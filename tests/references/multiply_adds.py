"""Counts the multiply-adds of the matrix products and convolutions of a computation by tracing it."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core


def count(function, *arguments) -> int:
    """Multiply-adds of `function(*arguments)`; arrays may be jax.ShapeDtypeStruct."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def of_backbone(backbone: nnx.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of a backbone, which may have shapes only, for one image f32[1,H,W,3]."""
    graph, state = nnx.split(backbone)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return count(lambda state, x: nnx.merge(graph, state)(x, train=False, rngs=None), state, image)


def of_head(head: nnx.Module, channels: dict[int, int], size: tuple[int, int]) -> int:
    """Multiply-adds of a dense or detection head, which may have shapes only, for one image of `size` (H, W)."""
    graph, state = nnx.split(head)
    pyramid = {
        stride: jax.ShapeDtypeStruct((1, *(-(-side // stride) for side in size), width), jnp.float32)
        for stride, width in channels.items()
    }
    return count(lambda state, x: nnx.merge(graph, state)(x, size, train=False, rngs=None), state, pyramid)


def _count(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    return sum(_count(inner) for inner in core.jaxprs_in_params(equation.params))
