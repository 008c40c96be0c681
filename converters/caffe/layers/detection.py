"""SSD's layers (Liu et al. 2016): boxes to start from, and the detections in the end."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from converters.caffe.caffe_pb2 import DetectionOutputParameter, PriorBoxParameter
from converters.caffe.context import Context, layer

__all__: list[str] = []

_MOST_BOXES, _MOST_SHAPES = 2**20, 1000


@layer("PriorBox")
def prior_box(c: Context) -> ir.Value:
    """Boxes [1, 2, 4 · boxes] around the centre of each place of the first bottom; the second is the image.

    Corners as shares of the image, then the four variances of each box. Computed here: sizes must be known.
    """
    c.need(2)
    param = c.layer.prior_box_param
    height, width = c.size(2), c.size(3)
    image_h = param.img_h or param.img_size or c.size(2, c.bottoms[1])
    image_w = param.img_w or param.img_size or c.size(3, c.bottoms[1])
    step_h = param.step_h or param.step or image_h / height
    step_w = param.step_w or param.step or image_w / width
    sizes = _box_sizes(c)
    count = height * width * len(sizes)
    if count > _MOST_BOXES:
        raise c.error(f"makes {count:,} boxes; {_MOST_BOXES:,} is the most")
    center_x = (np.arange(width, dtype=np.float32) + param.offset) * step_w
    center_y = (np.arange(height, dtype=np.float32) + param.offset) * step_h
    half = np.array(sizes, np.float32) / 2
    boxes = np.empty((height, width, len(sizes), 4), np.float32)
    boxes[..., 0] = (center_x[None, :, None] - half[:, 0]) / image_w
    boxes[..., 1] = (center_y[:, None, None] - half[:, 1]) / image_h
    boxes[..., 2] = (center_x[None, :, None] + half[:, 0]) / image_w
    boxes[..., 3] = (center_y[:, None, None] + half[:, 1]) / image_h
    if param.clip:
        boxes = boxes.clip(0, 1)
    variances = list(param.variance) or [0.1]
    if len(variances) not in (1, 4):
        raise c.error(f"has {len(variances)} variances; 1 or 4 are needed")
    spread = np.tile(np.array(variances * (4 // len(variances)), np.float32), count)
    return c.constant("boxes", np.stack([boxes.reshape(-1), spread])[None])


def _box_sizes(c: Context) -> list[tuple[float, float]]:
    """Width and height of the boxes of one place: each minimum's square, its mean with the maximum, then the ratios."""
    param = c.layer.prior_box_param
    if not param.min_size or min(param.min_size) <= 0:
        raise c.error("needs min_size, more than 0")
    if param.max_size and len(param.max_size) != len(param.min_size):
        raise c.error(f"has {len(param.min_size)} min_size and {len(param.max_size)} max_size")
    if any(most <= least for least, most in zip(param.min_size, param.max_size, strict=False)):
        raise c.error("each max_size must be more than its min_size")
    if len(param.min_size) * (len(param.aspect_ratio) + 1) > _MOST_SHAPES:
        raise c.error(f"has more than {_MOST_SHAPES} shapes of boxes")
    ratios = [1.0]
    for ratio in param.aspect_ratio:
        if ratio <= 0:
            raise c.error(f"has an aspect_ratio of {ratio}")
        if all(abs(ratio - other) >= 1e-6 for other in ratios):
            ratios += [ratio, 1 / ratio] if param.flip else [ratio]
    sizes = []
    for index, least in enumerate(param.min_size):
        sizes.append((least, least))
        if param.max_size:
            mean = math.sqrt(least * param.max_size[index])
            sizes.append((mean, mean))
        sizes += [(least * math.sqrt(r), least / math.sqrt(r)) for r in ratios[1:]]
    return sizes


