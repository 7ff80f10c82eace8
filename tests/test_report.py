"""The metric log resumes byte for byte; results are written whole or not at all."""

import contextlib
import errno
import json
import math
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mediax import metric_log, report
from mediax.errors import InputError
from mediax.metric_log import MetricLog, read_metrics
from mediax.metrics import Metric
from mediax.report import Result, write_results


def write_steps(log, start, stop):
    for step in range(start + 1, stop + 1):
        log.write(step, {"train/loss": np.float32(1 / step), "learning_rate": 1e-3 * step})
        if step % 5 == 0:
            log.write(step, {"validation/auroc/macro": 1 - 1 / step})


def events(folder):
    """Yields the events of every file in order, checking lengths; the checksums are tensorboardX's own."""
    for path in sorted(folder.iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            yield Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length
        assert position == len(data)


def test_a_killed_and_resumed_run_leaves_the_same_bytes(tmp_path):
    with_kill, without = tmp_path / "killed", tmp_path / "whole"
    log = MetricLog(without, resume_step=0)
    write_steps(log, 0, 20)
    log.close()
    expected = (without / "metrics.jsonl").read_bytes()

    log = MetricLog(with_kill, resume_step=0)
    write_steps(log, 0, 10)
    log.flush()
    write_steps(log, 10, 13)
    path = with_kill / "metrics.jsonl"
    for torn in range(1, 60, 7):  # kill -9 in the middle of the last row
        path.write_bytes(expected[: expected.index(b'"step": 13') + torn])
        log = MetricLog(with_kill, resume_step=10)
        write_steps(log, 10, 20)
        log.close()
        assert path.read_bytes() == expected
    assert sorted(p.name for p in with_kill.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_a_process_killed_without_warning_loses_nothing_it_wrote(tmp_path):
    script = (
        "import os, sys\n"
        "from mediax.metric_log import MetricLog\n"
        "log = MetricLog(sys.argv[1], resume_step=0)\n"
        "for step in range(1, 8): log.write(step, {'loss': 1.0 / step})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(report.__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True)
    assert killed.returncode == -9
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 8))


def test_resuming_keeps_the_rows_of_the_checkpoint(tmp_path):
    log = MetricLog(tmp_path, resume_step=0)
    write_steps(log, 0, 8)
    log.close()
    MetricLog(tmp_path, resume_step=5).close()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5]
    assert rows[-1] == {"step": 5, "validation/auroc/macro": 0.8}


def test_a_start_from_scratch_keeps_the_old_log_under_another_name(tmp_path):
    for value in (1.0, 2.0, 3.0):
        log = MetricLog(tmp_path, resume_step=0)
        log.write(0, {"loss": value})
        log.close()
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 3.0}]
    assert json.loads((tmp_path / "metrics.1.jsonl").read_text())["loss"] == 1.0
    assert json.loads((tmp_path / "metrics.2.jsonl").read_text())["loss"] == 2.0


def test_rows_are_strict_json(tmp_path):
    log = MetricLog(tmp_path, resume_step=0)
    log.write(1, {"b": float("nan"), "a": float("inf"), "c": -np.inf, "d": np.ones((1,), np.float32)})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "a": "Infinity", "b": "NaN", "c": "-Infinity", "d": 1.0}\n'

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(text, parse_constant=refuse)
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["b"]) and row["a"] == math.inf and row["c"] == -math.inf


def test_a_damaged_row_in_the_middle_is_an_input_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 2}\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: found .*loss"):
        MetricLog(tmp_path, resume_step=1)


def test_the_name_step_is_taken(tmp_path):
    log = MetricLog(tmp_path, resume_step=0)
    with pytest.raises(ValueError, match="step"):
        log.write(1, {"step": 2.0})
    log.close()


def test_other_processes_write_nothing(tmp_path):
    log = MetricLog(tmp_path / "work", resume_step=0, host=False)
    log.write(1, {"loss": 1.0})
    log.write_images(1, {"x": np.zeros((1, 4, 4, 1), np.uint8)})
    log.flush()
    log.close()
    assert not (tmp_path / "work").exists()


def test_tensorboard_events_are_complete_and_purge_what_is_repeated(tmp_path):
    log = MetricLog(tmp_path, resume_step=0)
    log.write(10, {"loss": 0.5, "nan": float("nan")})
    log.write_images(10, {"x-ray": np.full((2, 8, 6, 3), 0.5, np.float32)})
    log.close()
    log = MetricLog(tmp_path, resume_step=5)
    log.write(6, {"loss": 0.25})
    log.flush()
    found = list(events(tmp_path / "tensorboard"))
    log.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # a quick restart does not overwrite
    assert found[0].file_version == "brain.Event:2"
    starts = [event.step for event in found if event.session_log.status == SessionLog.START]
    assert starts == [0, 6]
    values = [(event.step, value) for event in found for value in event.summary.value]
    assert [(step, v.tag, v.simple_value) for step, v in values if v.tag == "loss"] == [
        (10, "loss", 0.5),
        (6, "loss", 0.25),
    ]
    pictures = [v.image for _, v in values if v.HasField("image")]
    assert [(p.height, p.width, p.colorspace) for p in pictures] == [(8, 6, 3)] * 2
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")


