"""`python -m mediax.datasets`, on phantoms."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mediax import builder, catalog, contact_sheet
from mediax.datasets import __main__ as commands


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Raw trees of CheXpert and PneumoniaMNIST, and CheXpert built twice: (raw, built)."""
    raw, built = (tmp_path_factory.mktemp(name) for name in ("raw", "built"))
    sizes = ["--patients=3", "--valid_patients=2", "--test_patients=2", "--size=64"]
    assert commands.main(["phantom", "chexpert", str(raw), "--seed=1", *sizes]) == 0
    assert commands.main(["phantom", "medmnist", str(raw), "--train=6", "--validation=3", "--test=3"]) == 0
    for config in ("size=64", "size=48", "encoding=jpeg95"), ("size=64",):
        chosen = ["--config", *config[-2:]]
        assert commands.main(["prepare", "chexpert", f"--manual_dir={raw}", f"--data_dir={built}", *chosen]) == 0
    return raw, built


def run(capsys, *arguments):
    code = commands.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_table_lists_every_dataset_and_what_is_built(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "3000")
    (folders[1] / "medmnist" / "pneumoniamnist" / "incomplete.1.0.0").mkdir(parents=True, exist_ok=True)
    code, out, _ = run(capsys, "--data_dir", folders[1])
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == {"dataset", *catalog.names("datasets")}
    assert "__main__" not in lines
    assert "classification" in lines["chexpert"]
    assert "48-jpeg95 (" in lines["chexpert"] and "64 (" in lines["chexpert"]
    assert "pneumoniamnist (not complete)" in lines["medmnist"]


def test_narrow_table_wraps_its_cells(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = commands.table(("name", "words"), [("x", "word " * 40), ("y", "")])
    assert max(map(len, text.splitlines())) <= 60
    assert text.split().count("word") == 40


def test_show_says_what_to_download_and_where_to_put_it(capsys):
    code, out, _ = run(capsys, "show", "chexpert")
    source = catalog.load("datasets", "chexpert").SOURCE
    assert code == 0
    for said in (source.homepage, source.licence, "valid/patient64541/study1", "views=all    all | frontal | lateral"):
        assert said in out
    assert "--release=" in out


def test_prepare_prints_folder_and_counts_and_verify_agrees(folders, capsys):
    raw, built = folders
    code, out, _ = run(capsys, "prepare", "chexpert", "--data_dir", built, "--config", "size=64")
    assert code == 0
    directory = out.splitlines()[0]
    counts = dict(line.split()[:2] for line in out.splitlines()[2:])
    assert counts == {split: str(len(builder.Records(directory, split))) for split in counts}
    code, out, _ = run(capsys, "verify", "chexpert", "--manual_dir", raw, "--data_dir", built, "--config", "size=64")
    assert code == 0
    assert out.splitlines()[-1] == "no problems"
    header, total = (next(line for line in out.splitlines() if mark in line) for mark in ("train", "images"))
    assert dict(zip(header.split(), total.split()[1:])) == counts
    records = builder.Records(directory, "train")
    fracture = [catalog.load("datasets", "chexpert").read(record)["labels"][12] for record in records]
    known = f"{fracture.count(1)}, {fracture.count(0)}, 0"
    assert known in next(line for line in out.splitlines() if line.startswith("Fracture"))


def test_verify_reports_all_problems(tmp_path, capsys):
    phantom = ["--patients=4", "--valid_patients=2", "--size=48", "--release=small"]
    assert commands.main(["phantom", "chexpert", str(tmp_path), *phantom]) == 0
    pictures = sorted((tmp_path / "chexpert").rglob("*frontal.jpg"))
    corrupt, shortened, absent = pictures[0], pictures[1], pictures[2]
    corrupt.write_bytes(b"no image")
    shortened.write_bytes(shortened.read_bytes()[:300])
    absent.unlink()
    table = next((tmp_path / "chexpert").rglob("train.csv"))
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[-1], ""]))
    code, out, error = run(capsys, "verify", "chexpert", "--manual_dir", tmp_path, "--data_dir", tmp_path / "built")
    assert code == 2
    assert "4 problems" in out
    assert f"{corrupt}: cannot decode" in error and f"{shortened}: cannot decode" in error
    assert f"the image {absent} is absent" in error
    assert "was listed before, by" in error
    assert "unreadable images" in out
    assert not (tmp_path / "built").exists()


