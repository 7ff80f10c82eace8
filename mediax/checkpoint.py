"""Checkpoints: the state, the place in every data stream and the config, written by Orbax.

Two folders lie side by side: `latest` to resume from, `best` by the validation metric. Orbax writes to a temporary
name and renames, so a kill at any moment leaves the checkpoint before it whole.
"""

import copy
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mediax.catalog import suggestion
from mediax.errors import InputError, first_line

KINDS = ("params", "batch_stats")  # of what a part holds


class Checkpoints:
    """The checkpoints of one kind (`latest` or `best`) under a run's folder."""

    def __init__(self, workdir: Path, kind: str, *, keep: int = 1):
        self.folder = Path(workdir).absolute() / "checkpoints" / kind
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise write_error(self.folder, error) from None

    def latest_step(self) -> int | None:
        """Gives the step of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Copies the state from the devices and writes it in the background; a step that is there is kept."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            # Copies: they are written in the background, while the caller goes on to change his own.
            progress=ocp.args.JsonSave(copy.deepcopy(dict(progress))),
            config=ocp.args.JsonSave(copy.deepcopy(dict(config))),
        )
        try:
            saved = self._manager.save(step, args=items)
        except Exception as error:
            raise write_error(self.folder, error) from error
        if not saved:
            raise InputError(
                f"{self.folder}: holds step {self.latest_step()}, later than step {step} of this run: another run was "
                "written here. Give another --workdir, or delete its checkpoints."
            )

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint (the newest, if no step is given) into the shapes and shardings of `abstract_state`."""
        step = self.latest_step() if step is None else step
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:
            raise self._unreadable(step, error) from error
        return restored.state, restored.progress

    def config(self) -> dict[str, Any]:
        """Reads the config that the newest checkpoint was trained with; raises InputError if there is none."""
        return self._plain("config")

    def progress(self) -> dict[str, Any]:
        """Reads the place in every data stream and the history; raises InputError if there is no checkpoint."""
        return self._plain("progress")

    def _plain(self, item: str) -> dict[str, Any]:
        step = self.latest_step()
        if step is None:
            raise InputError(f"{self.folder}: no checkpoint")
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]
        except Exception as error:
            raise self._unreadable(step, error) from error

    def part(self, name: str) -> dict[tuple[str | int, ...], np.ndarray]:
        """Reads one part of the newest checkpoint as evaluations see it (the moving averages, if they are kept).

        Returns the arrays by path, params and batch statistics together, on the host and as they were saved, whatever
        devices they were on. Raises InputError if there is no checkpoint, or no such part in it.
        """
        step = self.latest_step()
        if step is None:
            raise InputError(f"{self.folder}: no checkpoint")
        folder = self.folder / str(step) / "state"
        handler = ocp.PyTreeCheckpointHandler()
        try:
            saved = handler.metadata(epath.Path(folder)).tree
            kept = {"ema": saved["ema"]} if saved.get("ema") else {kind: saved[kind] for kind in KINDS}
            wanted = {kind: {name: parts[name]} for kind, parts in kept.items() if name in parts}
            if not wanted:
                raise InputError(f"{folder}: has no part {name!r}; {suggestion(name, saved['params'])}")
            restored = handler.restore(
                epath.Path(folder),
                args=ocp.args.PyTreeRestore(
                    item=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted),
                    restore_args=jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
                    partial_restore=True,
                ),
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: the checkpoint cannot be read ({first_line(error)})") from error
        trees = restored["ema"][name] if "ema" in restored else {kind: restored[kind].get(name) for kind in restored}
        leaves = [leaf for tree in trees.values() for leaf in jax.tree_util.tree_leaves_with_path(tree)]
        # Orbax writes the index of a layer as text.
        return {tuple(int(k.key) if k.key.isdigit() else k.key for k in path): array for path, array in leaves}

    def _unreadable(self, step: int, error: Exception) -> InputError:
        return InputError(
            f"{self.folder / str(step)}: the checkpoint cannot be read ({first_line(error)}). It was written by "
            "another model or is damaged. Give another --workdir, or delete the checkpoints to start anew."
        )

    def wait(self) -> None:
        """Blocks until what was saved is on disk."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise write_error(self.folder, error) from error

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self.wait()
        self._manager.close()


def abstract(state: Any, shardings: Any) -> Any:
    """Describes a state by shapes, dtypes and shardings, which is what a restore needs."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), state, shardings
    )


def write_error(path: Path, error: Exception) -> InputError:
    """Words a failed write; a full disk gets its own advice."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    advice = "the disk is full: free some space, then give the same command again" if full else first_line(error)
    return InputError(f"{path}: cannot write: {advice}. The last whole checkpoint is untouched.")
