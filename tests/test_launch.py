"""Launch scripts: command lines, and what they do when a run fails."""

import subprocess
import sys

import pytest

from launch import local, minijsrt


@pytest.fixture
def ran(monkeypatch):
    """Collects command lines instead of running them; those that name "bad" fail."""
    commands = []

    def run(command, cwd):
        assert cwd == local.ROOT
        commands.append(command)
        return subprocess.CompletedProcess(command, int("bad" in " ".join(command)))

    monkeypatch.setattr(subprocess, "run", run)
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


def test_a_run_that_fails_stops_no_other_and_is_named(ran, tmp_path, capsys):
    assert local.main(["a.py:bad", "b.py", f"--workdir={tmp_path}"]) == 1
    assert len(ran) == 3 and capsys.readouterr().err == "failed: a_bad (exit code 1)\n"


def test_two_configs_in_one_folder_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        local.main(["here/a.py", "there/a.py", f"--workdir={tmp_path}"])
    assert "same name" in capsys.readouterr().err


def test_the_nine_exercises(ran, tmp_path, capsys):
    assert minijsrt.main([f"--workdir={tmp_path}", "--phantom"]) == 0
    said = [" ".join(command[2:]) for command in ran]
    assert said[0] == f"mediax.datasets phantom minijsrt_practice {tmp_path}/practice/raw"
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