def test_preview_draws_a_sheet(folders, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = ["--data_dir", folders[1], "--out", sheet, "--config", "size=64", "--count", 3, "--split", "valid"]
    code, out, _ = run(capsys, "preview", "chexpert", *arguments)
    assert code == 0
    assert "images of chexpert, split valid" in out
    assert np.asarray(Image.open(sheet).convert("RGB")).std() > 20


def test_sheet_colours_boxes_masks_and_polygons_by_class(tmp_path):
    mask = np.zeros((40, 60, 2), np.uint8)
    mask[:, :20, 0] = 1  # touches three borders
    example = {
        "image": np.full((40, 60, 1), 128, np.uint8),
        "masks": mask,
        "boxes": np.float32([[0.1, 0.5, 0.9, 0.9]]),
        "box_labels": np.int32([1]),
        "polygons": [np.float32([[0.2, 0.6], [0.8, 0.6], [0.8, 0.8]])],
        "keypoints": np.float32([[0.5, 0.45]]),
        "labels": np.float32([1, 0, np.nan, 0.7]),
        "target": np.float32([61.5]),
    }
    names = {"mask_classes": ("Heart", "Lungs"), "box_classes": ("Mass", "Nodule")}
    contact_sheet.draw(tmp_path / "a.png", [example], **names)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3).astype(int)
    for colour, drawn in zip(contact_sheet.COLOURS, (100, 1, 1, 100)):  # Lungs and Mass: in the legend alone
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(1) < 25).sum() >= drawn, colour
    lines = contact_sheet.describe(example, ("Edema", "Mass", "Hernia", "Nodule"), ("age in years",))
    assert lines == ["Edema", "Nodule 0.70", "1 of 4 unknown", "age in years: 61.5"]
    assert contact_sheet.describe({"labels": np.float32([0])}, ("Edema",), ()) == ["no class present"]
    assert contact_sheet.describe({"labels": np.full(1, np.nan)}, ("Edema",), ()) == ["no class known"]


