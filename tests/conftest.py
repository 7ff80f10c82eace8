"""What all tests share: one CPU, eight simulated devices on demand, parsed flags for grain's workers."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from absl import flags


@pytest.fixture(autouse=True, scope="session")
def parsed_flags():
    flags.FLAGS.mark_as_parsed()
