"""Compares an operator, its value and its gradients, with a golden of its reference."""

import jax
import jax.numpy as jnp
from references import compare, operator_cases


def assert_equals_golden(case, function, arguments):
    """Relative to the largest entry, the value is within 1e-5 of the reference's, every gradient within 1e-4."""
    golden = {name.removeprefix(f"{case}/"): array for name, array in compare.load("operators").items()}

    def loss(arguments):
        value = function(**arguments)
        return jnp.sum(value * operator_cases.probe(value.shape)), value

    gradients, value = jax.jit(jax.grad(loss, has_aux=True))(arguments)
    compare.assert_close(value, golden["value"], 1e-5, case)
    for name, gradient in gradients.items():
        compare.assert_close(gradient, golden[f"gradient/{name}"], 1e-4, f"{case}: gradient of {name}")
