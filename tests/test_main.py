"""The command line gives the config what was written, once."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

SHOW = """
from mediax import main, run
run.run = lambda config, *arguments, **options: print(config.backbone.options.depths, config.seed)
main.start(["mediax", "--config=configs/pneumoniamnist_convnext.py", "--workdir=unused",
            "--config.backbone.options.depths=(1, 2, 3)", "--config.seed=7"])
"""


def test_a_tuple_on_the_command_line_is_taken_once():
    done = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "(1, 2, 3) 7", done.stderr
