"""The command line: `python -m mediax.main --config=configs/NAME.py[:phantom] --workdir=DIR`."""

import os
import sys
import traceback
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from mediax import experiment, memory, run
from mediax.errors import InputError
from mediax.preemption import EXIT_CODE, Preempted

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, results. The same folder resumes.")
flags.DEFINE_string("manual_dir", None, "Raw data: one folder per dataset, named as its module.")
flags.DEFINE_string("data_dir", None, "Built data (default: ~/tensorflow_datasets).")
flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train and evaluate, or evaluate the best checkpoint.")


def main(argv: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: flags are written --name=value")
    if not FLAGS.workdir:
        raise InputError(
            "--workdir is missing: expected the folder that the run may write to, as in --workdir=runs/first"
        )
    data_dir = FLAGS.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folders = experiment.Folders(
        manual=Path(FLAGS.manual_dir).expanduser() if FLAGS.manual_dir else None,
        data=Path(data_dir).expanduser(),
        work=Path(FLAGS.workdir).expanduser(),
    )
    run.run(FLAGS.config, folders, mode=FLAGS.mode, arguments=sys.argv[1:])


def start(argv: list[str] | None = None) -> None:
    """Parses the flags, joins the other processes of the job, and turns errors into messages and exit codes."""
    argv = list(sys.argv if argv is None else argv)
    try:
        argv, path = _take_config(argv)
        config = experiment.load_config(path)
        for argument in argv:
            if argument.startswith(("--config.", "-config.")):
                experiment.open_override(config, argument.partition("=")[0].partition(".")[2])
        config_flags.DEFINE_config_dict("config", config, sys_argv=argv, lock_config=False, accept_new_attributes=True)
        app.define_help_flags()
        remaining = FLAGS(argv)
        memory.keep_freed()
        _join_processes()
        _quiet_libraries()
        # Parsed once: a second time would append to tuples that were given on the command line.
        app.run(_guarded, argv=argv, flags_parser=lambda _: remaining)
    except InputError as error:
        _stop(str(error), 2)
    except flags.Error as error:
        _stop(f"command line: {error}", 2)


def _guarded(argv: list[str]) -> None:
    try:
        main(argv)
    except InputError as error:
        _stop(str(error), 2)
    except Preempted as preempted:
        _stop(str(preempted), EXIT_CODE)
    except Exception:
        if jax.process_count() == 1:
            raise
        # Leaving in the ordinary way waits for processes that will never come to the barrier.
        traceback.print_exc()
        _stop("an error that mediax does not know; the traceback above says where", 1)


def _quiet_libraries() -> None:
    """Lets the console show what mediax and the metric writers say, and warnings alone of the libraries below them."""
    speakers = (f"{os.sep}mediax{os.sep}", f"{os.sep}metric_writers{os.sep}")
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno >= logging.converter.STANDARD_WARNING
            or any(speaker in record.pathname for speaker in speakers)
        )
    )


def _take_config(argv: list[str]) -> tuple[list[str], str]:
    """Takes --config=FILE out of the arguments: the file must be read before --config.key=value can be parsed."""
    for index, argument in enumerate(argv):
        if argument.startswith(("--config=", "-config=")):
            return argv[:index] + argv[index + 1 :], argument.split("=", 1)[1]
        if argument in ("--config", "-config") and index + 1 < len(argv):
            return argv[:index] + argv[index + 2 :], argv[index + 1]
    if {"--help", "--helpfull", "-h"} & set(argv):
        app.run(_guarded, argv=argv)
    raise InputError("--config is missing: expected a file, as in --config=configs/chexpert_convnext.py:phantom")


def _join_processes() -> None:
    """Joins the other processes that `srun` started, found from the scheduler's variables."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # The first process draws and writes while the others wait for it at the end; failures do not come that way.
        jax.distributed.initialize(heartbeat_timeout_seconds=60, shutdown_timeout_seconds=3600)


def _stop(message: str, code: int) -> None:
    """Prints one message and leaves; with other processes waiting at a barrier, without waiting for them."""
    print(f"mediax: {message}", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    start()
