"""The allocator keeps what it is given back."""

import subprocess
import sys

import pytest

# Touches a large block, frees it and takes it again; prints how many page faults the second time cost.
AGAIN = """
import resource
import numpy as np
from mediax import memory
assert memory.keep_freed()
np.ones(2**25, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**25, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has these settings")
def test_a_freed_block_is_taken_again_without_page_faults():
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # of the block's 8,192 pages
