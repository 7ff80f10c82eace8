"""The command line gives the config what was written, once."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

SHOW = """
from mediax import main, run
run.run = lambda config, *arguments, **options: print(config.backbone.options.depths, config.optimizer.per_part)
main.start(["mediax", "--config=configs/pneumoniamnist_convnext.py", "--workdir=unused",
            "--config.backbone.options.depths=(1, 2, 3)", "--config.optimizer.per_part['head/*'].peak=1e-3"])
"""


def test_a_tuple_on_the_command_line_is_taken_once_and_dicts_are_begun():
    done = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["(1,", "2,", "3)", "head/*:", "peak:", "0.001"], done.stderr


def test_help_is_given_beside_a_config_too():
    command = [sys.executable, "-m", "mediax.main", "--config=configs/pneumoniamnist_convnext.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr  # absl's own code after a help text
    assert "--workdir" in done.stdout
