"""Runs the authors' InternImage with its pure-PyTorch core in float64 and writes tests/references/goldens/internimage*.

    python tests/references/internimage.py --authors CHECKOUT

Needs torch and timm (written with 2.13.0 and 1.0.31), which mediax itself does not use. CHECKOUT is the folder
`classification` of a checkout of https://github.com/OpenGVLab/InternImage (written with commit 31c962d).
"""

import argparse
import contextlib
import functools
import importlib
import io
import json
import sys
import types

import torch
from backbones import run, save, shapes_of

POST = {"post_norm": True, "layer_scale": 1e-5}
HUGE = {"res_post_norm": True, "level2_post_norm": True, "dw_kernel_size": 5, "center_feature_scale": True}
VARIANTS = {
    "tiny": {"channels": 64, "depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32)},
    "small": {"channels": 80, "depths": (4, 4, 21, 4), "groups": (5, 10, 20, 40)} | POST,
    "base": {"channels": 112, "depths": (4, 4, 21, 4), "groups": (7, 14, 28, 56)} | POST,
    "large": {"channels": 160, "depths": (5, 5, 22, 5), "groups": (10, 20, 40, 80)} | POST,
    "xlarge": {"channels": 192, "depths": (5, 5, 24, 5), "groups": (12, 24, 48, 96)} | POST,
    "huge": {
        "channels": 320,
        "depths": (6, 6, 32, 6),
        "groups": (10, 20, 40, 80),
        "level2_post_norm_block_ids": [5, 11, 17, 23, 29],
        "use_clip_projector": True,
    }
    | HUGE,
}
SMALL = {"channels": 16, "depths": (1, 1, 2), "groups": (2, 4, 8), "num_classes": 10}
CLASSES = {
    "pre": {},
    "post": POST | {"offset_scale": 2.0},
    "both": HUGE | {"level2_post_norm_block_ids": [0]},
}


def authors_internimage(checkout: str):
    """The authors' class. Their compiled operator, which it imports and does not run here, is left out."""
    layers = importlib.import_module("timm.layers")
    sys.modules["timm.models.layers"] = layers  # its former name
    sys.modules["DCNv3"] = types.ModuleType("DCNv3")
    packages = types.ModuleType("pkg_resources")
    packages.get_distribution = lambda name: types.SimpleNamespace(version="1.0")
    sys.modules["pkg_resources"] = packages
    models = types.ModuleType("models")
    models.__path__ = [f"{checkout}/models"]
    sys.modules["models"] = models
    sys.path.insert(0, checkout)
    network = importlib.import_module("models.intern_image").InternImage

    def build(**settings):
        with contextlib.redirect_stdout(io.StringIO()):
            return network(core_op="DCNv3_pytorch", drop_path_rate=0.0, **settings)

    return build


def _show(place: torch.nn.Module, downsample: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
    place(inputs[0].permute(0, 3, 1, 2))  # channels first, as `run` expects


def levels(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Places for hooks: the stages' outputs before the downsampling; for the coarsest, what the classifier pools."""
    places = []
    for level in model.levels[:-1]:
        place = torch.nn.Identity()
        level.downsample.register_forward_pre_hook(functools.partial(_show, place))
        places.append(place)
    return [*places, model.conv_head]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", metavar="CHECKOUT", required=True)
    build = authors_internimage(parser.parse_args().authors)
    torch.linspace = functools.partial(torch.linspace, device="cpu")  # the network reads it while it is built
    with torch.device("meta"):
        names = {f"internimage/{variant}/authors": shapes_of(build(**s)) for variant, s in VARIANTS.items()}
    save("published_internimage", {"names": json.dumps(names)})
    keep = ("levels.0.blocks.0.dcn.dw_conv.0.weight", "levels.2.blocks.1.dcn.offset.weight", "head.bias")
    for name, settings in CLASSES.items():
        model = build(**SMALL, **settings)
        save(f"internimage_{name}", run(model, levels(model), (45, 64), keep))


if __name__ == "__main__":
    main()
