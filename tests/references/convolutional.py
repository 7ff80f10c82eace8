"""Runs the published EfficientNet-Lite and DenseNet in float64 and writes tests/references/goldens/*.npz.

    python tests/references/convolutional.py

Needs torch, torchvision, timm, efficientnet_lite_pytorch and torchxrayvision (written with 2.13.0, 0.29.2, 1.0.31,
0.1.0 and 1.5.7), which mediax itself does not use.
"""

import json

import torch
from backbones import run, save, shapes_of, timm, torchvision
from efficientnet_lite_pytorch import EfficientNet
from torchxrayvision.models import DenseNet as RadiographDenseNet


class Level(torch.nn.Module):
    """A copy: a place for a hook where no module's output is the level, safe from what changes it in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def efficientnet_lite(variant: str, **settings) -> torch.nn.Module:
    # With an image size the padding is computed for that size alone; without one for each image, as in TensorFlow.
    settings |= {"image_size": None, "drop_connect_rate": None, "dropout_rate": 0.0}
    return EfficientNet.from_name(f"efficientnet-lite{variant}", **settings)


def efficientnet_levels(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The last block of each resolution; for the coarsest, the activation after the last convolution."""
    strides = [index for index, block in enumerate(model._blocks) if block._depthwise_conv.stride[0] == 2]
    model._swish = torch.nn.ReLU6()
    model.last = Level()
    extract = model.extract_features
    model.extract_features = lambda image: model.last(extract(image))
    return [model._blocks[index - 1] for index in strides] + [model.last]


def densenet_levels(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The dense blocks; for the last, its BatchNorm and ReLU."""
    model.features.relu5 = torch.nn.ReLU()  # the ReLU that follows in forward() changes nothing then
    model.features.copy5 = Level()
    return [model.features.denseblock1, model.features.denseblock2, model.features.denseblock3, model.features.relu5]


def published_names() -> dict[str, dict[str, tuple[int, ...]]]:
    names = {}
    with torch.device("meta"):
        for variant in range(5):
            names[f"efficientnet_lite/{variant}/authors"] = shapes_of(efficientnet_lite(str(variant)))
            model = timm.create_model(f"tf_efficientnet_lite{variant}")
            names[f"efficientnet_lite/{variant}/timm"] = shapes_of(model)
        for variant in ("121", "161", "169", "201"):
            names[f"densenet/{variant}/torchvision"] = shapes_of(getattr(torchvision.models, f"densenet{variant}")())
            names[f"densenet/{variant}/timm"] = shapes_of(timm.create_model(f"densenet{variant}"))
        model = RadiographDenseNet()
        model.op_threshs = torch.empty(18)  # a buffer that comes with the published weights
        names["densenet/121/torchxrayvision"] = shapes_of(model)
    return names


def main() -> None:
    save("published_convolutional", {"names": json.dumps(published_names())})

    keep = (
        "_conv_stem.weight",
        "_bn0.running_mean",
        "_bn0.running_var",
        "_blocks.1._depthwise_conv.weight",
        "_fc.bias",
    )
    small = {"width_coefficient": 0.25, "depth_coefficient": 0.3}
    for name, size, settings in (("small", (47, 64), small), ("0", (64, 96), {})):
        model = efficientnet_lite("0", num_classes=10, **settings)
        save(f"efficientnet_lite_{name}", run(model, efficientnet_levels(model), size, keep))

    keep = ("features.conv0.weight", "features.norm5.running_mean", "features.norm5.running_var", "classifier.bias")
    keep += ("features.denseblock2.denselayer1.conv2.weight", "features.transition1.conv.weight")
    small = {"growth_rate": 8, "block_config": (2, 1, 2, 1), "num_init_features": 16}
    model = torchvision.models.DenseNet(num_classes=10, **small)
    save("densenet_small", run(model, densenet_levels(model), (71, 101), keep))
    model = torchvision.models.densenet121(num_classes=10)
    save("densenet_121", run(model, densenet_levels(model), (64, 96), keep[1:4]))


if __name__ == "__main__":
    main()
