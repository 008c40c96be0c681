"""SSD's layers against OpenCV's reader, and against NumPy where OpenCV reads them differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters import convert
from surgery.errors import SurgeryError
from tests.converters.caffe_checks import opencv, run, write_net

PRIORS = [
    "min_size: 6 max_size: 11 aspect_ratio: 2 flip: true clip: false variance: 0.1 variance: 0.1 variance: 0.2 "
    "variance: 0.2",
    "min_size: 6 aspect_ratio: 2 aspect_ratio: 3 flip: true clip: true variance: 0.1 variance: 0.1 variance: 0.2 "
    "variance: 0.2 step: 8 offset: 0.5",
    "min_size: 4 min_size: 9 flip: false clip: true aspect_ratio: 2 variance: 0.1 step_h: 5 step_w: 7 offset: 0.25",
]


@pytest.mark.parametrize("params", PRIORS)
def test_prior_boxes_equal_opencv(tmp_path: Path, params: str, rng: np.random.Generator) -> None:
    layers = f"""layer {{ name: "it" type: "PriorBox" bottom: "x" bottom: "y" top: "out"
                          prior_box_param {{ {params} }} }}"""
    x, y = np.zeros((1, 4, 5, 6), np.float32), np.zeros((1, 3, 40, 48), np.float32)
    definition, _ = write_net(tmp_path, layers, {"x": x.shape, "y": y.shape})
    model = convert(definition)
    (found,) = run(model, x, y).values()
    (expected,) = opencv(definition, None, x, y).values()
    np.testing.assert_allclose(found, expected, atol=1e-6)


CLASSES, BOXES = 4, 30


def detection_net(folder: Path, params: str, priors: np.ndarray, groups: int = 1) -> Path:
    layers = f"""
        layer {{ name: "priors" type: "Parameter" top: "p"
                 parameter_param {{ shape {{ dim: 1 dim: 2 dim: {4 * BOXES} }} }} }}
        layer {{ name: "it" type: "DetectionOutput" bottom: "x" bottom: "y" bottom: "p" top: "out"
                 detection_output_param {{ num_classes: {CLASSES} {params} }} }}"""
    shapes = {"x": (1, groups * 4 * BOXES), "y": (1, CLASSES * BOXES)}
    return write_net(folder, layers, shapes, {"priors": [priors]})[0]


def some_priors(rng: np.random.Generator) -> np.ndarray:
    corner, size = rng.random((BOXES, 2)) * 0.7, 0.1 + rng.random((BOXES, 2)) * 0.3
    boxes = np.concatenate([corner, corner + size], 1).reshape(1, -1)
    return np.stack([boxes, np.tile([0.1, 0.1, 0.2, 0.2], BOXES)[None]], 1).astype(np.float32)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inter = np.prod(np.maximum(high - low, 0))
    return float(inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter))


def detections(
    loc: np.ndarray,
    scores: np.ndarray,
    priors: np.ndarray,
    *,
    code: str = "CENTER_SIZE",
    threshold: float = 0.2,
    overlap: float = 0.3,
    top_k: int = 400,
    keep: int = 200,
    share: bool = True,
    encoded: bool = False,
    background: int = 0,
) -> np.ndarray:
    """SSD's detection_output_layer.cpp and bbox_util.cpp, box by box."""
    prior, variance = priors[0, 0].reshape(-1, 4), priors[0, 1].reshape(-1, 4)
    rows = []
    for image in range(len(loc)):
        found: list[list[float]] = []
        offsets = loc[image].reshape(BOXES, -1, 4)
        conf = scores[image].reshape(BOXES, CLASSES)
        for label in range(CLASSES):
            if label == background:
                continue
            d = offsets[:, 0 if share else label] * (1 if encoded else variance)
            size, middle = prior[:, 2:] - prior[:, :2], (prior[:, 2:] + prior[:, :2]) / 2
            if code == "CENTER_SIZE":
                center, extent = middle + d[:, :2] * size, np.exp(d[:, 2:]) * size
                boxes = np.concatenate([center - extent / 2, center + extent / 2], 1)
            elif code == "CORNER":
                boxes = prior + d
            else:
                boxes = prior + d * np.concatenate([size, size], 1)
            order = [k for k in np.argsort(-conf[:, label]) if conf[k, label] > threshold][:top_k]
            kept: list[int] = []
            for k in order:
                if all(iou(boxes[k], boxes[j]) <= overlap for j in kept):
                    kept.append(k)
            found += [[image, label, conf[k, label], *boxes[k]] for k in kept]
        if keep > 0 and len(found) > keep:
            least = sorted((row[2] for row in found), reverse=True)[keep - 1]
            found = [row for row in found if row[2] >= least]
        rows += found
    return np.array(rows, np.float32).reshape(1, 1, -1, 7)


CASES: list[tuple[str, dict]] = [
    ("", {}),
    ("code_type: CORNER", {"code": "CORNER"}),
    ("variance_encoded_in_target: true", {"encoded": True}),
    ("keep_top_k: 7", {"keep": 7}),
    ("background_label_id: -1", {"background": -1}),
    ("background_label_id: 2", {"background": 2}),
]
NUMPY_CASES: list[tuple[str, dict]] = [
    ("code_type: CORNER_SIZE", {"code": "CORNER_SIZE"}),
    ("share_location: false", {"share": False}),
    ("nms_param { nms_threshold: 0.3 top_k: 5 }", {"top_k": 5}),
]


