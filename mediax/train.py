"""Training: the state, one pure jitted step, and the loop around it."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from mediax import evaluate, optimizer, sharding
from mediax.batch import Batch
from mediax.catalog import suggestion
from mediax.checkpoint import Checkpoints, abstract
from mediax.errors import InputError
from mediax.evaluate import Evaluation
from mediax.metric_log import MetricLog
from mediax.model import Model, Tree
from mediax.preemption import Preempted, Preemption
from mediax.progress import Progress
from mediax.schedule import Schedule, Turn


@struct.dataclass
class TrainState:
    """Everything that a step changes; all but `step` have the names of the parts."""

    step: jax.Array
    updates: Tree  # {part: i32}, how many steps the part was live in
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree | None  # {part: {"params", "batch_stats"}}, what is evaluated when it is kept

    def evaluated(self) -> tuple[Tree, Tree]:
        """Picks the (params, batch_stats) to evaluate: the moving averages if they are kept."""
        if self.ema is None:
            return self.params, self.batch_stats
        return tuple({part: kept[kind] for part, kept in self.ema.items()} for kind in ("params", "batch_stats"))


@dataclass(frozen=True)
class Stream:
    """A source of batches and the tasks that are trained on them; `batches(position)` resumes anywhere."""

    name: str
    tasks: Mapping[str, Any]
    batches: Callable[[int], Iterator[Batch]]
    batch_size: int


@dataclass(frozen=True)
class Training:
    """All that the loop needs, composed by `mediax.experiment` from a config."""

    model: Model
    streams: Mapping[str, Stream]
    evaluations: Mapping[str, Evaluation]
    schedule: Schedule
    optimizer: Mapping[str, optax.GradientTransformationExtraArgs]
    learning_rate: optax.Schedule
    warm_start: Callable[[Tree, Tree], tuple[Tree, Tree]]
    mesh: Mesh
    sharding: str
    seed: int
    steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    ema_decay: float
    accumulate: int
    clip_norm: float
    best_metric: str
    best_mode: str
    patience: int
    resamples: int
    config: Mapping[str, Any]
    compiler_options: Mapping[str, Any] = field(default_factory=dict)  # of XLA, for the training step

    @cached_property
    def predict_steps(self) -> dict[str, Callable[..., Tree]]:
        """The steps of `evaluate.make_predict_steps`, compiled once for training and for what comes after it."""
        return evaluate.make_predict_steps(self.model, self.evaluations.values(), self.mesh)


def init_state(training: Training, key: jax.Array) -> TrainState:
    """Initialises the parts and their optimizer states from `key`; traced."""
    params, batch_stats = training.model.init(key)
    opt_state = {part: training.optimizer[part].init(params[part]) for part in params}
    averages = _averages(training, params, batch_stats)
    updates = {part: jnp.zeros((), jnp.int32) for part in params}
    state = TrainState(jnp.zeros((), jnp.int32), updates, params, batch_stats, opt_state, averages)
    # An initializer's weakly typed array would come out of the first step strongly typed, and the step compile twice.
    return jax.tree.map(lambda array: jax.lax.convert_element_type(array, array.dtype), state)


def _averages(training: Training, params: Tree, batch_stats: Tree) -> Tree | None:
    if not training.ema_decay:
        return None
    # Copies: a donated state must not hold one buffer twice.
    return {
        part: {"params": jax.tree.map(jnp.copy, params[part]), "batch_stats": jax.tree.map(jnp.copy, batch_stats[part])}
        for part in params
    }


def make_train_step(training: Training, shardings: Any) -> Callable[..., tuple[TrainState, Tree]]:
    """Builds `train_step(state, batch, key, *, turn) -> (state, logs)`: jitted, static turn, donated state."""
    step = partial(train_step, training)
    return jax.jit(
        step,
        static_argnames="turn",
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(training.mesh)),
        compiler_options=dict(training.compiler_options),
    )


def train_step(
    training: Training, state: TrainState, batch: Batch, key: jax.Array, *, turn: Turn
) -> tuple[TrainState, Tree]:
    """Takes one step on the live parts of `turn`; all others keep their params, statistics and optimizer state."""
    tasks = training.streams[turn.stream].tasks
    counts = {name: task.count(batch) for name, task in tasks.items()}
    key = jax.random.fold_in(key, state.step)

    def loss_of(live: Tree, batch_stats: Tree, slice_of_batch: Batch, key: jax.Array):
        outputs, batch_stats = training.model.forward(
            tasks, state.params | live, batch_stats, slice_of_batch, live=turn.live, train=True, key=key
        )
        logs, total = {}, 0.0
        for name, task in tasks.items():
            loss, task_logs = task.loss(outputs[name], slice_of_batch, counts[name])
            total += loss
            logs |= {f"{name}/{label}": value for label, value in task_logs.items()}
        return total, (batch_stats, {"loss": total} | logs)

    live = {part: state.params[part] for part in turn.live}
    grads, batch_stats, logs = _gradients(loss_of, live, state.batch_stats, batch, key, training.accumulate)
    grads, norm = optimizer.clip(grads, training.clip_norm)
    params, opt_state = dict(state.params), dict(state.opt_state)
    for part in turn.live:
        updates, opt_state[part] = training.optimizer[part].update(
            grads[part], opt_state[part], params[part], step=state.step
        )
        params[part] = optax.apply_updates(params[part], updates)
    ema = state.ema and _moved_averages(state, params, batch_stats, training.ema_decay, turn.live)
    updates = {part: count + (part in turn.live) for part, count in state.updates.items()}
    return TrainState(state.step + 1, updates, params, batch_stats, opt_state, ema), logs | {"gradient_norm": norm}


def _gradients(loss_of, live: Tree, batch_stats: Tree, batch: Batch, key: jax.Array, slices: int):
    """Sums the gradients over `slices` slices of the batch: (gradients, batch statistics, logs)."""
    differentiate = jax.grad(loss_of, has_aux=True)
    if slices == 1:
        grads, (batch_stats, logs) = differentiate(live, batch_stats, batch, key)
        return grads, batch_stats, logs
    # Every device gives rows to every slice: the rows' axis stays outermost and so stays split over devices.
    sliced = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, slices, *x.shape[1:]), 1, 0), batch)

    def add(carry, indexed):
        grads, batch_stats, logs = carry
        index, one = indexed
        more, (batch_stats, more_logs) = differentiate(live, batch_stats, one, jax.random.fold_in(key, index))
        return (jax.tree.map(jnp.add, grads, more), batch_stats, jax.tree.map(jnp.add, logs, more_logs)), None

    first = jax.tree.map(lambda x: x[0], sliced)
    shapes = jax.eval_shape(differentiate, live, batch_stats, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][1]))
    carry, _ = jax.lax.scan(add, (zeros[0], batch_stats, zeros[1]), (jnp.arange(slices), sliced))
    return carry


def _moved_averages(state: TrainState, params: Tree, batch_stats: Tree, decay: float, live) -> Tree:
    def moved(part: str) -> Tree:
        # As Adam corrects its moments: the weights decay by `decay` and sum to one, so the random start has none.
        updates = state.updates[part]
        kept = decay * (1 - decay**updates) / (1 - decay ** (updates + 1))
        now = {"params": params[part], "batch_stats": batch_stats[part]}
        return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.ema[part], now)

    return state.ema | {part: moved(part) for part in live}


def fit(training: Training, workdir: Path, preemption: Preemption) -> None:
    """Trains to the last step, an early stop or SIGTERM, resuming from the newest checkpoint in `workdir`.

    Raises Preempted after SIGTERM, with a checkpoint saved; InputError for a loss that is not finite, naming the step.
    """
    loop = _Loop(training, workdir, preemption)
    try:
        with preemption.deferred():
            loop.run()
    except BaseException:
        # What stopped the run is what its user has to know, not what then went wrong while tidying up; and of several
        # processes the others would never come to the barrier that tidying up waits at.
        if jax.process_count() == 1:
            with contextlib.suppress(Exception):
                loop.close()
        raise
    loop.close()


class _Loop:
    """The loop's moving pieces: the state on the devices, the place in each stream, the history of evaluations."""

    def __init__(self, training: Training, workdir: Path, preemption: Preemption):
        self.training, self.preemption = training, preemption
        self.key, init_key = jax.random.split(jax.random.key(training.seed))
        shapes = jax.eval_shape(partial(init_state, training), init_key)
        self.shardings = sharding.state_sharding(training.mesh, shapes, training.sharding)
        self.latest, self.best = Checkpoints(workdir, "latest"), Checkpoints(workdir, "best")
        if self.latest.latest_step() is None:
            if self.best.latest_step() is not None:
                raise InputError(
                    f"{self.best.folder}: holds the best checkpoint of a run whose latest one is gone. Give another "
                    "--workdir, or delete the checkpoints to start anew."
                )
            self.state = self._fresh_state(init_key)
            self.progress = {"positions": {}, "history": [], "meter": {}, "finished": False}
            # From here on there is a latest one, whenever the first best one is written.
            self.latest.save(0, self.state, self.progress, training.config)
            self.latest.wait()
        else:
            check_same_config(
                self.latest.config(), training.config, self.latest.folder, except_for=self._fields_without_effect()
            )
            self.state, self.progress = self.latest.restore(abstract(shapes, self.shardings))
        self.step = int(self.state.step)
        self.iterators: dict[str, Iterator[Batch]] = {}
        self.recent_loss: dict[str, float] = {}  # unknown until the first step is done
        self.pending: tuple[int, Tree] | None = None
        is_host = jax.process_index() == 0
        self.log = MetricLog(workdir, resume_step=self.step, host=is_host)
        self.shown = Progress(training.steps, self.step, host=is_host)
        self.train_step = make_train_step(training, self.shardings)
        self.evaluations = list(evaluate.without_intervals(training.evaluations).values())

    def _fields_without_effect(self) -> tuple[str, ...]:
        """Patterns of the fields that nothing follows from which the newest checkpoint holds, nor a step to come.

        Until the first evaluation no step was chosen as the best. `max_boxes` is in the shape of what a step draws at
        random, so it is free once all steps are done.
        """
        finished = self.latest.latest_step() >= self.training.steps or self.latest.progress()["finished"]
        unchosen = self.best.latest_step() is None
        return (*(("best.*",) if unchosen else ()), *((MAX_BOXES,) if finished else ()))

    def _fresh_state(self, key: jax.Array) -> TrainState:
        # It runs once: compiled without optimisation it is there in a third of the time.
        init = jax.jit(
            partial(init_state, self.training),
            out_shardings=self.shardings,
            compiler_options={"xla_backend_optimization_level": 0},
        )
        state = init(key)
        params, batch_stats = self.training.warm_start(state.params, state.batch_stats)
        state = state.replace(params=params, batch_stats=batch_stats, ema=_averages(self.training, params, batch_stats))
        return jax.device_put(state, self.shardings)

    def run(self) -> None:
        training = self.training
        while self.step < training.steps and not self.progress["finished"]:
            turn = training.schedule(self.step)
            batch = self._next_batch(turn.stream)
            if batch is None:
                self._save(self.latest)
                self._stop()
            batch = sharding.to_device(batch, training.mesh)
            self.state, logs = self.train_step(self.state, batch, self.key, turn=turn)
            self._read_logs()
            self.pending = (self.step, {f"{turn.stream}/{name}": value for name, value in logs.items()})
            self.step += 1
            self.shown.update(self.step, training.streams[turn.stream].batch_size, **self._recent_loss())
            if self.step % training.log_every == 0 or self.step == training.steps:
                self._write_logs()
            evaluated = self.step % training.evaluate_every == 0 or self.step == training.steps
            stop = self.preemption.reached(self.step)
            if stop or evaluated or self.step % training.checkpoint_every == 0:
                with self.shown.pause():
                    if evaluated:
                        self._evaluate()
                    self._save(self.latest)
            if stop:
                self._stop()

    def close(self) -> None:
        self.shown.close()
        self.log.close()
        self.latest.close()
        self.best.close()

    def _stop(self) -> None:
        self.latest.wait()
        raise Preempted(f"stopped after step {self.step} of {self.training.steps}; the same command resumes")

    def _next_batch(self, stream: str) -> Batch | None:
        """Takes a batch; None if the signal that tells this process to stop has ended its data workers."""
        position = self.progress["positions"].setdefault(stream, 0)
        if stream not in self.iterators:
            self.iterators[stream] = self.training.streams[stream].batches(position)
        try:
            batch = next(self.iterators[stream])
        except Exception:
            if self.preemption.reached(self.step):
                return None
            raise
        self.progress["positions"][stream] = position + 1
        return batch

    def _read_logs(self) -> None:
        """Fetches the figures of the step before, while the devices work on this one."""
        if self.pending is None:
            return
        (step, logs), self.pending = self.pending, None
        for name, value in jax.device_get(logs).items():
            value = float(value)
            if not math.isfinite(value):
                raise InputError(
                    f"{name} is {value} at step {step}: nothing was saved after it. Lower the learning rate "
                    "(--config.optimizer.peak), clip gradients (--config.clip_norm) or look at the data of this step; "
                    f"the same command would resume from step {self.latest.latest_step() or 0}."
                )
            total, count = self.progress["meter"].get(name, (0.0, 0))
            self.progress["meter"][name] = [total + value, count + 1]

    def _recent_loss(self) -> dict[str, float]:
        for name, (total, count) in self.progress["meter"].items():
            if name.split("/")[1:] == ["loss"]:
                self.recent_loss = {"loss": total / count}
        return self.recent_loss

    def _write_logs(self) -> None:
        self._read_logs()
        means = {f"train/{name}": total / count for name, (total, count) in self.progress["meter"].items()}
        self.log.write(self.step, means | {"learning_rate": float(self.training.learning_rate(self.step - 1))})
        self.progress["meter"] = {}

    def _evaluate(self) -> None:
        self._read_logs()
        row: dict[str, float] = {}
        collected = evaluate.collect_all(
            self.training.predict_steps, self.state.evaluated(), self.evaluations, self.training.mesh
        )
        for evaluation in self.evaluations:
            name, rows = evaluation.name, collected[evaluation.rows]
            calibration = evaluate.calibrate(evaluation, rows)
            row[f"{name}/loss"] = rows.loss
            for scored in evaluate.score(evaluation, rows, calibration, resamples=0, beside=False):
                for metric in scored.metrics:
                    if metric.name.endswith("/macro") or metric.name.count("/") == 0:
                        row[f"{name}/{scored.task}/{metric.name}"] = float(metric.value)
        if not row:
            return
        self.log.write(self.step, row)
        history = [*self.progress["history"], {"step": self.step} | row]
        self.progress["history"] = history
        best = best_step(history, self.training.best_metric, self.training.best_mode)
        if best == self.step:
            # Written first: a kill between the two leaves a `latest` that will come to this evaluation again.
            self._save(self.best)
            self.best.wait()
        evaluations_since = sum(entry["step"] > best for entry in history)
        if self.training.patience and evaluations_since >= self.training.patience:
            self.progress["finished"] = True

    def _save(self, checkpoints: Checkpoints) -> None:
        self._read_logs()
        self.log.flush()
        checkpoints.save(self.step, self.state, self.progress, self.training.config)


