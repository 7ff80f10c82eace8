"""The grading of EyePACS: one normalisation for training and scoring, and small networks that find small lesions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mediax import catalog, experiment, run, transforms

CONFIG = experiment.ROOT / "configs" / "fundus_grading.py"
VARIANTS = experiment.variants(CONFIG)


def _config(variant):
    return experiment.load_config(f"{CONFIG}:{variant}").to_dict()


@pytest.mark.parametrize("variant", [*VARIANTS, *(f"{variant},phantom" for variant in VARIANTS)])
def test_what_is_scored_is_normalised_as_what_trains(variant):
    config = _config(variant)
    trained = [step for step in config["streams"]["eyepacs"]["transform"] if not step["name"].startswith("random")]
    assert trained
    for evaluation in config["evaluations"].values():
        assert list(evaluation["transform"]) == trained


@pytest.mark.parametrize("level", [0, 255], ids=["black", "white"])
def test_an_empty_photograph_has_no_enormous_gradient(level):
    """EyePACS has some; where all of one is zero, the first biases of the small ConvNeXt have a gradient of 1e18."""
    config = _config("convnext,mse,phantom")
    prepare = transforms.build(config["evaluations"]["validation"]["transform"])
    empty = prepare({"image": np.full((128, 128, 3), level, np.uint8)}, np.random.default_rng(0))["image"]
    backbone, source = config["backbone"], catalog.load("backbones", config["backbone"]["name"])
    network = source.Backbone(**backbone["options"], in_channels=3, rngs=nnx.Rngs(0))
    image = jnp.asarray((empty[None] - 0.5) / 0.25)  # the default normalisation

    @nnx.jit
    def norm(network):
        graph, params, rest = nnx.split(network, nnx.Param, ...)

        def total(params):
            pyramid = nnx.merge(graph, params, rest)(image, train=True, rngs=nnx.Rngs(0))
            return pyramid[max(pyramid)].sum()

        return jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(jax.grad(total)(params))))

    assert 0 < norm(network) < 1e6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Where the phantom is drawn and built, once for all models."""
    return tmp_path_factory.mktemp("data")


@pytest.mark.slow  # four to ten minutes each
@pytest.mark.parametrize("model", ["convnext", "swin", "dinov2"])
def test_it_learns_the_grades_of_the_phantom(model, data, tmp_path):
    """In 220 of its 300 steps the quadratic weighted kappa comes far above that of the most frequent grade, 0."""
    config = _config(f"{model},pairs,phantom")
    config |= {"steps": 220, "evaluate_every": 220, "checkpoint_every": 220, "resamples": 0}
    folders = experiment.Folders(None, data, tmp_path)
    run.run(experiment.complete(config), folders, mode="train", arguments=[])
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    (test,) = (one for one in results if one["evaluation"] == "test")
    (kappa,) = (metric for metric in test["metrics"] if metric["name"] == "quadratic_weighted_kappa")
    assert kappa["trivial"] == 0
    assert kappa["value"] > 0.5
