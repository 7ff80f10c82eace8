"""Counts the multiply-adds of the matrix products and convolutions of a computation by tracing it."""

import math

import jax
from jax.extend import core


def count(function, *arguments) -> int:
    """Multiply-adds of `function(*arguments)`; arrays may be jax.ShapeDtypeStruct."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


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
