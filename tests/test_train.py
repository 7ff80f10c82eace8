"""The train step: live parts move and no others; slices of a batch add up; devices agree."""

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from mediax import data, protocols, sharding, train
from mediax.batch import device_fields
from mediax.errors import InputError
from mediax.evaluate import Evaluation
from mediax.preemption import Preemption


def _steps(training, count=None):
    """Takes `count` steps from a fresh state; returns the states on the host, the start first, and the last logs."""
    key, init_key = jax.random.split(jax.random.key(training.seed))
    shapes = jax.eval_shape(partial(train.init_state, training), init_key)
    shardings = sharding.state_sharding(training.mesh, shapes, training.sharding)
    state = jax.jit(partial(train.init_state, training), out_shardings=shardings)(init_key)
    step_function = train.make_train_step(training, shardings)
    iterators = {name: stream.batches(0) for name, stream in training.streams.items()}
    states, logs = [jax.device_get(state)], {}
    for step in range(count or training.steps):
        turn = training.schedule(step)
        batch = sharding.to_device(next(iterators[turn.stream]), training.mesh)
        state, logs = step_function(state, batch, key, turn=turn)
        states.append(jax.device_get(state))
    return states, jax.device_get(logs)


def test_the_toy_learns():
    first = _steps(toy.training(steps=150), 1)[1]
    last = _steps(toy.training(steps=150), 150)[1]
    assert last["loss"] < 0.5 * first["loss"]


@pytest.mark.parametrize("plan", ["cyclic", "lock_release"])
def test_parts_that_are_not_live_do_not_move_by_a_bit(plan):
    options = {"steps": 2, "lock": ["backbone"]} if plan == "lock_release" else {}
    training = toy.training(batch_norm=True, dropout=0.2, streams=("a", "b"), plan=plan, options=options)
    states, _ = _steps(training)
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        live = training.schedule(step).live
        for part in training.model.parts:
            for kind in ("params", "batch_stats", "opt_state", "ema"):
                pair = [toy.digest(getattr(state, kind)[part]) for state in (before, after)]
                if part not in live:
                    assert pair[0] == pair[1], (step, part, kind)
                elif kind == "params":
                    assert pair[0] != pair[1], (step, part, kind)


def test_the_state_keeps_its_types_so_that_the_step_compiles_once():
    training = toy.training()
    shapes = jax.eval_shape(partial(train.init_state, training), jax.random.key(0))
    assert not [leaf for leaf in jax.tree.leaves(shapes) if getattr(leaf, "weak_type", False)]


def test_slices_of_a_batch_add_up_to_the_whole():
    whole, logs = _steps(toy.training())
    sliced, sliced_logs = _steps(toy.training(accumulate=4))
    assert toy.worst(whole[-1].params, sliced[-1].params) < 1e-6
    assert logs["loss"] == pytest.approx(sliced_logs["loss"], rel=1e-5)
    assert logs["gradient_norm"] == pytest.approx(sliced_logs["gradient_norm"], rel=1e-4)


def test_averages_decay_and_leave_the_random_start_out():
    states, _ = _steps(toy.training(ema_decay=0.9), 5)
    after = np.stack([state.params["backbone"]["conv"]["kernel"] for state in states[1:]])
    weights = 0.9 ** np.arange(4, -1, -1)
    expected = np.tensordot(weights / weights.sum(), after, 1)
    np.testing.assert_allclose(states[5].ema["backbone"]["params"]["conv"]["kernel"], expected, atol=1e-6)
    assert _steps(toy.training(ema_decay=0.0), 1)[0][-1].ema is None


def test_averages_of_a_part_begin_with_its_own_first_step():
    options = {"steps": 2, "lock": ["backbone"]}
    training = toy.training(ema_decay=0.9, streams=("a", "b"), plan="lock_release", options=options)
    states, _ = _steps(training, 8)
    live = [step for step in range(8) if "head/b/classification" in training.schedule(step).live]
    assert live == [4, 5, 6, 7]
    bias = [jax.tree.leaves(states[step + 1].params["head/b/classification"])[0] for step in live]
    weights = 0.9 ** np.arange(3, -1, -1)
    expected = np.tensordot(weights / weights.sum(), np.stack(bias), 1)
    averaged = jax.tree.leaves(states[8].ema["head/b/classification"]["params"])[0]
    np.testing.assert_allclose(averaged, expected, atol=1e-6)
    assert states[8].updates == {"backbone": 4, "head/a/classification": 4, "head/b/classification": 4}


def test_frozen_backbone_and_its_statistics_stay():
    states, _ = _steps(toy.training(batch_norm=True, frozen=("backbone",)), 3)
    assert toy.digest(states[0].params["backbone"]) == toy.digest(states[3].params["backbone"])
    assert toy.digest(states[0].batch_stats["backbone"]) == toy.digest(states[3].batch_stats["backbone"])