def test_images_of_another_shape_are_refused(tmp_path):
    log = MetricLog(tmp_path, resume_step=0)
    with pytest.raises(ValueError, match="N,H,W"):
        log.write_images(1, {"x": np.zeros((4, 4, 1), np.uint8)})
    log.close()


def test_clu_works_without_tensorflow_through_the_stand_in(tmp_path):
    from clu import metric_writers, periodic_actions

    writer = metric_writers.create_default_writer(str(tmp_path), asynchronous=False)
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_texts(1, {"note": "text"})
    writer.write_histograms(1, {"weights": np.arange(10.0)})
    writer.write_hparams({"learning_rate": 1e-3})
    writer.flush()
    tags = {value.tag for event in events(tmp_path) for value in event.summary.value}
    writer.close()
    assert {"loss", "weights"} <= tags and len(tags) == 4
    assert periodic_actions.PeriodicCallback(every_steps=2, callback_fn=lambda **_: None)
    with pytest.raises(NotImplementedError):
        metric_log.SummaryWriter(str(tmp_path / "other")).write_videos(1, {})


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def no_file_above(size):
    """Makes the kernel cut off writes beyond `size` bytes, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_input_error_and_leaves_whole_rows(tmp_path):
    log = MetricLog(tmp_path, resume_step=0)
    with no_file_above(1000), pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
        write_steps(log, 0, 100)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert 900 < len(text) <= 1000 and text.endswith("}\n")
    steps = read_metrics(tmp_path)[-1]["step"]
    log.close()
    log = MetricLog(tmp_path, resume_step=5)
    write_steps(log, 5, 30)
    log.close()
    assert 5 < steps < 30 and read_metrics(tmp_path)[-1]["step"] == 30


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux' /dev/full")
def test_a_really_full_device_names_the_event_folder(tmp_path):
    log = MetricLog(tmp_path, resume_step=0)
    full = open("/dev/full", "wb")  # noqa: SIM115
    log._writer._writers[1]._events._py_recordio_writer._writer = full
    log.write(1, {"loss": 1.0})
    with pytest.raises(InputError, match="tensorboard: cannot be written"):
        log.flush()
    with contextlib.suppress(OSError):
        full.close()


METRICS = (
    Metric("auroc/Edema", 0.8123456, 0.75, 0.86, 1200),
    Metric("auroc/Fracture", math.nan, math.nan, math.nan, 1100, "no positive row | undefined"),
    Metric("auroc/macro", 0.8123456, 0.76, np.float64(0.85), 1200, "1 of 2 classes"),
    Metric("brier/Edema", 0.1, math.nan, math.nan, 1200),
    Metric("brier/macro", 0.1, 0.05, 0.15, 1200),
)
RESULT = Result("test", "chexpert", "test", "findings", "chexpert/official", METRICS, False)
RUN = {
    "command": ["python", "-m", "mediax.main", "--config=configs/a.py:phantom", "--set=name with space"],
    "config": {"model": {"name": "resnet", "widths": (1, 2)}, "clip": math.inf},
    "seed": 3,
    "step": np.int64(200),
    "versions": {"jax": "1.2"},
    "git_revision": None,
}


def test_results_json_is_strict_and_complete(tmp_path):
    write_results(tmp_path, run=RUN, results=[RESULT])
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    content = json.loads(text)
    assert content["run"]["config"] == {"model": {"name": "resnet", "widths": [1, 2]}, "clip": "Infinity"}
    assert content["run"]["step"] == 200 and content["run"]["git_revision"] is None
    (result,) = content["results"]
    assert (result["evaluation"], result["protocol"], result["phantom"]) == ("test", "chexpert/official", False)
    fracture = result["metrics"][1]
    assert fracture["value"] is None and fracture["low"] is None and "no positive" in fracture["note"]
    assert result["metrics"][0]["value"] == 0.8123456
    assert set(fracture) == {"name", "value", "low", "high", "n", "note", "trivial", "reader"}
    assert report.config_hash(content["run"]["config"]) == report.config_hash(RUN["config"])


def test_results_md_reads_well(tmp_path):
    for name in ("samples_test.png", "curves.png", "roc_test set.png", "other.png"):
        (tmp_path / name).write_bytes(b"png")
    write_results(tmp_path, run=RUN, results=[RESULT])
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == f"# Results: {tmp_path.name}"
    assert "python -m mediax.main --config=configs/a.py:phantom '--set=name with space'" in lines
    assert "## test: chexpert, test" in lines
    start = lines.index("| metric | value | 95 % interval | n | note |")
    assert lines[start + 2 : start + 7] == [
        "| **auroc/macro** | **0.8123** | 0.7600 to 0.8500 | 1200 | 1 of 2 classes |",
        "| **brier/macro** | **0.1000** | 0.0500 to 0.1500 | 1200 |  |",
        "| auroc/Edema | 0.8123 | 0.7500 to 0.8600 | 1200 |  |",
        "| auroc/Fracture | – |  | 1100 | no positive row \\| undefined |",
        "| brier/Edema | 0.1000 |  | 1200 |  |",
    ]
    figures = [line for line in lines if line.startswith("![")]
    assert figures == [
        "![curves](curves.png)",
        "![samples_test](samples_test.png)",
        "![roc_test set](roc_test%20set.png)",
    ]
    assert "| versions | jax 1.2 |" in lines and "| step | 200 |" in lines
    assert not any("Phantom" in line for line in lines)


def test_a_protocols_figures_head_the_table_and_what_others_get_stands_beside(tmp_path):
    found = (
        Metric("dice/macro", 0.8, 0.7, 0.9, 50, trivial=0.777),
        Metric("iou/Pneumothorax", 0.6, 0.5, 0.7, 50, trivial=math.nan, reader=0.65),
        Metric("dice_present/macro", 0.5, 0.4, 0.6, 12, trivial=0.0),
    )
    result = Result("test", "siim_acr", "test", "masks", "x", found, False, ("dice_present/macro", "iou/Pneumothorax"))
    write_results(tmp_path, run={}, results=[result])
    lines = (tmp_path / "results.md").read_text().splitlines()
    start = lines.index("| metric | value | 95 % interval | trivial predictor | second reader | n | note |")
    assert lines[start + 2 : start + 5] == [
        "| **dice_present/macro** | **0.5000** | 0.4000 to 0.6000 | 0.0000 | – | 12 |  |",
        "| **iou/Pneumothorax** | **0.6000** | 0.5000 to 0.7000 | – | 0.6500 | 50 |  |",
        "| dice/macro | 0.8000 | 0.7000 to 0.9000 | 0.7770 | – | 50 |  |",
    ]
    assert report.headlines([result])[0].startswith(
        "test (siim_acr test, n=12): dice_present/macro 0.5000 [0.4000, 0.6000], iou"
    )


def test_headlines_name_the_task_where_an_evaluation_has_several():
    alone = Result("test", "chexmask", "test", "lungs", "x", METRICS[:1], False)
    lines = report.headlines([alone, *(replace(alone, evaluation="whole", task=task) for task in ("lungs", "heart"))])
    assert [line.partition(" ")[0] for line in lines] == ["test", "whole/lungs", "whole/heart"]


def test_phantom_results_say_so(tmp_path):
    phantom = Result("test", "chexpert", "test", "findings", "chexpert/official", METRICS[:1], True)
    write_results(tmp_path, run={}, results=[RESULT, phantom])
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[2] == "**Phantom data: these figures say nothing about the real dataset**"
    assert "Task findings, protocol chexpert/official, phantom data." in lines
    assert "Task findings, protocol chexpert/official." in lines


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch, function):
    write_results(tmp_path, run=RUN, results=[RESULT])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, function, full_disk)
    with pytest.raises(InputError, match=r"results\.json: cannot be written \(No space left on device\)"):
        write_results(tmp_path, run=RUN, results=[])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_workdir_that_is_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_results(tmp_path / "file", run=RUN, results=[])
    with pytest.raises(InputError, match="file"):
        MetricLog(tmp_path / "file", resume_step=0)


def test_config_hash_is_canonical():
    same = [{"a": 1, "b": (1, 2.5)}, {"b": [1, np.float64(2.5)], "a": np.int32(1)}]
    assert len({report.config_hash(config) for config in same}) == 1
    assert report.config_hash({"a": 1}) != report.config_hash({"a": 1.5})
    assert len(report.config_hash({})) == 64
    with pytest.raises(InputError, match=r"config\.model\.layers\[1\]: found .*object"):
        report.config_hash({"model": {"layers": [1, object()]}})


def test_config_hash_takes_config_dicts():
    from ml_collections import ConfigDict

    assert report.config_hash(ConfigDict({"a": {"b": 1}})) == report.config_hash({"a": {"b": 1}})


def test_versions_and_devices_name_what_a_result_depends_on():
    import jax

    assert report.versions()["jax"] == jax.__version__
    assert report.versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report.devices() == {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": 1,
    }


def test_git_revision_is_that_of_this_tree(tmp_path, monkeypatch):
    revision = report.git_revision()
    assert revision is None or len(revision.removesuffix("-modified")) == 40
    monkeypatch.setattr(report, "__file__", str(tmp_path / "mediax" / "report" / "__init__.py"))
    assert report.git_revision() is None
