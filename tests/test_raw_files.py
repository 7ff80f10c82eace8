import errno
import os

import pytest

from mediax import raw_files
from mediax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.csv", "A.csv", "one/c.CSV", "one/two/d.csv", "p10/e.csv", ".hidden/f.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_walk_is_ordered_and_bounded(folder):
    def names(**options):
        return [str(path.relative_to(folder)) for path in raw_files.walk(folder, **options)]

    assert names() == ["A.csv", "b.csv", "one/c.CSV", "one/two/d.csv", "p10/e.csv"]
    assert names(depth=1) == ["A.csv", "b.csv", "one/c.CSV", "p10/e.csv"]
    assert names(depth=0) == ["A.csv", "b.csv"]
    assert names(closed=r"p\d\d|o") == ["A.csv", "b.csv", "one/c.CSV", "one/two/d.csv"]


def test_a_folder_that_is_closed_to_the_user_is_passed_by(folder, monkeypatch, caplog):
    scan = os.scandir

    def closed(path):
        if str(path).endswith("one"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert [path.name for path in raw_files.walk(folder)] == ["A.csv", "b.csv", "e.csv"]
    assert "one: not searched (Permission denied)" in caplog.text


def test_names_match_whatever_their_case(folder):
    found = [path.name for path in raw_files.walk(folder) if raw_files.matches(path, "[a-c].csv")]
    assert found == ["A.csv", "b.csv", "c.CSV"]


def test_only_one_file_may_match(folder):
    one, two = folder / "A.csv", folder / "b.csv"
    assert raw_files.only([], "table") is None
    assert raw_files.only([one], "table") == one
    with pytest.raises(InputError, match=r"table lies in .*A\.csv and in .*b\.csv: keep one of them"):
        raw_files.only([one, two], "table")
