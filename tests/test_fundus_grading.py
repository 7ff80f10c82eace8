"""The grading of EyePACS: one normalisation for training and scoring, and small networks that find small lesions."""

import json

import pytest

from mediax import experiment, run

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


@pytest.mark.slow  # three minutes each
@pytest.mark.parametrize("model", ["convnext", "swin", "dinov2"])
def test_it_learns_the_grades_of_the_phantom(model, tmp_path):
    """In 150 steps the quadratic weighted kappa comes far above that of the most frequent grade, which is 0."""
    config = _config(f"{model},pairs,phantom")
    config |= {"steps": 150, "evaluate_every": 150, "checkpoint_every": 150, "resamples": 0}
    folders = experiment.Folders(None, tmp_path / "data", tmp_path / "run")
    run.run(experiment.complete(config), folders, mode="train", arguments=[])
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    (test,) = (one for one in results if one["evaluation"] == "test")
    (kappa,) = (metric for metric in test["metrics"] if metric["name"] == "quadratic_weighted_kappa")
    assert kappa["trivial"] == 0
    assert kappa["value"] > 0.5