EIGHT_DEVICES = """
import sys; sys.path[:0] = sys.argv[3:]
import jax, numpy as np, toy, test_train
assert jax.device_count() == int(sys.argv[1])
for mode in ("replicated", "fsdp"):
    # Not Adam, which blows up the rounding of gradients that are zero, as of a bias before a BatchNorm.
    states, _ = test_train._steps(toy.training(batch_norm=True, sharding=mode, accumulate=2, rule="sgd"), 4)
    np.savez(f"{sys.argv[2]}-{mode}.npz", *jax.tree.leaves(states[-1].params))
"""


@pytest.mark.slow
def test_one_and_eight_devices_agree(tmp_path):
    tests = Path(__file__).parent
    for devices in (1, 8):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, "-c", EIGHT_DEVICES, str(devices), tmp_path / str(devices), tests, tests.parent]
        subprocess.run(list(map(str, command)), env=environment, check=True)
    reference = np.load(tmp_path / "1-replicated.npz")
    for other in ("1-fsdp", "8-replicated", "8-fsdp"):
        values = np.load(tmp_path / f"{other}.npz")
        assert max(np.abs(values[name] - reference[name]).max() for name in reference) < 1e-5, other


def test_fsdp_splits_large_arrays_alone():
    mesh = sharding.mesh()
    shapes = {"large": jax.ShapeDtypeStruct((96, 8 * 96), "float32"), "small": jax.ShapeDtypeStruct((8,), "float32")}
    placed = sharding.state_sharding(mesh, shapes, "fsdp")
    assert tuple(placed["large"].spec) == (None, "data") and tuple(placed["small"].spec) == ()
    with pytest.raises(InputError, match="replicated"):
        sharding.state_sharding(mesh, shapes, "fspd")


def _run(folder, steps=4, **config):
    """Trains the toy below `folder`, with one evaluation, after the last step."""
    training = toy.training(steps=steps)
    evaluation = Evaluation(
        name="validation",
        dataset="toy",
        split="validation",
        protocol=protocols.get("image"),
        tasks=training.streams["a"].tasks,
        batches=partial(data.evaluation_batches, toy.Source(16), toy.read, batch_size=16),
        size=16,
        calibrate_on="validation",
        during_training=True,
        rows="validation",
    )
    metric = config["best"]["metric"]
    given = {"evaluations": {"validation": evaluation}, "best_metric": metric, "config": config}
    train.fit(toy.replace(training, **given), folder, Preemption())


def test_a_figure_that_is_misspelt_is_corrected_in_the_same_folder(tmp_path):
    wrong, right, other = ({"metric": f"validation/{name}"} for name in ("los", "loss", "classification/f1/macro"))
    streams = {"a": {"max_boxes": 4}}
    with pytest.raises(InputError, match=r"best.metric: no figure 'validation/los'; did you mean 'validation/loss'"):
        _run(tmp_path, best=wrong, streams=streams)
    with pytest.raises(InputError, match=r"another config .*max_boxes: 4 -> 5"):  # a step is still to come
        _run(tmp_path, best=right, streams={"a": {"max_boxes": 5}})
    _run(tmp_path, best=right, streams=streams)
    with pytest.raises(InputError, match=r"another config .*best.metric: 'validation/loss'"):  # it has chosen
        _run(tmp_path, best=other, streams=streams)


def test_more_boxes_may_be_evaluated_once_the_training_is_done(tmp_path):
    best = {"metric": "validation/loss"}
    _run(tmp_path, best=best, streams={"a": {"max_boxes": 4, "batch_size": 16}})
    _run(tmp_path, best=best, streams={"a": {"max_boxes": 5, "batch_size": 16}})
    with pytest.raises(InputError, match=r"another config .*batch_size: 16 -> 8"):
        _run(tmp_path, best=best, streams={"a": {"max_boxes": 5, "batch_size": 8}})
    saved, given = {"streams": {"a": {"max_boxes": 4}}}, {"streams": {"a": {"max_boxes": 5}}, "evaluations": {"b": 1}}
    train.check_same_config(saved, given, tmp_path, except_for=train.EVALUATED_FIELDS)


def test_batches_do_not_depend_on_how_they_are_shared():
    whole = data.training_batches(toy.Source(), toy.read, batch_size=8, seed=1, position=3)
    shares = [
        data.training_batches(toy.Source(), toy.read, batch_size=8, seed=1, position=3, process=(index, 2))
        for index in range(2)
    ]
    for _ in range(10):
        rows = sorted(map(bytes, next(whole)["image"]))
        assert rows == sorted(bytes(row) for share in shares for row in next(share)["image"])