def params_of(extra: str) -> str:
    text = "confidence_threshold: 0.2 " + extra
    for key, default in (
        ("code_type", "code_type: CENTER_SIZE"),
        ("keep_top_k", "keep_top_k: 200"),
        ("nms_param", "nms_param { nms_threshold: 0.3 top_k: 400 }"),
        ("share_location", "share_location: true"),
        ("background_label_id", "background_label_id: 0"),
    ):
        if key not in text:
            text += " " + default
    return text


@pytest.mark.parametrize(("extra", "options"), CASES + NUMPY_CASES)
@pytest.mark.parametrize("images", [1, 3])
def test_detections(tmp_path: Path, extra: str, options: dict, images: int, rng: np.random.Generator) -> None:
    priors, groups = some_priors(rng), CLASSES if options.get("share") is False else 1
    definition = detection_net(tmp_path, params_of(extra), priors, groups)
    loc = (0.1 if "CORNER" in extra else 0.5) * rng.normal(size=(images, groups * 4 * BOXES)).astype(np.float32)
    scores = rng.random((images, CLASSES * BOXES)).astype(np.float32)
    (found,) = run(convert(definition), loc, scores).values()
    expected = detections(loc, scores, priors, **options)
    assert expected.shape[2] > 3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_detections_of_nothing_are_no_rows(tmp_path: Path, rng: np.random.Generator) -> None:
    definition = detection_net(tmp_path, params_of(""), some_priors(rng))
    loc, scores = np.zeros((2, 4 * BOXES), np.float32), np.zeros((2, CLASSES * BOXES), np.float32)
    (found,) = run(convert(definition), loc, scores).values()
    assert found.shape == (1, 1, 0, 7)


def ssd(rng: np.random.Generator, extra: str) -> tuple[str, dict[str, list[np.ndarray]]]:
    """The head of a small detector, from features to detections."""
    layers = f"""
        layer {{ name: "norm" type: "Normalize" bottom: "x" top: "norm"
                 norm_param {{ across_spatial: false channel_shared: false }} }}
        layer {{ name: "loc" type: "Convolution" bottom: "norm" top: "loc"
                 convolution_param {{ num_output: 8 kernel_size: 1 }} }}
        layer {{ name: "loc_p" type: "Permute" bottom: "loc" top: "loc_p"
                 permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
        layer {{ name: "loc_f" type: "Flatten" bottom: "loc_p" top: "loc_f" }}
        layer {{ name: "conf" type: "Convolution" bottom: "norm" top: "conf"
                 convolution_param {{ num_output: {2 * CLASSES} kernel_size: 1 }} }}
        layer {{ name: "conf_p" type: "Permute" bottom: "conf" top: "conf_p"
                 permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
        layer {{ name: "conf_f" type: "Flatten" bottom: "conf_p" top: "conf_f" }}
        layer {{ name: "conf_r" type: "Reshape" bottom: "conf_f" top: "conf_r"
                 reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }} }}
        layer {{ name: "conf_s" type: "Softmax" bottom: "conf_r" top: "conf_s" softmax_param {{ axis: 2 }} }}
        layer {{ name: "conf_e" type: "Flatten" bottom: "conf_s" top: "conf_e" }}
        layer {{ name: "priors" type: "PriorBox" bottom: "norm" bottom: "y" top: "priors"
                 prior_box_param {{ min_size: 9 max_size: 14 clip: false
                                    variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 }} }}
        layer {{ name: "out" type: "DetectionOutput" bottom: "loc_f" bottom: "conf_e" bottom: "priors" top: "out"
                 detection_output_param {{ num_classes: {CLASSES} {params_of(extra)} }} }}"""
    arrays = {
        "norm": [3 * np.ones(8, np.float32)],
        "loc": [rng.normal(size=(8, 8, 1, 1)) * 0.1, np.zeros(8)],
        "conf": [rng.normal(size=(2 * CLASSES, 8, 1, 1)), np.zeros(2 * CLASSES)],
    }
    return layers, {name: [a.astype(np.float32) for a in each] for name, each in arrays.items()}


# Not those that OpenCV refuses: it wants a background, and prior boxes without variances where these are in the net.
@pytest.mark.parametrize("extra", [extra for extra, _ in CASES if "-1" not in extra and "encoded" not in extra])
def test_a_detector_equals_opencv(tmp_path: Path, extra: str, rng: np.random.Generator) -> None:
    layers, blobs = ssd(rng, extra)
    x, y = rng.normal(size=(1, 8, 5, 6)).astype(np.float32), np.zeros((1, 3, 40, 48), np.float32)
    definition, weights = write_net(tmp_path, layers, {"x": x.shape, "y": y.shape}, blobs)
    (found,) = run(convert(definition), x, y).values()
    (expected,) = opencv(definition, weights, x, y).values()
    found, expected = found[0, 0], expected[0, 0]
    expected = expected[expected[:, 2] > 0]  # OpenCV fills up with zeros
    assert len(expected) > 5
    order = [np.lexsort((-rows[:, 2], rows[:, 1])) for rows in (found, expected)]
    np.testing.assert_allclose(found[order[0]], expected[order[1]], atol=1e-5)


def test_suppression_that_loosens_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    definition = detection_net(tmp_path, params_of("nms_param { eta: 0.9 }"), some_priors(rng))
    with pytest.raises(SurgeryError, match="eta"):
        convert(definition)


def test_too_many_prior_boxes_are_refused(tmp_path: Path) -> None:
    layers = (
        """layer { name: "it" type: "PriorBox" bottom: "x" bottom: "y" top: "out" prior_box_param { min_size: 1 } }"""
    )
    definition, _ = write_net(tmp_path, layers, {"x": (1, 1, 100000, 100000), "y": (1, 3, 10, 10)})
    with pytest.raises(SurgeryError, match="10,000,000,000 boxes"):
        convert(definition)