@layer("DetectionOutput")
def detection_output(c: Context) -> ir.Value:
    """Rows [image, class, score, left, top, right, bottom] of what is left after suppression: [1, 1, rows, 7].

    They come by image, class, and falling score. Where nothing is found there are no rows (Caffe writes one of −1).
    """
    op, param = c.op, c.layer.detection_output_param
    if len(c.bottoms) < 3:
        raise c.error("needs locations, scores and prior boxes")
    if param.num_classes < 1:
        raise c.error("num_classes must be 1 or more")
    if param.nms_param.eta != 1:
        raise c.error("suppression that loosens (eta other than 1) has no counterpart in ONNX")
    priors = c.size(2, c.bottoms[2]) // 4
    if priors < 1:
        raise c.error("has no prior boxes")
    groups = 1 if param.share_location else param.num_classes
    for what, bottom, size in (("locations", 0, 4 * groups), ("scores", 1, param.num_classes)):
        found = math.prod(c.size(axis, c.bottoms[bottom]) for axis in range(1, c.rank(c.bottoms[bottom])))
        if found != priors * size:
            raise c.error(f"has {found:,} {what} for {priors:,} prior boxes, which need {priors * size:,}")
    classes = [k for k in range(param.num_classes) if k != param.background_label_id]
    if not classes:
        raise c.error("has no class but the background")
    boxes = _decoded(c, priors, len(classes))  # [N, classes or 1, priors, 4]
    scores = op.Transpose(op.Reshape(c.bottoms[1], op.constant([0, priors, param.num_classes])), perm=[0, 2, 1])
    scores = op.Gather(scores, np.array(classes), axis=1)  # [N, classes, priors]

    top_k = param.nms_param.top_k
    most = min(top_k, priors) if top_k > 0 else priors
    best, places = op.TopK(scores, op.constant([most]), axis=2, _outputs=2)
    places.dtype = ir.DataType.INT64
    index = op.Expand(op.Unsqueeze(places, op.constant([3])), op.constant([1, 1, 1, 4]))
    if param.share_location:
        boxes = op.Expand(boxes, op.constant([1, len(classes), 1, 1]))
    chosen = op.GatherElements(boxes, index, axis=2)  # [N, classes, most, 4]

    each = len(classes) * most
    kept = op.NonMaxSuppression(
        op.Reshape(chosen, op.constant([-1, most, 4])),
        op.Reshape(best, op.constant([-1, 1, most])),
        op.constant([most]),
        op.constant(np.array([param.nms_param.nms_threshold], np.float32)),
        op.constant(np.array([_least_score(param)], np.float32)),
    )
    kept.dtype = ir.DataType.INT64
    row, _, column = op.Split(kept, axis=1, num_outputs=3, _outputs=3)
    flat = op.Reshape(best, op.constant([-1]))
    one = op.Expand(op.constant(np.zeros(1, np.float32)), op.Shape(row, start=0, end=1))
    mask = op.ScatterND(op.Mul(flat, 0.0), op.Add(op.Mul(row, op.constant(most)), column), op.Add(one, 1.0))
    mask = op.Reshape(mask, op.constant([-1, each]))
    if 0 < param.keep_top_k < each:
        mask = _best_of_image(c, mask, op.Reshape(best, op.constant([-1, each])), each)
    rows = op.Reshape(_rows(c, classes, most, best, chosen), op.constant([-1, 7]))
    found = op.Compress(rows, op.Cast(op.Reshape(mask, op.constant([-1])), to=ir.DataType.BOOL), axis=0)
    return c.shaped(op.Unsqueeze(found, op.constant([0, 1])), [1, 1, None, 7])


def _least_score(param: DetectionOutputParameter) -> float:
    return param.confidence_threshold if param.HasField("confidence_threshold") else float(np.finfo(np.float32).min)


def _best_of_image(c: Context, mask: ir.Value, scores: ir.Value, each: int) -> ir.Value:
    """`mask` with only the keep_top_k best of each image."""
    op = c.op
    lowest = op.constant(np.array(np.finfo(np.float32).min))
    among = op.Where(op.Cast(mask, to=ir.DataType.BOOL), scores, lowest)
    _, best = op.TopK(among, op.constant([c.layer.detection_output_param.keep_top_k]), axis=1, _outputs=2)
    best.dtype = ir.DataType.INT64
    ones = op.Expand(op.constant(np.ones((1, 1), np.float32)), op.Shape(best))
    return op.Mul(mask, op.ScatterElements(op.Mul(mask, 0.0), best, ones, axis=1))


def _rows(c: Context, classes: list[int], most: int, scores: ir.Value, boxes: ir.Value) -> ir.Value:
    """[N, classes, most, 7]"""
    op, last = c.op, c.op.constant([3])
    zeros = op.Unsqueeze(op.Mul(scores, 0.0), last)
    n = op.Shape(scores, start=0, end=1)
    images = op.Range(op.constant(0), op.Squeeze(n, op.constant([0])), op.constant(1))
    images = op.Reshape(op.Cast(images, to=ir.DataType.FLOAT), op.constant([-1, 1, 1, 1]))
    labels = op.constant(np.array(classes, np.float32).reshape(1, -1, 1, 1))
    return op.Concat(op.Add(zeros, images), op.Add(zeros, labels), op.Unsqueeze(scores, last), boxes, axis=3)


def _decoded(c: Context, priors: int, classes: int) -> ir.Value:
    """Locations as corners of boxes: [N, classes or 1, priors, 4]."""
    op, param = c.op, c.layer.detection_output_param
    groups = 1 if param.share_location else param.num_classes
    loc = op.Transpose(op.Reshape(c.bottoms[0], op.constant([0, priors, groups, 4])), perm=[0, 2, 1, 3])
    if groups > 1:
        ids = [k for k in range(groups) if k != param.background_label_id]
        loc = op.Gather(loc, np.array(ids), axis=1)
    both = op.Reshape(c.bottoms[2], op.constant([1, 2, priors, 4]))
    prior, variance = op.Split(both, axis=1, num_outputs=2, _outputs=2)
    if not param.variance_encoded_in_target:
        loc = op.Mul(loc, variance)
    if param.code_type == PriorBoxParameter.CORNER:
        return op.Add(prior, loc)
    low, high = op.Split(prior, axis=3, num_outputs=2, _outputs=2)
    size = op.Sub(high, low)
    first, second = op.Split(loc, axis=3, num_outputs=2, _outputs=2)
    if param.code_type == PriorBoxParameter.CORNER_SIZE:
        return op.Concat(op.Add(low, op.Mul(first, size)), op.Add(high, op.Mul(second, size)), axis=3)
    center = op.Add(op.Mul(op.Add(low, high), 0.5), op.Mul(first, size))
    half = op.Mul(op.Mul(op.Exp(second), size), 0.5)
    return op.Concat(op.Sub(center, half), op.Add(center, half), axis=3)