def best_step(history: list[dict[str, float]], metric: str, mode: str) -> int:
    """Finds the step of the best evaluation; the earliest of equals; the newest if the metric was never defined.

    Raises InputError if no evaluation has a figure of this name.
    """
    if metric not in history[-1]:
        hint = suggestion(metric, set(history[-1]) - {"step"})
        raise InputError(f"config field best.metric: no figure {metric!r}; {hint}")
    sign = {"max": 1.0, "min": -1.0}[mode]
    defined = [entry for entry in history if math.isfinite(entry[metric])]
    if not defined:
        return history[-1]["step"]
    return max(defined, key=lambda entry: (sign * entry[metric], -entry["step"]))["step"]


# Patterns of fields: those that change no weight, and those that only evaluating depends on, once training is done.
RESUMABLE_FIELDS = ("workers", "log_every", "checkpoint_every", "resamples")
MAX_BOXES = "streams.*.max_boxes"
EVALUATED_FIELDS = ("evaluations.*", MAX_BOXES)


def check_same_config(
    saved: Mapping[str, Any], given: Mapping[str, Any], folder: Path, *, except_for: tuple[str, ...] = ()
) -> None:
    """Raises InputError naming the fields in which the config differs from that of the checkpoint.

    Those that match `RESUMABLE_FIELDS` or `except_for` may differ.
    """
    saved, given = _flat(saved), _flat(given)
    differing = sorted(
        name
        for name in saved.keys() | given.keys()
        if saved.get(name) != given.get(name)
        and not any(fnmatchcase(name, pattern) for pattern in (*RESUMABLE_FIELDS, *except_for))
    )
    if differing:
        shown = "; ".join(f"{name}: {saved.get(name)!r} -> {given.get(name)!r}" for name in differing[:5])
        raise InputError(
            f"{folder.parent}: holds a run of another config ({shown}). Give another --workdir, or the config it had."
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        flat = {}
        for name, value in tree.items():
            flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    return {prefix: list(tree) if isinstance(tree, tuple) else tree}
