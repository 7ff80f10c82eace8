"""Drawing in several processes gives what one gives, in order; an error in one of them is that of the caller."""

import os

import pytest

from mediax.datasets import minijsrt_lung
from mediax.errors import InputError
from mediax.phantoms import pool


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(pool, "ALONE_SECONDS", 0)
    monkeypatch.setattr(pool, "cores", lambda: 2)


def test_the_order_is_kept_and_every_item_is_drawn_once(two_processes):
    assert list(pool.in_order(lambda item: 3 * item, range(50))) == list(range(0, 150, 3))
    assert list(pool.in_order(lambda item: item, [])) == []


def test_one_core_is_this_process(two_processes, monkeypatch):
    here, *others = pool.in_order(lambda _: os.getpid(), range(5))
    assert here == os.getpid()
    assert os.getpid() not in others
    monkeypatch.setattr(pool, "cores", lambda: 1)
    assert set(pool.in_order(lambda _: os.getpid(), range(5))) == {os.getpid()}


def test_processes_write_what_one_writes(tmp_path, monkeypatch, request):
    minijsrt_lung.phantom(tmp_path / "one", train=3, test=3, size=64)
    request.getfixturevalue("two_processes")
    minijsrt_lung.phantom(tmp_path / "two", train=3, test=3, size=64)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert len(files) == 12
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_error_reaches_the_caller(two_processes):
    def draw(item):
        if item == 3:
            raise InputError("image 3 has no lungs")

    with pytest.raises(InputError, match="image 3 has no lungs"):
        list(pool.in_order(draw, range(10)))
