"""`python -m mediax.pretrained`: the list is complete, files are recognised, checked and converted."""

import json
import re
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
from flax import nnx
from references import compare
from safetensors.numpy import save_file

from mediax import pretrained
from mediax.backbones import resnet
from mediax.pretrained.__main__ import main, published


@pytest.fixture(scope="module")
def resnet_18(tmp_path_factory):
    """ResNet-18's tensors under torchvision's names, in torch's layout, with small random values."""
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    generator = np.random.default_rng(0)
    save_file({name: generator.normal(size=shape).astype(np.float16) for name, shape in names_and_shapes()}, path)
    return path


def names_and_shapes():
    yield from norm_of("bn1", 64)
    yield "conv1.weight", (64, 3, 7, 7)
    channels = 64
    for stage in range(4):
        width = 64 * 2**stage
        for block in range(2):
            prefix = f"layer{stage + 1}.{block}"
            for index, inputs in ((1, channels), (2, width)):
                yield f"{prefix}.conv{index}.weight", (width, inputs, 3, 3)
                yield from norm_of(f"{prefix}.bn{index}", width)
            if channels != width:
                yield f"{prefix}.downsample.0.weight", (width, channels, 1, 1)
                yield from norm_of(f"{prefix}.downsample.1", width)
            channels = width
    yield "fc.weight", (1000, 512)
    yield "fc.bias", (1000,)


def norm_of(name, width):
    for word in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{word}", (width,)


NORMALISATIONS = {
    "convnext": ("0.485 0.456 0.406", "0.229 0.224 0.225"),
    "densenet": ("0.485 0.456 0.406", "0.229 0.224 0.225"),
    "efficientnet_lite": ("0.498039 0.498039 0.498039", "0.501961 0.501961 0.501961"),
    "internimage": ("0.485 0.456 0.406", "0.229 0.224 0.225"),
    "resnet": ("0.485 0.456 0.406", "0.229 0.224 0.225"),
    "swin": ("0.485 0.456 0.406", "0.229 0.224 0.225"),
    "vit": ("0.485 0.456 0.406", "0.229 0.224 0.225"),
}