def test_a_stream_continues_at_any_position():
    transform = [{"name": "random_affine", "rotate": 20, "probability": 1.0}]
    options = {"batch_size": 8, "seed": 1, "transform": transform}
    whole = data.training_batches(toy.Source(), toy.read, **options)
    expected = [next(whole) for _ in range(20)]
    for position in (0, 7, 19):
        batch = next(data.training_batches(toy.Source(), toy.read, position=position, **options))
        assert toy.digest(batch) == toy.digest(expected[position])


def test_evaluation_sees_every_row_once_and_pads_the_last_batch():
    for rows, processes in ((13, 1), (13, 2), (16, 2), (1, 2)):
        seen = []
        for index in range(processes):
            batches = list(
                data.evaluation_batches(toy.Source(rows), toy.read, batch_size=8, process=(index, processes))
            )
            assert all(len(batch["valid"]) == 8 // processes for batch in batches)
            seen += [name for batch in batches for name in batch["id"][batch["valid"]]]
        assert sorted(map(int, seen)) == list(range(rows))


@pytest.mark.parametrize("processes", [1, 2])
def test_some_rows_of_an_evaluation_are_as_among_all(processes):
    options = {"batch_size": 8, "transform": [{"name": "random_affine", "rotate": 20, "probability": 1.0}]}
    evaluated = partial(data.evaluation_batches, toy.Source(30), toy.read, **options)
    rows, everything = [2, 3, 5, 17, 20, 21, 22, 23, 29], [*evaluated()]
    shares = [[*evaluated(rows=rows, process=(index, processes))] for index in range(processes)]
    batches = [np.concatenate([batch["image"][batch["valid"]] for batch in same]) for same in zip(*shares, strict=True)]
    assert [len(batch) for batch in batches] == [8, 1]
    np.testing.assert_array_equal(
        np.concatenate(batches), np.concatenate([batch["image"][batch["valid"]] for batch in everything])[rows]
    )


def test_permuted_labels_keep_images_and_deal_the_labels_out_anew():
    source = data.PermutedLabels(toy.Source(), toy.read, seed=0)
    rows = [source[index] for index in range(64)]
    assert all(bytes(row["image"]) == bytes(toy.Source()[index]["image"]) for index, row in enumerate(rows))
    assert sorted(float(row["labels"][0]) for row in rows) == [0.0] * 32 + [1.0] * 32
    agreement = np.mean([row["labels"][0] == index % 2 for index, row in enumerate(rows)])
    assert 0.25 < agreement < 0.75


class _Annotated:
    """Images of the given heights, each with annotations that all tell its number."""

    def __init__(self, *heights):
        self.heights = heights

    def __len__(self):
        return len(self.heights)

    def __getitem__(self, index):
        shape, known = (self.heights[index], 8), bool(index % 2)
        return {
            "image": np.full((*shape, 1), index, np.uint8),
            "field_of_view": np.full(shape, index, np.uint8),
            "spacing_mm": np.full(2, index, np.float32),
            "id": str(index),
            "patient_id": str(index),
            "labels": np.full(1, index, np.float32),
            "target": np.full(1, index, np.float32),
            "boxes": np.full((index, 4), index, np.float32),
            "box_labels": np.full(index, index, np.int32),
            "box_valid": np.full(index, known),
            "boxes_known": np.bool_(known),
            "masks": np.full((*shape, 2), index, np.uint8),
            "mask_valid": np.full(2, known),
            "keypoints": np.full((3, 2), index, np.float32),
        }


def test_permuted_annotations_of_an_image_stay_together():
    original = _Annotated(8, 8, 8, 8, 8, 8)
    source = data.PermutedLabels(original, toy.read, seed=0)
    dealt_from = []
    for index in range(len(source)):
        row = source[index]
        dealt_from.append(int(row["labels"][0]))
        own, other = original[index], original[dealt_from[-1]]
        assert row.keys() == own.keys()
        for name, value in row.items():
            kept = name in ("image", "field_of_view", "spacing_mm", "id", "patient_id")
            np.testing.assert_array_equal(value, (own if kept else other)[name], err_msg=name)
    assert sorted(dealt_from) == list(range(len(source))) and dealt_from != sorted(dealt_from)


def test_permuted_masks_must_fit_the_image_that_they_are_dealt_to():
    source = data.PermutedLabels(_Annotated(12, 8, 8, 8), toy.read, seed=0)
    index = int(np.flatnonzero(source.permutation == 0)[0])
    assert index != 0, "the seed must deal the tall image's masks to another one"
    with pytest.raises(InputError, match=rf"masks of image '0' are 12 x 8 pixels, image '{index}' .* has 8 x 8.*size"):
        source[index]


def test_the_state_matches_the_batch_schema():
    batch = next(data.training_batches(toy.Source(), toy.read, batch_size=8, seed=0))
    assert set(device_fields(batch)) == {"image", "labels", "valid"} and batch["image"].dtype == np.float32
