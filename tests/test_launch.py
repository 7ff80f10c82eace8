"""Launch scripts: command lines, and what they do when a run fails or is stopped."""

import os
import signal
import subprocess
import sys

import pytest

from launch import local, minijsrt
from mediax.datasets import minijsrt_practice
from mediax.preemption import EXIT_CODE


@pytest.fixture
def ran(monkeypatch):
    """Collects command lines instead of running them; those that name "bad" fail, those that name "stopped" are."""
    commands = []

    def run(self, command):
        commands.append(command)
        return next((code for word, code in (("bad", 1), ("stopped", 75)) if word in " ".join(command)), 0)

    monkeypatch.setattr(local.Runner, "run", run)
    return commands


def test_every_config_runs_in_a_folder_of_its_own_and_a_report_follows(ran, tmp_path):
    configs = ["configs/minijsrt.py:age,phantom", "configs/chexpert_convnext.py"]
    assert local.main([*configs, f"--workdir={tmp_path}", "--data_dir=data", "--config.seed=1"]) == 0
    flags = ["--data_dir=data", "--config.seed=1"]
    start = [sys.executable, "-m", "mediax.main"]
    assert ran == [
        [*start, f"--config={configs[0]}", f"--workdir={tmp_path}/minijsrt_age_phantom", *flags],
        [*start, f"--config={configs[1]}", f"--workdir={tmp_path}/chexpert_convnext", *flags],
        [sys.executable, "-m", "mediax.report", str(tmp_path), f"--out={tmp_path}/report"],
    ]


def test_every_seed_of_a_config_runs_in_a_folder_of_its_own(ran, tmp_path):
    assert local.main(["a.py:x", "b.py", f"--workdir={tmp_path}", "--seeds", "0", "12", "--config.steps=5"]) == 0
    assert [command[3:] for command in ran[:4]] == [
        [f"--config={config}", f"--workdir={tmp_path}/{name}_seed{seed}", "--config.steps=5", f"--config.seed={seed}"]
        for config, name in (("a.py:x", "a_x"), ("b.py", "b"))
        for seed in (0, 12)
    ]


def test_a_run_that_fails_stops_no_other_and_is_named(ran, tmp_path, capsys):
    assert local.main(["a.py:bad", "b.py", f"--workdir={tmp_path}"]) == 1
    assert len(ran) == 3 and capsys.readouterr().err == "failed: a_bad (exit code 1)\n"


def test_a_run_that_was_stopped_ends_the_launcher_with_its_code(ran, tmp_path, capsys):
    assert local.main(["a.py:bad", "b.py:stopped", "c.py", f"--workdir={tmp_path}"]) == 75
    assert len(ran) == 2 and "[2/4] b_stopped: exit code 75, 0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("SIG_DFL", 128 + signal.SIGTERM), ("lambda *_: sys.exit(75)", 75), ("lambda *_: sys.exit(0)", 75)],
)
def test_sigterm_reaches_the_command_that_runs_and_ends_the_launcher(answer, expected, tmp_path):
    told = "import signal, sys, time; from signal import SIG_DFL; signal.signal(signal.SIGTERM, {}); {}".format(
        answer, "print('ready', flush=True); time.sleep(60)"
    )
    commands = {"first": [sys.executable, "-c", told], "second": ["touch", str(tmp_path / "second")]}
    start = f"import sys, pathlib; from launch import local; sys.exit(local.run_all({commands}, pathlib.Path('none')))"
    with subprocess.Popen([sys.executable, "-c", start], cwd=local.ROOT, stdout=subprocess.PIPE, text=True) as launcher:
        while launcher.stdout.readline() != "ready\n":
            assert launcher.poll() is None
        launcher.terminate()
        assert launcher.wait(timeout=30) == expected
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["here/a.py", "there/a.py"], "same name"),
        (["a.py", "--seeds", "1", "1"], "same name"),
        (["a.py", "--data_dir", "data"], "unexpected argument '--data_dir': flags are written --name=value"),
        (["--data_dir", "data", "a.py"], "unexpected argument '--data_dir'"),
        (["a.py", "-workdir=runs"], "unexpected argument '-workdir=runs'"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, message, ran, tmp_path, capsys):
    with pytest.raises(SystemExit):
        local.main([*arguments, f"--workdir={tmp_path}"])
    assert message in capsys.readouterr().err and not ran