def test_the_list_names_every_file_with_source_licence_hash_and_normalisation(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert {backbone for backbone, _, _ in published()} == set(NORMALISATIONS)
    for backbone, variant, file in published():
        mean, std = NORMALISATIONS[backbone]
        if "torchxrayvision" in file["source"]:
            mean, std = "0.5", "0.000488281"  # one grey channel, of -1024 to 1024
        digest = f"SHA-256 {file['sha256']}" if "sha256" in file else "hash: none published"
        lines = (
            rf"  {variant}: {re.escape(file['file'])}, .* px, {re.escape(file['licence'])}, {digest}\n"
            rf"    mean {mean}, std {std}\n"
            rf"    {re.escape(file['source'])}\n"
        )
        assert re.search(lines, printed), file


def test_the_list_of_one_backbone_and_of_a_typo(capsys):
    assert main(["list", "resnet"]) == 0
    printed = capsys.readouterr().out
    assert "resnet18-f37072fd.pth" in printed and "densenet" not in printed
    assert main(["list", "resnets"]) == 2
    assert "did you mean 'resnet'" in capsys.readouterr().err


def test_a_file_is_recognised_and_its_tensors_are_accounted_for(resnet_18, tmp_path, capsys):
    assert main(["convert", str(resnet_18), "--to", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[:-1] == [
        f"{resnet_18}: 102 tensors",
        "  backbone resnet, variant 18: 100 tensors used",
        "    left over: head/linear/bias",
        "    left over: head/linear/kernel",
    ]
    written = tmp_path / "new" / "mine.safetensors"
    original, converted = pretrained.read(resnet_18), pretrained.read(written)
    assert original.keys() == converted.keys()
    assert all(np.array_equal(original[name], converted[name]) for name in original)
    header = json.loads(written.read_bytes()[8 : 8 + struct.unpack("<Q", written.read_bytes()[:8])[0]])
    assert header["__metadata__"]["sha256"] == pretrained.sha256(resnet_18)
    module = nnx.eval_shape(lambda: resnet.Backbone(variant="18", rngs=nnx.Rngs(0)))
    shapes = {name: nnx.to_pure_dict(nnx.state(module, kind)) for name, kind in KINDS.items()}
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    _, report = pretrained.warm_start(variables, resnet.translate(converted)["backbone"], part="backbone")
    assert not report.left_over and not report.missing


KINDS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


@pytest.fixture
def changed(resnet_18, tmp_path):
    """Writes the ResNet-18 with some tensors changed, or taken out if None; returns the file."""

    def write(**changes):
        tensors = pretrained.read(resnet_18) | {name.replace("_", "."): array for name, array in changes.items()}
        save_file(
            {name: array for name, array in tensors.items() if array is not None}, tmp_path / "changed.safetensors"
        )
        return str(tmp_path / "changed.safetensors")

    return write


def test_an_incomplete_file_is_refused_by_the_name_of_what_is_missing(changed, tmp_path, capsys):
    path = changed(bn1_weight=None)
    assert main(["convert", path, "--to", str(tmp_path / "new")]) == 2
    printed = capsys.readouterr()
    assert "backbone resnet, variant 18: 99 tensors used\n    missing: stem/norm/scale\n" in printed.out
    assert "not written, it lacks 1 tensors of resnet, variant 18: stem/norm/scale." in printed.err
    assert not (tmp_path / "new").exists()
    assert main(["convert", path, "--to", str(tmp_path / "new"), "--incomplete"]) == 0
    assert "missing: stem/norm/scale" in capsys.readouterr().out
    assert (tmp_path / "new" / "changed.safetensors").is_file()


def test_norms_of_levels_are_recognised(tmp_path, capsys):
    shapes = json.loads(str(compare.load("swin_names")["names"]))["swin/tiny/authors"]
    tensors = {name: shape for name, shape in shapes.items() if not re.match(r"(head|norm)\.", name)}
    tensors |= {f"norm{level}.{word}": (96 * 2**level,) for level in (1, 2, 3) for word in ("weight", "bias")}  # DINO's
    save_file({name: np.zeros(shape, np.float16) for name, shape in tensors.items()}, tmp_path / "swin.safetensors")
    assert main(["convert", str(tmp_path / "swin.safetensors"), "--to", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"  backbone swin, variant tiny with level_norms: \d+ tensors used\nwritten", printed)


def test_a_tensor_of_another_shape_is_said_with_both_shapes(changed, tmp_path, capsys):
    path = changed(conv1_weight=np.zeros((64, 4, 7, 7), np.float32))
    assert main(["convert", path, "--to", str(tmp_path / "new")]) == 0
    said = "other shape: stem/conv/kernel ([7, 7, 4, 64] in the file, [7, 7, 3, 64] in the network)"
    assert f"variant 18: 99 tensors used\n    {said}\n" in capsys.readouterr().out


def test_one_grey_channel_fits_and_what_is_left_over_is_named(changed, tmp_path, capsys):
    grey, more = np.zeros((64, 1, 7, 7), np.float32), np.zeros((512, 512, 3, 3), np.float32)
    path = changed(conv1_weight=grey, layer4_2_conv1_weight=more)
    assert main(["convert", path, "--to", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"variant 18: 100 tensors used\n    left over: stages/3/2/\S+/kernel\n    left over: head/", printed
    )
    assert "other shape" not in printed and "missing" not in printed


def test_a_head_is_compared_with_its_default_build(tmp_path, capsys):
    generator = np.random.default_rng(0)
    shapes = json.loads(str(compare.load("unet_resnet_18")["shapes"]))
    tensors = {name: generator.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    del tensors["decoder.blocks.0.conv1.1.weight"]
    save_file(tensors, tmp_path / "unet.safetensors")
    assert main(["convert", str(tmp_path / "unet.safetensors"), "--to", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert "backbone resnet, variant 18: 100 tensors used\n  head unet, built by default for 1 class: " in printed
    assert "    missing: blocks/0/norms/0/scale\n" in printed
    assert "    other shape: output/kernel ([3, 3, 16, 2] in the file, [3, 3, 16, 1] in the network)\n" in printed


def test_a_file_that_is_not_what_its_name_says_is_refused(resnet_18, tmp_path, capsys):
    impostor = tmp_path / "resnet18-f37072fd.pth"
    impostor.write_bytes(resnet_18.read_bytes())
    assert main(["convert", str(impostor), "--to", str(tmp_path)]) == 2
    assert "expected f37072fd..." in capsys.readouterr().err


def test_unknown_names_and_files_are_said(tmp_path, capsys):
    save_file({"strange.weight": np.zeros((2, 2), np.float32)}, tmp_path / "strange.safetensors")
    assert main(["convert", str(tmp_path / "strange.safetensors"), "--to", str(tmp_path)]) == 2
    assert "no backbone knows all of its 1 names" in capsys.readouterr().err
    assert main(["convert", "resnet18-f37072fe.pth", "--to", str(tmp_path)]) == 2
    assert "did you mean 'resnet18-f37072fd.pth'" in capsys.readouterr().err
    path = str(tmp_path / "strange.safetensors")
    assert main(["convert", path, "--to", str(tmp_path), "--backbone", "resnet"]) == 2
    assert "strange.weight" in capsys.readouterr().err


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class _Short(_Quiet):
    """Promises more bytes than it sends."""

    def send_header(self, keyword, value):
        super().send_header(keyword, str(int(value) + 7) if keyword == "Content-Length" else value)


@pytest.fixture
def serve(resnet_18):
    servers = []

    def start(handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=resnet_18.parent))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def test_a_url_is_downloaded_whole_or_not_at_all(serve, resnet_18, tmp_path, capsys):
    assert main(["convert", f"{serve(_Quiet)}/mine.safetensors", "--to", str(tmp_path / "good")]) == 0
    # Of a file that is not on the list, nobody knows the hash: its name tells the address.
    (converted,) = (tmp_path / "good").glob("*.safetensors")
    assert re.fullmatch(r"[0-9a-f]{8}-mine\.safetensors", converted.name)
    assert (tmp_path / "good" / "downloads" / converted.name).read_bytes() != converted.read_bytes()
    assert main(["convert", str(converted), "--to", str(tmp_path / "good")]) == 2
    assert "overwritten by its own conversion" in capsys.readouterr().err
    assert main(["convert", f"{serve(_Quiet)}/none.safetensors", "--to", str(tmp_path / "none")]) == 2
    assert "404" in capsys.readouterr().err
    assert main(["convert", f"{serve(_Short)}/mine.safetensors", "--to", str(tmp_path / "short")]) == 2
    assert not [path for path in (tmp_path / "short").rglob("*") if path.is_file()]
