"""The optimizer: one optax chain per part, all of them following the global step."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mediax.catalog import suggestion
from mediax.errors import InputError

Path = tuple[Any, ...]


def learning_rate(
    shape: str, *, peak: float, steps: int, warmup_steps: int = 0, start_fraction: float = 0.0, final_fraction=0.0
) -> optax.Schedule:
    """Gives the learning rate of each step: linear warm-up to `peak`, then the named shape down to its final fraction.

    Shapes: `cosine` (Loshchilov and Hutter, 2017), `linear`, `constant`, and `one_cycle` (Smith and Topin, 2018: a
    cosine up over the warm-up and a cosine down).
    """
    decay_steps = max(steps - warmup_steps, 1)
    shapes = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * final_fraction, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, final_fraction),
        "one_cycle": optax.cosine_decay_schedule(peak, decay_steps, final_fraction),
    }
    if shape not in shapes:
        raise InputError(f"config field optimizer.schedule: no shape {shape!r}; {suggestion(shape, shapes)}")
    if warmup_steps == 0:
        return shapes[shape]
    start = peak * start_fraction
    if shape == "one_cycle":

        def warmup(step):
            return start + (peak - start) * (1 - jnp.cos(jnp.pi * jnp.minimum(step / warmup_steps, 1))) / 2

    else:
        warmup = optax.linear_schedule(start, peak, warmup_steps)
    return optax.join_schedules([warmup, shapes[shape]], [warmup_steps])


def adamw(*, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> optax.GradientTransformation:
    """Adam's direction (Kingma and Ba, 2015); the decoupled weight decay of Loshchilov and Hutter (2019) follows."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon)


def sgd(*, momentum: float = 0.9, nesterov: bool = False) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum; weight decay is decoupled too."""
    return optax.trace(decay=momentum, nesterov=nesterov) if momentum else optax.identity()


RULES = {"adamw": adamw, "sgd": sgd}


def build(
    parts: Sequence[str],
    *,
    steps: int,
    name: str = "adamw",
    peak: float = 1e-3,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    start_fraction: float = 0.0,
    final_fraction: float = 0.0,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    per_part: Mapping[str, Mapping[str, Any]] | None = None,
    depth: Callable[[str, Path], float] | None = None,
    **rule_options: Any,
) -> dict[str, optax.GradientTransformationExtraArgs]:
    """Builds the chain of every part: rule, weight decay, layer-wise decay, learning rate.

    `per_part` maps patterns of part names to values that replace `peak`, `weight_decay` or `layer_decay` there.
    `depth(part, path)` is how many layers lie above a parameter (0 at the top); its rate is multiplied by
    `layer_decay` to that power (BEiT; Bao et al., 2022). The learning rate follows the global step, which reaches the
    chain as the extra argument `step`: a part that is live now and then warms up and decays with all the others.
    """
    if name not in RULES:
        raise InputError(f"config field optimizer.name: no optimizer {name!r}; {suggestion(name, RULES)}")
    per_part = dict(per_part or {})
    for pattern, replacement in per_part.items():
        if not isinstance(replacement, Mapping):
            raise InputError(
                f"config field optimizer.per_part[{pattern!r}] is {replacement!r}: expected a dict of numbers"
            )
        if not any(fnmatchcase(part, pattern) for part in parts):
            raise InputError(
                f"config field optimizer.per_part: nothing matches {pattern!r}; {suggestion(pattern, parts)}"
            )
    chains = {}
    for part in parts:
        values = {"peak": peak, "weight_decay": weight_decay, "layer_decay": layer_decay}
        for pattern, replacement in per_part.items():
            if fnmatchcase(part, pattern):
                if unknown := set(replacement) - set(values):
                    raise InputError(
                        f"config field optimizer.per_part[{pattern!r}]: no field {min(unknown)!r}; "
                        + suggestion(min(unknown), values)
                    )
                values |= replacement
        rate = learning_rate(
            schedule,
            peak=values["peak"],
            steps=steps,
            warmup_steps=warmup_steps,
            start_fraction=start_fraction,
            final_fraction=final_fraction,
        )
        try:
            rule = RULES[name](**rule_options)
        except TypeError as error:
            raise InputError(f"config field optimizer: {error}") from None
        chains[part] = optax.chain(
            rule,
            optax.add_decayed_weights(values["weight_decay"], mask=decayed),
            _scale_by_layer(values["layer_decay"], depth and (lambda path, part=part: depth(part, path))),
            _scale_by_step(rate),
        )
    return chains


def decayed(params: Any) -> Any:
    """Marks what weight decay shrinks: kernels; not biases, scales, and tables of positions, tokens or queries."""
    return jax.tree_util.tree_map_with_path(lambda path, param: path[-1].key == "kernel", params)


def clip(grads: Any, maximum_norm: float) -> tuple[Any, jax.Array]:
    """Scales `grads` down to `maximum_norm` (0 = never) and returns their norm from before."""
    norm = optax.tree.norm(grads)
    if not maximum_norm:
        return grads, norm
    scale = jnp.minimum(1.0, maximum_norm / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda grad: grad * scale, grads), norm


def _scale_by_layer(decay: float, depth: Callable[[Path], float] | None) -> optax.GradientTransformation:
    if decay == 1.0 or depth is None:
        return optax.identity()

    def update(updates, params=None):
        return jax.tree_util.tree_map_with_path(
            lambda path, value: value * decay ** depth(tuple(key.key for key in path)), updates
        )

    return optax.stateless(update)


def _scale_by_step(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, *, step, **extra):
        return jax.tree.map(lambda value: -rate(step) * value, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