def test_flags_may_stand_anywhere_and_hold_spaces(ran, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    mean, data = "--config.backbone.mean=(0.5, 0.5)", f"--data_dir={tmp_path}/d n"
    assert local.main(["a.py", mean, "b.py", "--seeds", "0", "1", data, "--workdir=~/runs"]) == 0
    folders = [f"--workdir={tmp_path}/runs/{name}_seed{seed}" for name in "ab" for seed in (0, 1)]
    assert [command[4] for command in ran[:-1]] == folders
    assert all(command[5:7] == [mean, data] for command in ran[:-1])
    assert ran[-1][2:] == ["mediax.report", f"{tmp_path}/runs", f"--out={tmp_path}/runs/report"]


def test_the_nine_exercises(ran, tmp_path, capsys):
    assert minijsrt.main([f"--workdir={tmp_path}", "--phantom"]) == 0
    said = [" ".join(command[2:]) for command in ran]
    assert f"{tmp_path}/practice/raw/minijsrt_practice" in said[0]
    assert [line.split("--format=")[1] for line in said[1:4]] == ["dcm --verify", "jpg --verify", "png --verify"]
    assert [line.split(":")[1].split(",")[0] for line in said[4:12]] == list(minijsrt.EXERCISES)
    assert said[12].startswith("mediax.report") and len(said) == 13
    with pytest.raises(SystemExit):
        minijsrt.main([f"--workdir={tmp_path}"])
    assert "expected one of --manual_dir and --phantom" in capsys.readouterr().err


def test_the_first_exercise_runs(tmp_path):
    for name, command in minijsrt.practice(tmp_path, None).items():
        done = subprocess.run(command, cwd=local.ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if name in ("practice_dcm", "practice_png"):
            assert "30 of 30 files: read back: equal value for value" in done.stdout
    assert "practice_phantom" not in minijsrt.practice(tmp_path, None)  # it is there by now


def test_a_practice_phantom_that_was_left_half_written_is_drawn_anew(tmp_path, monkeypatch):
    raw, drawn = tmp_path / "raw" / "minijsrt_practice", []

    def phantom(root):
        root.mkdir(parents=True, exist_ok=True)
        (root / str(len(drawn))).touch()
        drawn.append(root)
        if len(drawn) == 1:
            raise OSError("killed")

    monkeypatch.setattr(minijsrt_practice, "phantom", phantom)
    with pytest.raises(OSError, match="killed"):
        minijsrt.draw_practice(raw)
    assert not raw.exists() and "practice_phantom" in minijsrt.practice(tmp_path, None)
    minijsrt.draw_practice(raw)
    assert [path.name for path in raw.iterdir()] == ["1"] and list(raw.parent.iterdir()) == [raw]


@pytest.fixture
def submit(tmp_path):
    """Runs the batch script with made-up programs of SLURM, of which srun ends with `code`.

    What comes back has `srun`, the number of processors and the arguments that srun got, and `scontrol`, its calls.
    """
    programs = {
        "srun": f'printf \'%s\\n\' "$SRUN_CPUS_PER_TASK" "$@" > {tmp_path}/srun.log; exit $CODE',
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol.log; exit "${{REFUSED:-0}}"',
        "sleep": "",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)

    def run(*arguments, code=0, **variables):
        script = local.ROOT / "launch" / "train.sbatch"
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        env = {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4", "CODE": str(code), **variables}
        done = subprocess.run(["bash", script, *arguments], env=env, capture_output=True, text=True)
        written = [tmp_path / "srun.log", tmp_path / "scontrol.log"]
        done.srun, done.scontrol = (path.read_text().splitlines() if path.exists() else [] for path in written)
        return done

    return run


FLAGS = ("--config=a b.py:x", "--workdir=my runs/", "--config.schedule.frozen=('backbone', 'head/*')")
STARTED = ["4", "--kill-on-bad-exit=1", "python", "-m", "mediax.main"]


def test_the_batch_script_passes_its_arguments_on(submit):
    done = submit(*FLAGS)
    assert done.returncode == 0 and done.srun == [*STARTED, *FLAGS] and not done.stderr


def test_each_seed_of_a_job_array_has_a_folder_of_its_own(submit):
    done = submit(*FLAGS, SLURM_ARRAY_TASK_ID="3")
    assert done.srun == [*STARTED, FLAGS[0], "--workdir=my runs/seed3", FLAGS[2], "--config.seed=3"]
    without = submit(FLAGS[0], "--workdir", "runs", SLURM_ARRAY_TASK_ID="3")
    assert without.returncode == 2 and "--workdir=DIR is missing" in without.stderr


@pytest.mark.parametrize(
    ("code", "variables", "requeued"),
    [
        (75, {}, True),
        (75, {"SLURM_RESTART_COUNT": "49"}, True),
        (75, {"SLURM_RESTART_COUNT": "50"}, False),
        (75, {"SLURM_RESTART_COUNT": "2", "MAX_RESTARTS": "2"}, False),
        (75, {"REFUSED": "1"}, True),  # the job was cancelled
        (0, {}, False),
        (1, {}, False),
        (2, {}, False),
        (137, {}, False),
    ],
)
def test_a_job_that_was_stopped_goes_back_into_the_queue(code, variables, requeued, submit):
    done = submit(*FLAGS, code=code, **variables)
    assert done.returncode == code
    assert done.scontrol == (["requeue 7"] if requeued else [])


def test_the_batch_script_asks_slurm_for_what_it_relies_on():
    lines = (local.ROOT / "launch" / "train.sbatch").read_text().splitlines()
    asked = {line.split()[1] for line in lines if line.startswith("#SBATCH")}
    assert {"--requeue", "--open-mode=append", "--signal=TERM@180", "--nodes=1", "--ntasks-per-node=1"} <= asked


def test_both_launchers_know_the_exit_code_of_a_run_that_was_stopped():
    assert local.STOPPED == EXIT_CODE
    assert f"-eq {EXIT_CODE} " in (local.ROOT / "launch" / "train.sbatch").read_text()
