"""Builds a network from seeded weights under published names and compares it with a golden of the reference."""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from references import seeded

from mediax import pretrained
from mediax.heads.pooled import Head
from mediax.layers import CPU_REMAT_OPTIONS

MEASURED: list[dict] = []  # what was compared in this session: conftest.py writes it for docs/models.md
GOLDENS = Path(__file__).parent / "goldens"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        return dict(file)


def published(prefix: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """{"family/variant/spelling": {name: shape}} of the published networks whose key starts with `prefix`."""
    names = json.loads(str(load("published")["names"]))
    return {key: value for key, value in names.items() if key.startswith(prefix)}


def variables_of(module: nnx.Module) -> dict[str, dict]:
    pure = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {name: nnx.to_pure_dict(nnx.state(module, kind)) for name, kind in pure.items()}


def parameters(*modules: nnx.Module) -> int:
    """The number of parameters; running statistics are none."""
    return sum(leaf.size for module in modules for leaf in jax.tree.leaves(variables_of(module)["params"]))


def flat(tree: dict) -> dict[pretrained.Path, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


@nnx.jit(static_argnames="train")
def forward(backbone: nnx.Module, image: jax.Array, *, train: bool = False) -> dict[int, jax.Array]:
    return backbone(image, train=train, rngs=None)


def set_weights(module: nnx.Module, weights: dict, part: str) -> None:
    """Sets every parameter and running statistic of `module`; none may be missing or left over."""
    variables, report = pretrained.warm_start(variables_of(module), weights, part=part)
    assert not report.left_over and not report.missing
    for tree in variables.values():
        nnx.update(module, jax.tree.map(jnp.asarray, tree))


def assert_checkpoint_fits(family, variant: str, shapes: dict[str, tuple[int, ...]], *, normalize: bool) -> int:
    """Every published tensor has its place with its shape, and every place its tensor; the number of parameters."""
    fake = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    parts = family.translate(fake)
    tracked = sum(name.endswith("num_batches_tracked") for name in shapes)
    assert len(parts["backbone"]) + len(parts["head"]) + tracked == len(shapes)

    count = 0
    for part, variables in _abstract_variables(family, variant, normalize).items():
        places = flat(variables["params"]) | flat(variables["batch_stats"])
        assert {path: leaf.shape for path, leaf in places.items()} == {p: a.shape for p, a in parts[part].items()}
        count += sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return count


@functools.cache
def _abstract_variables(family, variant: str, normalize: bool) -> dict[str, dict]:
    def build():
        backbone = family.Backbone(variant=variant, rngs=nnx.Rngs(0))
        return backbone, Head(backbone.channels, 1000, normalize=normalize, rngs=nnx.Rngs(0))

    return dict(zip(("backbone", "head"), map(variables_of, nnx.eval_shape(build)), strict=True))


def assert_equals_reference(
    family,
    golden: str,
    *,
    normalize: bool,
    mode: str,
    gradients: bool = True,
    dtype=jnp.float32,
    tolerance=1e-4,
    **settings,
) -> None:
    """Logits, pyramid, running statistics and the gradient of every parameter agree with the reference's float64 run.

    Relative to the largest entry: within `tolerance` (logits: at least 5e-6), and ten times as much for gradients.
    """
    expected = load(golden)
    shapes = json.loads(str(expected["shapes"]))
    weights = family.translate(seeded.tensors(shapes))
    train = mode == "training"
    with jax.enable_x64(dtype == jnp.float64):
        # Shapes only: initialising every layer would take longer than the comparison.
        backbone = nnx.eval_shape(lambda: family.Backbone(**settings, dtype=dtype, rngs=nnx.Rngs(0)))
        head = nnx.eval_shape(lambda: Head(backbone.channels, 10, normalize=normalize, rngs=nnx.Rngs(1)))
        set_weights(backbone, weights["backbone"], "backbone")
        set_weights(head, weights["head"], "head")
        definition, params, batch_stats = nnx.split((backbone, head), nnx.Param, nnx.BatchStat)
        image = seeded.normal("image", (2, *expected["image_size"], 3))
        probe = seeded.normal("probe", expected[f"{mode}/logits"].shape)

        def loss(params, image):
            backbone, head = nnx.merge(definition, params, batch_stats, copy=True)
            pyramid = backbone(image, train=train, rngs=None)
            logits = head(pyramid, train=train, rngs=None)
            return jnp.sum(logits * probe), (logits, pyramid, variables_of(backbone)["batch_stats"])

        if gradients:
            slopes, (logits, pyramid, running) = jax.jit(jax.grad(loss, has_aux=True))(params, image)
            backbone_slopes, head_slopes = map(flat, nnx.to_pure_dict(slopes).values())
        else:
            _, (logits, pyramid, running) = jax.jit(loss)(params, image)

    # The head computes in f32 whatever the backbone does: a sum over some thousand features.
    assert_close(logits, expected[f"{mode}/logits"], max(tolerance, 5e-6), f"{golden} {mode} logits")
    for index, level in enumerate(pyramid.values()):
        what = f"{golden} {mode} level {index}"
        assert level.shape == tuple(expected[f"{mode}/pyramid/{index}/shape"]), what
        sample = np.asarray(level).reshape(-1)[::97]
        assert_close(sample, expected[f"{mode}/pyramid/{index}/every_97th"], tolerance, what)
    if gradients:
        ours = {"backbone": backbone_slopes, "head": head_slopes}
        assert_summary(family, ours, expected, f"{mode}/gradient", shapes, 10 * tolerance)
    if train:
        assert_summary(family, {"backbone": flat(running), "head": {}}, expected, "running", shapes, tolerance)


def assert_pyramid_equals_reference(family, golden: str, *, tolerance: float = 1e-6, **settings) -> None:
    """Every level and the gradient of every parameter agree with references/pyramids.py, both in float64.

    Relative to the largest entry: within `tolerance`, and ten times as much for gradients.
    """
    expected = load(golden)
    shapes = json.loads(str(expected["shapes"]))
    with jax.enable_x64(True):
        backbone = nnx.eval_shape(lambda: family.Backbone(**settings, dtype=jnp.float64, rngs=nnx.Rngs(0)))
        set_weights(backbone, family.translate(seeded.tensors(shapes))["backbone"], "backbone")
        definition, params = nnx.split(backbone, nnx.Param)
        image = seeded.normal("image", (2, *expected["image_size"], 3))

        def loss(params):
            levels = list(nnx.merge(definition, params)(image, train=True, rngs=None).values())
            probes = [seeded.normal(f"probe {index}", level.shape) for index, level in enumerate(levels)]
            return sum(jnp.sum(level * probe) for level, probe in zip(levels, probes)), levels

        slopes, levels = jax.jit(jax.grad(loss, has_aux=True))(params)
    for index, level in enumerate(levels):
        assert level.shape == tuple(expected[f"level/{index}/shape"])
        sample = np.asarray(level).reshape(-1)[::7]
        assert_close(sample, expected[f"level/{index}/every_7th"], tolerance, f"{golden} level {index}")
    assert f"level/{len(levels)}/shape" not in expected
    ours = {"backbone": flat(nnx.to_pure_dict(slopes)), "head": {}}
    assert_summary(family, ours, expected, "gradient", shapes, 10 * tolerance)


def assert_remat_changes_nothing(
    build, image: np.ndarray, *, level: int = 4, power: int = 2, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Outputs, gradients and running statistics of a training step are those of `build(remat=False)`.

    The loss is the sum of a level's features to a power.
    """

    def train_once(remat: bool):
        definition, params, batch_stats = nnx.split(build(remat=remat, rngs=nnx.Rngs(0)), nnx.Param, nnx.BatchStat)

        def loss(params):
            backbone = nnx.merge(definition, params, batch_stats, copy=True)
            pyramid = backbone(image, train=True, rngs=nnx.Rngs(5))
            return jnp.sum(pyramid[level] ** power), (pyramid, variables_of(backbone)["batch_stats"])

        options = CPU_REMAT_OPTIONS if remat else {}
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)(params))

    for plain, again in zip(train_once(False), train_once(True), strict=True):
        np.testing.assert_allclose(plain, again, rtol=rtol, atol=atol)


def assert_bfloat16_is_near(build, image: np.ndarray, *, level: int, tolerance: float) -> None:
    """Parameters stay f32 and the computation becomes bfloat16; `tolerance` is relative to the largest feature."""
    exact, rounded = (build(dtype=dtype, rngs=nnx.Rngs(0)) for dtype in (jnp.float32, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rounded))} == {jnp.dtype("float32")}
    expected, actual = forward(exact, image)[level], forward(rounded, image)[level]
    assert actual.dtype == jnp.bfloat16
    atol = tolerance * float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=atol)


def assert_summary(family, ours: dict, expected: dict, prefix: str, shapes: dict, tolerance: float) -> None:
    """Compares every tensor by norm and by a projection, and in full those that the golden keeps."""
    names = expected[f"{prefix}/names"].tolist()
    assert sum(map(len, ours.values())) == len(names)
    directions = seeded.directions({name: shapes[name] for name in names})
    whole = {name: expected[f"{prefix}/whole/{name}"] for name in names if f"{prefix}/whole/{name}" in expected}
    # All names at once: what a name means may depend on the others.
    along, reference = family.translate(directions), family.translate(directions | whole)
    for name, (part, path), norm, projection in zip(
        names,
        _places(family, {name: shapes[name] for name in names}),
        expected[f"{prefix}/norms"],
        expected[f"{prefix}/projections"],
        strict=True,
    ):
        array = np.asarray(ours[part][path], np.float64)
        assert_projected(array, along[part][path], norm, projection, tolerance, f"{prefix} {name}")
        if name in whole:
            assert_close(array, reference[part][path], tolerance, f"{prefix} {name}")


def assert_projected(
    array: np.ndarray, direction: np.ndarray, norm: float, projection: float, tolerance: float, what: str
) -> None:
    """An array has a norm, and along a direction a sum of products, for which three times the tolerance is allowed."""
    error, along = abs(np.linalg.norm(array) - norm) / norm, abs(np.sum(array * direction) - projection) / norm
    _measure(what, error)
    _measure(what, along)
    assert error <= tolerance, f"{what}: relative difference of the norm {error:.1e}"
    assert along <= 3 * tolerance, f"{what}: relative difference along a direction {along:.1e}"


def _places(family, shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, pretrained.Path]]:
    """The part and the path of each name, in order: each tensor is sent through `translate` filled with its number."""
    numbered = {name: np.broadcast_to(np.float64(index), shape) for index, (name, shape) in enumerate(shapes.items())}
    places = {
        int(array.flat[0]): (part, path)
        for part, arrays in family.translate(numbered).items()
        for path, array in arrays.items()
    }
    assert len(places) == len(shapes)
    return [places[index] for index in range(len(shapes))]


def assert_close(actual, expected, tolerance: float, what: str) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    _measure(what, error)
    assert error <= tolerance, f"{what}: relative difference {error:.1e}"


def assert_loss(actual, expected: float, tolerance: float, what: str) -> None:
    """A loss agrees, relative to itself; where the reference has none, neither is there one here."""
    if expected == 0:
        assert abs(actual) < 1e-12, what
    else:
        assert_close(actual, expected, tolerance, f"loss {what}")


def _measure(what: str, error: float) -> None:
    """Keeps a relative difference with the test that found it."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
    kind = next((kind for kind in ("gradient", "training") if kind in what), "inference")
    MEASURED.append({"test": test, "kind": "training" if "running" in what else kind, "difference": float(error)})
