"""Builds small autoencoders with Keras and writes tests/references/goldens/autoencoder_*: their .h5 file and results.

    KERAS_BACKEND=torch python tests/references/autoencoder.py

Needs keras, h5py and torch (written with 3.15.1, 3.16.0 and 2.13.0), which mediax itself does not use.
"""

from pathlib import Path

import keras
import numpy as np
import seeded
import torch
from keras import layers

GOLDENS = Path(__file__).parent / "goldens"
SIZE, WIDTHS, CODE = (16, 24), (4, 6), 5


def build(pooled: bool) -> tuple[keras.Model, keras.Model]:
    """The network with the pyramid, the code and the image as its outputs; and with the image alone."""
    convolution = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    x = image = keras.Input((*SIZE, 1))
    shown = []
    for width in WIDTHS:
        x = layers.Conv2D(width, strides=1 if pooled else 2, **convolution)(x)
        x = layers.MaxPooling2D()(x) if pooled else x
        shown.append(x)
    shape = x.shape[1:]
    x = layers.Dense(CODE)(layers.Flatten()(x))
    shown.append(x)
    x = layers.Reshape(shape)(layers.Dense(int(np.prod(shape)), activation="relu")(x))
    for width in reversed(WIDTHS):
        if pooled:
            x = layers.UpSampling2D()(layers.Conv2D(width, **convolution)(x))
        else:
            x = layers.Conv2DTranspose(width, strides=2, **convolution)(x)
    x = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)
    return keras.Model(image, [*shown, x]), keras.Model(image, x)


def main() -> None:
    for name in ("strided", "pooled"):
        everything, model = build(name == "pooled")
        for variable in model.weights:
            scale = 0.5 if len(variable.shape) > 1 else 0.1
            variable.assign(scale * seeded.normal(f"{name}/{variable.path}", tuple(variable.shape)))
        model.save(GOLDENS / f"autoencoder_{name}.h5")
        *pyramid, code, image = everything(seeded.normal("image", (2, *SIZE, 1)))
        (image * torch.from_numpy(seeded.normal("probe", tuple(image.shape)))).sum().backward()
        golden = {"code": code, "image": image} | {f"pyramid/{i}": level for i, level in enumerate(pyramid)}
        golden |= {f"gradient/{i}": variable.value.grad for i, variable in enumerate(model.trainable_weights)}
        arrays = {key: tensor.detach().cpu().numpy() for key, tensor in golden.items()}
        np.savez_compressed(GOLDENS / f"autoencoder_{name}.npz", **arrays)


if __name__ == "__main__":
    main()
