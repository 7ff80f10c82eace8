"""Runs the published detectors in float64 and writes their goldens: mask_rcnn, faster_rcnn_padded, deformable_detr_*.

    python tests/references/detection.py

Needs torch, torchvision, timm, transformers and scipy (written with 2.13.0, 0.28.0, 1.0.31, 5.23.0 and 1.17.1), most of
which mediax itself does not use. The detectors get a pyramid of noise in place of a backbone.
"""

import copy
import json
import sys
from collections import OrderedDict

import numpy as np
import seeded
import torch
from backbones import GOLDENS, fill, save, shapes_of, summary, torchvision  # it declares operators before it imports it
from torchvision.models import detection

SIZE = (64, 128)
ODD_SIZE, PADDED_SIZE = (97, 130), (128, 160)  # torchvision pads images to multiples of 32
STRIDES = (4, 8, 16, 32)
CHANNELS = (6, 8, 10, 12)
CLASSES = 4
BOXES = np.float32(  # ymin, xmin, ymax, xmax as fractions that binary numbers express, of the first of two images
    [[8, 16, 40, 64], [24, 32, 56, 48], [4, 72, 60, 120]]
) / np.float32([64, 128, 64, 128])
LABELS = np.array([1, 3, 0])


def pyramid(strides: tuple[int, ...] = STRIDES, size: tuple[int, int] = SIZE) -> dict[int, torch.Tensor]:
    shapes = {s: (2, size[0] // s, size[1] // s, c) for s, c in zip(STRIDES, CHANNELS) if s in strides}
    arrays = {stride: seeded.normal(f"level {stride}", shape) for stride, shape in shapes.items()}
    return {s: torch.from_numpy(a).double().permute(0, 3, 1, 2).requires_grad_() for s, a in arrays.items()}


def pixels(boxes: np.ndarray) -> torch.Tensor:
    """xmin, ymin, xmax, ymax in pixels."""
    return torch.from_numpy((boxes * np.float32([*SIZE, *SIZE]))[:, [1, 0, 3, 2]]).double()


def structure_masks() -> np.ndarray:
    """u8[2,H,W,CLASSES], a structure for each class."""
    return (seeded.normal("masks", (2, *SIZE, CLASSES)) > -0.3).astype(np.uint8)


# torchvision's compiled operators need a torch built with it; these are the same rules.
def greedy_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    kept = []
    overlap = torchvision.ops.box_iou(boxes, boxes)
    for index in torch.argsort(-scores, stable=True).tolist():
        if not any(overlap[index, other] > threshold for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def pooled(features, rois, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    if isinstance(rois, list | tuple):
        rois = torch.cat([torch.cat([torch.full_like(r[:, :1], i), r], 1) for i, r in enumerate(rois)])
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    align = sys.modules["torchvision.ops.roi_align"]._roi_align  # torchvision's own, for other devices
    one_by_one = [align(features, roi[None], spatial_scale, rows, columns, sampling_ratio, aligned) for roi in rois]
    return torch.cat([features.new_zeros(0, features.shape[1], rows, columns), *one_by_one])


def without_compiled_operators() -> None:
    torch.compile = lambda function, **options: function  # else torchvision compiles its RoIAlign, for minutes
    torchvision.ops.boxes.nms = greedy_nms
    torchvision.ops.poolers.roi_align = pooled
    detection.roi_heads.roi_align = pooled


class Given(torch.nn.Module):
    """In place of a backbone: its pyramid is set from outside."""

    def __init__(self, width: int):
        super().__init__()
        self.out_channels = width
        extra = torchvision.ops.feature_pyramid_network.LastLevelMaxPool()
        self.fpn = torchvision.ops.FeaturePyramidNetwork(list(CHANNELS), width, extra)
        self.levels: dict[int, torch.Tensor] = {}

    def forward(self, images):
        return self.fpn(OrderedDict((str(index), level) for index, level in enumerate(self.levels.values())))


def small_mask_rcnn(width: int = 8, hidden: int = 16, candidates: int = 40, proposals: int = 30) -> torch.nn.Module:
    """`candidates` and `proposals` are those of training."""
    everything = 10**6  # samples: all of them, so that nothing is left to chance
    return detection.MaskRCNN(
        Given(width),
        rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(
            tuple((size,) for size in (8, 16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 5
        ),
        rpn_pre_nms_top_n_train=candidates,
        rpn_pre_nms_top_n_test=40,
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=30,
        rpn_batch_size_per_image=everything,
        box_batch_size_per_image=everything,
        box_score_thresh=0.2,
        box_detections_per_img=12,
        box_head=detection.faster_rcnn.TwoMLPHead(width * 49, hidden),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(hidden, 1 + CLASSES),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(width, width, 1 + CLASSES),
    )


def run_mask_rcnn() -> dict:
    """Detections; the losses of each image alone; the gradient of their mean over the images."""
    model = fill(small_mask_rcnn().double())
    levels = pyramid()
    images = [torchvision.models.detection.image_list.ImageList(torch.zeros(1, 3, *SIZE).double(), [SIZE])] * 2
    golden = {"shapes": json.dumps(shapes_of(model))}
    masks, total = structure_masks(), 0.0
    for row, image in enumerate(images):
        model.backbone.levels = {stride: level[row : row + 1] for stride, level in levels.items()}
        boxes = BOXES if row == 0 else BOXES[:0]
        inside = [masks[row, :, :, label] * within(box) for box, label in zip(boxes, LABELS)]
        target = {
            "boxes": pixels(boxes),
            "labels": torch.from_numpy(1 + LABELS[: len(boxes)]),
            "masks": torch.from_numpy(np.array(inside, np.uint8).reshape(-1, *SIZE)),
        }
        features = model.train().backbone(None)
        proposals, losses = model.rpn(image, features, [target])
        losses |= model.roi_heads(features, proposals, [SIZE], [target])[1]
        total = total + sum(losses.values()) / 2
        golden |= {f"losses/{row}/{name}": value.item() for name, value in losses.items()}
        with torch.no_grad():
            proposals, _ = model.eval().rpn(image, features, None)
            [found], _ = model.roi_heads(features, proposals, [SIZE], None)
        golden |= {f"found/{row}/{name}": array.numpy() for name, array in found.items()}
    total.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    keep = ("backbone.fpn.inner_blocks.1.0.weight", "rpn.head.conv.0.0.weight", "roi_heads.box_head.fc6.bias")
    golden |= summary("gradient", gradients, keep)
    return golden | {f"gradient/level/{s}": x.grad.permute(0, 2, 3, 1).numpy() for s, x in levels.items()}


def run_padded_faster_rcnn() -> dict:
    """Losses and detections of one image whose sides 32 does not divide, with more proposals in training."""
    model = small_mask_rcnn(candidates=70, proposals=45)
    for name in ("mask_roi_pool", "mask_head", "mask_predictor"):
        setattr(model.roi_heads, name, None)
    model = fill(model.double())
    model.backbone.levels = {stride: level[:1].detach() for stride, level in pyramid(size=PADDED_SIZE).items()}
    image = torchvision.models.detection.image_list.ImageList(torch.zeros(1, 3, *PADDED_SIZE).double(), [ODD_SIZE])
    target = {"boxes": pixels(BOXES), "labels": torch.from_numpy(1 + LABELS)}
    features = model.backbone(None)
    golden = {"shapes": json.dumps(shapes_of(model))}
    with torch.no_grad():
        proposals, losses = model.train().rpn(image, features, [target])
        losses |= model.roi_heads(features, proposals, [ODD_SIZE], [target])[1]
        golden |= {f"losses/{name}": value.item() for name, value in losses.items()}
        golden["proposals/training"] = len(proposals[0])
        proposals, _ = model.eval().rpn(image, features, None)
        [found], _ = model.roi_heads(features, proposals, [ODD_SIZE], None)
        golden["proposals/inference"] = len(proposals[0])
    return golden | {f"found/{name}": array.numpy() for name, array in found.items()}


def within(box: np.ndarray) -> np.ndarray:
    ymin, xmin, ymax, xmax = (box * np.float32([*SIZE, *SIZE])).astype(int)
    mask = np.zeros(SIZE, np.uint8)
    mask[ymin:ymax, xmin:xmax] = 1
    return mask


def published_mask_rcnn() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None))


class Levels(torch.nn.Module):
    """In place of transformers' backbone: a pyramid that is set from outside."""

    def __init__(self, config):
        super().__init__()
        self.channels = [width for stride, width in zip(STRIDES, CHANNELS) if stride > 4]
        self.levels: list[torch.Tensor] = []

    def forward(self, images):
        return self.levels


def small_deformable_detr(refine: bool, two_stage: bool) -> torch.nn.Module:
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr as modeling

    modeling.load_backbone = Levels
    config = DeformableDetrConfig(
        num_labels=CLASSES,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_n_points=2,
        decoder_n_points=2,
        num_queries=12,
        two_stage_num_proposals=12,
        with_box_refine=refine,
        two_stage=two_stage,
        auxiliary_loss=True,
        class_cost=2,  # the authors'
    )
    model = modeling.DeformableDetrForObjectDetection(config)
    if refine:  # as the authors share them: the decoder's are the detector's, and each layer has its own
        model.class_embed = torch.nn.ModuleList(map(copy.deepcopy, model.class_embed))
        model.model.decoder.bbox_embed = model.bbox_embed
    else:
        model.bbox_embed = torch.nn.ModuleList([model.bbox_embed[0]] * 2)
        model.class_embed = torch.nn.ModuleList([model.class_embed[0]] * 2)
    if two_stage:
        model.model.decoder.class_embed = model.class_embed
    return model


def run_deformable_detr(refine: bool, two_stage: bool) -> dict:
    """Class logits and boxes of the last layer, the losses of all, and the gradient of their weighted sum."""
    model = small_deformable_detr(refine, two_stage).double().eval()
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not name.startswith(("model.decoder.bbox_embed", "model.decoder.class_embed"))
        and (refine or not name.startswith(("bbox_embed.1", "class_embed.1")))
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    for name, array in seeded.tensors(shapes).items():
        parameters[name].data = torch.from_numpy(array).double()
    levels = pyramid(STRIDES[1:])
    model.model.backbone.model.levels = list(levels.values())
    center = np.stack(
        [BOXES[:, [1, 3]].mean(1), BOXES[:, [0, 2]].mean(1), BOXES[:, 3] - BOXES[:, 1], BOXES[:, 2] - BOXES[:, 0]], 1
    )
    labels = [
        {"class_labels": torch.from_numpy(LABELS[:count]), "boxes": torch.from_numpy(center[:count]).double()}
        for count in (3, 0)
    ]
    outputs = model(torch.zeros(2, 3, *SIZE).double(), labels=labels)
    outputs.loss.backward()
    golden = {"shapes": json.dumps(shapes)}
    golden |= {"logits": outputs.logits.detach().numpy(), "boxes": outputs.pred_boxes.detach().numpy()}
    golden |= {f"losses/{name}": value.item() for name, value in outputs.loss_dict.items()}
    gradients = {name: parameter.grad.numpy() for name, parameter in parameters.items() if parameter.grad is not None}
    golden |= summary("gradient", gradients, ("model.level_embed",))
    return golden | {f"gradient/level/{s}": x.grad.permute(0, 2, 3, 1).numpy() for s, x in levels.items()}


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    without_compiled_operators()
    save("mask_rcnn", run_mask_rcnn() | {"published": json.dumps(published_mask_rcnn())})
    save("faster_rcnn_padded", run_padded_faster_rcnn())
    for variant, settings in {"plain": (False, False), "refined": (True, False), "two_stage": (True, True)}.items():
        save(f"deformable_detr_{variant}", run_deformable_detr(*settings))


if __name__ == "__main__":
    main()