def test_the_smaller_of_two_masks_lies_on_top_and_an_unknown_one_is_not_drawn(tmp_path):
    masks = np.zeros((40, 60, 2), np.uint8)
    masks[5:35, 5:55] = 1
    masks[5, 5, 0] = 0  # its border is otherwise that of the other
    image = np.full((40, 60, 1), 128, np.uint8)

    def drawn(masks, **fields):
        example = {"image": image, "masks": masks, **fields}
        contact_sheet.draw(tmp_path / "a.png", [example], mask_classes=("Lungs", "Body"))
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        below = pixels[len(pixels) // 4 :].reshape(-1, 3)  # without the legend
        wanted = [[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in contact_sheet.COLOURS[:2]]
        return [int((np.abs(below - colour).max(1) < 80).sum()) for colour in wanted]

    lungs, body = drawn(masks)
    assert lungs > 5 * body > 0
    assert drawn(masks[..., ::-1])[1] > 5 * drawn(masks[..., ::-1])[0] > 0
    assert drawn(masks, mask_valid=np.array([False, True]))[0] == 0
    example = {"image": image, "masks": masks, "mask_valid": np.array([False, True]), "boxes_known": np.bool_(False)}
    assert contact_sheet.describe(example, (), ()) == ["1 of 2 masks unknown", "boxes unknown"]


def test_sheet_shows_both_images_of_a_pair_with_their_points(tmp_path):
    points = np.float32([[0.25, 0.25], [0.75, 0.5]])
    pair = {"image": np.full((40, 40, 3), 60, np.uint8), "moving": np.full((40, 40, 3), 200, np.uint8)}
    pair |= {"keypoints": points, "moving_keypoints": points[:, ::-1]}
    contact_sheet.draw(tmp_path / "pair.png", [pair])
    pixels = np.asarray(Image.open(tmp_path / "pair.png").convert("RGB")).astype(int)
    halves = np.array_split(pixels, 2, axis=1)
    for half, grey in zip(halves, (60, 200)):
        assert (half == grey).all(-1).mean() > 0.5
        assert (np.ptp(half, axis=-1) > 100).sum() > 20  # the points are in colour
    captions = [contact_sheet.describe(part, (), ()) for part in contact_sheet.parts(pair)]
    assert captions == [["fixed, 2 points"], ["moving, 2 points"]]
    unknown = {**pair, "keypoints": np.full((2, 2), np.nan)}
    assert contact_sheet.describe(contact_sheet.parts(unknown)[0], (), ()) == ["fixed, points unknown"]


def test_overlap_finds_the_same_images_in_two_builds(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    pairs = tmp_path / "pairs.csv"
    names = ("chexpert/64", "chexpert/size=48,encoding=jpeg95")
    code, out, _ = run(capsys, "overlap", *names, "--data_dir", folders[1], "--csv", pairs)
    assert code == 2  # 64 is none of the named configs
    code, out, _ = run(capsys, "overlap", "chexpert/size=64", names[1], "--data_dir", folders[1], "--csv", pairs)
    assert code == 0
    rows = list(csv.DictReader(pairs.open()))
    records = builder.Records(builder.prepare("chexpert", data_dir=folders[1], builder_config={"size": 64}), "train")
    shared = {row["id_a"] for row in rows if row["split_a"].endswith("train") and row["split_b"].endswith("95 train")}
    assert {record["id"] for record in records} <= shared
    assert all(row["same_id"] == "1" or int(row["differing_bits"]) <= 12 for row in rows)
    line = next(line for line in out.splitlines() if line.count(" train ") == 2)
    assert line.split()[-3:-1] == [str(len(records)), "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "chexprt"], "did you mean 'chexpert'"),
        (["prepare", "chexpert", "--config", "sise=3"], "did you mean 'size'"),
        (["prepare", "chexpert", "--config", "size=64", "crop"], "'crop': expected key=value"),
        (["prepare", "chexpert", "--workres=3"], "unexpected argument '--workres=3'"),
        (["phantom", "chexpert", "FOLDER", "--patient=3"], "did you mean 'patients'"),
        (["phantom", "chexpert", "FOLDER", "3"], "options are written --key=value"),
        (["phantom", "chexpert", "FOLDER", "--patients=eight"], "expected a value like the default, "),
        (["phantom", "chexpert", "FOLDER", "--patients=True"], "expected a value like the default, "),
        (["preview", "chexpert", "--out=sheet.png"], "no built set"),
        (["verify", "chexpert"], "the raw data of CheXpert v1.0 is missing"),
    ],
)
def test_bad_input_is_one_message(tmp_path, capsys, arguments, message):
    arguments = [str(tmp_path / "there") if argument == "FOLDER" else argument for argument in arguments]
    if arguments[0] not in ("show", "phantom"):
        arguments.append(f"--data_dir={tmp_path}")
    code, _, error = run(capsys, *arguments)
    assert code == 2
    assert error.startswith("mediax: ") and message in error


def test_data_dir_may_stand_before_the_command(monkeypatch):
    for arguments in (["--data_dir=x", "verify", "chexpert"], ["verify", "chexpert", "--data_dir=x"]):
        assert commands.parse(arguments)[0].data_dir == "x"
    monkeypatch.setenv("TFDS_DATA_DIR", "y")
    assert commands.parse(["verify", "chexpert"])[0].data_dir == commands.parse([])[0].data_dir == "y"


def test_phantom_overwrites_nothing(folders, capsys):
    code, _, error = run(capsys, "phantom", "medmnist", folders[0])
    assert code == 2
    assert "exists and is not empty" in error


def test_module_runs_as_a_command():
    command = [sys.executable, "-m", "mediax.datasets", "show", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[0].startswith("mediax: datasets has no 'nothing'")
