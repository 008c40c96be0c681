"""Whole networks against Keras itself: how layers are connected, shared, nested and wrapped; layouts; names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import convert
from surgery.errors import SurgeryError
from surgery.layers import layers
from surgery.marks import preprocessing
from surgery.passes import ToFullyConvolutional
from tests.converters.keras_checks import compare, expected, functional, keras, randomize, run, save

L = keras.layers


def image(size: int = 9, channels: int = 3, name: str = "image") -> Any:
    return keras.Input((size, size, channels), name=name)


def sequential() -> Any:
    return keras.Sequential(
        [
            keras.Input((12, 12, 1), name="digit"),
            L.Conv2D(4, 3, activation="relu", name="conv"),
            L.MaxPooling2D(name="pool"),
            L.Flatten(name="flat"),
            L.Dropout(0.5, name="drop"),
            L.Dense(10, activation="softmax", name="probabilities"),
        ]
    )


def test_a_sequential_network_keeps_its_names(rng: np.random.Generator) -> None:
    model = compare(sequential(), rng)
    assert [v.name for v in model.graph.inputs] == ["digit"]
    assert [v.name for v in model.graph.outputs] == ["probabilities"]
    assert [layer.name for layer in layers(model) if layer.index] == ["conv", "probabilities"]
    assert {"conv/kernel", "conv/bias", "probabilities/kernel", "probabilities/bias"} <= set(model.graph.initializers)
    assert {"pool", "flat", "drop"} <= {node.name for node in model.graph}
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["N", "12", "12", "1"]


def test_several_inputs_and_outputs_and_shared_layers(rng: np.random.Generator) -> None:
    a, b = image(), image(name="other")
    shared = L.Conv2D(4, 3, name="shared")
    x, y = shared(a), shared(b)
    both = L.Concatenate(name="both")([x, L.Subtract()([x, y])])
    row = L.GlobalAveragePooling2D()(L.Average()([x, y, L.Maximum()([x, y])]))
    model = keras.Model([a, b], [both, L.Dense(3, name="row")(row), x])
    converted = compare(model, rng)
    assert [v.name for v in converted.graph.inputs] == ["image", "other"]
    assert [v.name for v in converted.graph.outputs] == ["both", "row", "shared"]
    assert sum(name.startswith("shared/kernel") for name in converted.graph.initializers) == 1
    assert sum(node.op_type == "Conv" for node in converted.graph) == 2


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_models_in_models(kind: str, rng: np.random.Generator) -> None:
    inner: list[Any] = [
        L.Conv2D(4, 3, padding="same", name="conv"),
        L.BatchNormalization(name="norm"),
        L.PReLU(name="p"),
    ]
    if kind == "functional":
        start = keras.Input((9, 9, 4))
        x: Any = start
        for layer in inner:
            x = layer(x)
        block = keras.Model(start, [x, L.GlobalMaxPooling2D(name="most")(x)], name="block")
        second: Any = lambda value: block(value)[0]  # noqa: E731
    else:
        block = keras.Sequential([keras.Input((9, 9, 4)), *inner], name="block")
        second = block
    outer = keras.Sequential([keras.Input((9, 9, 4)), L.Dense(4, name="mix")], name="outer")
    start = image(channels=4)
    x = outer(second(second(start)))
    converted = compare(keras.Model(start, [L.Conv2D(2, 1, name="last")(x)]), rng)
    names = set(converted.graph.initializers)
    assert {"block/conv/kernel", "block/norm/moving_mean", "outer/mix/kernel"} <= names
    assert "block_1/conv/kernel" not in names
    assert {"block/conv", "block_1/conv"} <= {node.name for node in converted.graph}


def test_weights_of_partly_frozen_models_in_models_are_not_mixed_up(rng: np.random.Generator) -> None:
    """In HDF5, a model's trainable weights come before all others."""
    block = keras.Sequential(
        [keras.Input((4,)), L.Dense(4), L.BatchNormalization(), L.Dense(4), L.Dense(4)], name="block"
    )
    block.layers[0].trainable = False
    block.layers[2].trainable = False
    deeper = keras.Sequential([keras.Input((4,)), L.Dense(4), block], name="deeper")
    compare(functional([deeper, L.Dense(2)], (4,)), rng)


def test_convolutions_read_one_transposed_input(rng: np.random.Generator) -> None:
    start = image()
    branches = [L.Conv2D(4, k, padding="same")(start) for k in (1, 3, 5)]
    x = L.Concatenate()([*branches, L.MaxPooling2D(3, 1, "same")(start)])
    x = L.Multiply()([x, L.Reshape((1, 1, 15))(L.Dense(15, activation="sigmoid")(L.GlobalAveragePooling2D()(x)))])
    converted = compare(keras.Model(start, L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(x))), rng)
    assert [n.op_type for n in converted.graph if n.op_type in ("Transpose", "Reshape")] == ["Transpose", "Reshape"]


def test_an_input_with_the_channels_first_on_request(tmp_path: Path, rng: np.random.Generator) -> None:
    model = randomize(keras.Model(start := image(), L.Conv2D(4, 3, name="out")(start)), rng)
    x = rng.normal(size=(2, 9, 9, 3)).astype(np.float32)
    converted = convert(save(model, tmp_path / "net.keras"), layout="nchw")
    assert list(converted.graph.inputs[0].shape or ())[1:] == [3, 9, 9]
    assert [n.op_type for n in converted.graph] == ["Conv", "Transpose"]
    found = run(converted, np.ascontiguousarray(x.transpose(0, 3, 1, 2)))["out"]
    np.testing.assert_allclose(found, expected(model, [x])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [False, True], ids=["channels_last", "channels_first"])
def test_both_of_keras_layouts(first: bool, rng: np.random.Generator) -> None:
    """Flatten gives the order of channels last for either; Reshape and Dense see Keras's own."""
    form = "channels_first" if first else "channels_last"
    axis = 1 if first else -1
    body: list[Any] = [
        L.Conv2D(4, 3, data_format=form),
        L.BatchNormalization(axis=axis),
        L.ZeroPadding2D(1, data_format=form),
        L.DepthwiseConv2D(3, data_format=form),
        L.MaxPooling2D(2, data_format=form),
        L.SpatialDropout2D(0.2, data_format=form),
        L.UpSampling2D(2, data_format=form),
        L.Conv2DTranspose(3, 3, strides=2, padding="same", data_format=form),
        L.Cropping2D(1, data_format=form),
        L.Dense(3),
    ]
    shape = (3, 9, 9) if first else (9, 9, 3)
    start = keras.Input(shape)
    x: Any = start
    for layer in body:
        x = layer(x)
    flat, pooled = L.Flatten(data_format=form)(x), L.GlobalAveragePooling2D(data_format=form)(x)
    wide = L.Reshape((-1, 2))(x)
    converted = compare(keras.Model(start, [L.Dense(3)(flat), pooled, wide, x]), rng)
    transposes = [n for n in converted.graph if n.op_type == "Transpose"]
    assert len(transposes) == (1 if first else 2)  # what Flatten does; or the input, and what leaves the images


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
def test_both_directions(kind: str, mode: str | None, rng: np.random.Generator) -> None:
    layer = getattr(L, kind)(3, return_sequences=True)
    compare(functional(L.Bidirectional(layer, merge_mode=mode), (6, 4)), rng)


def test_both_directions_of_last_states(rng: np.random.Generator) -> None:
    layer = L.Bidirectional(
        L.LSTM(3, return_state=True), backward_layer=L.LSTM(3, return_state=True, go_backwards=True)
    )
    compare(functional(layer, (6, 4)), rng)


def test_an_encoder_hands_its_states_to_a_decoder(rng: np.random.Generator) -> None:
    words, answer = keras.Input((7,), dtype="int32", name="words"), keras.Input((5, 3), name="answer")
    _, h, c = L.LSTM(4, return_state=True)(L.Embedding(9, 6)(words))
    x = L.LSTM(4, return_sequences=True)(answer, initial_state=[h, c])
    x = L.GRU(4, return_sequences=True)(x, initial_state=h)
    compare(keras.Model([words, answer], L.TimeDistributed(L.Dense(2, activation="softmax"))(x)), rng)


def test_layers_on_each_step(rng: np.random.Generator) -> None:
    inner = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(2, 3), L.Flatten(), L.Dense(4)])
    compare(functional([L.TimeDistributed(inner), L.LSTM(3)], (5, 8, 8, 3)), rng)
    compare(
        functional([L.TimeDistributed(L.Conv2D(2, 3)), L.TimeDistributed(L.BatchNormalization())], (5, 8, 8, 3)), rng
    )


def test_layers_on_each_step_of_sequences_of_any_length(rng: np.random.Generator) -> None:
    layer = functional([L.TimeDistributed(L.Dense(4)), L.LSTM(3, return_sequences=True)], (None, 5))
    compare(layer, rng)


@pytest.mark.parametrize("options", [{}, {"value_dim": 5, "use_bias": False}, {"output_shape": 7, "dropout": 0.1}])
def test_attention_in_heads(options: dict[str, Any], rng: np.random.Generator) -> None:
    query, value = keras.Input((6, 4)), keras.Input((8, 5))
    x = L.MultiHeadAttention(2, 3, **options)(query, value)
    y, scores = L.MultiHeadAttention(2, 3)(query, query, use_causal_mask=True, return_attention_scores=True)
    compare(keras.Model([query, value], [x, y, scores, L.MultiHeadAttention(1, 2)(query, value, query_of(value))]), rng)


def query_of(value: Any) -> Any:
    return L.Dense(3)(value)


def test_attention_by_products_and_by_sums(rng: np.random.Generator) -> None:
    query, value = keras.Input((6, 4)), keras.Input((8, 4))
    outputs = [
        L.Attention()([query, value]),
        L.Attention(use_scale=True)([query, value, value]),
        L.AdditiveAttention()([query, value]),
        L.AdditiveAttention(use_scale=False)([query, value]),
    ]
    compare(keras.Model([query, value], outputs), rng)


def test_a_transformer_block(rng: np.random.Generator) -> None:
    words = keras.Input((7,), dtype="int32")
    x = L.Embedding(9, 8)(words)
    x = L.LayerNormalization(epsilon=1e-6)(L.Add()([x, L.MultiHeadAttention(2, 4)(x, x)]))
    x = L.Add()([x, L.Dense(8)(L.Dense(16, activation="gelu")(x))])
    compare(keras.Model(words, L.Dense(2)(L.GlobalAveragePooling1D()(x))), rng)


@pytest.mark.parametrize(
    ("axes", "shapes"), [(1, [(5,), (5,)]), ((2, 1), [(3, 5), (5, 4)]), (2, [(3, 5), (4, 5)]), ((2, 1), [(3, 5), (5,)])]
)
def test_products_of_inputs(axes: Any, shapes: list[tuple[int, ...]], rng: np.random.Generator) -> None:
    compare(functional(L.Dot(axes=axes), *shapes), rng)
    compare(functional(L.Dot(axes=axes, normalize=True), *shapes), rng)


@pytest.mark.parametrize("layer", [L.Add, L.Multiply, L.Maximum, L.Minimum, L.Average, L.Subtract])
def test_inputs_of_other_shapes_are_joined_as_keras_broadcasts(layer: Any, rng: np.random.Generator) -> None:
    compare(functional(layer(), (6, 5, 3), (1, 1, 3)), rng)
    compare(functional(layer(), (5, 3), (3,)), rng)


def test_functions_between_layers(rng: np.random.Generator) -> None:
    ops, start = keras.ops, image()
    x = L.Conv2D(4, 3)(start)
    x = ops.relu(2.0 - x * 0.5 + x / 3 - 1)
    x = ops.concatenate([x, ops.sigmoid(x), ops.tanh(x), ops.silu(x), ops.gelu(x)], axis=-1)
    x = ops.softmax(x, axis=-1) + ops.maximum(x, 0.1) ** 2
    small = x[:, 1:-1, ::2, :3]
    outputs = [
        ops.mean(x, axis=(1, 2), keepdims=True) * x,
        ops.sum(x, axis=-1),
        ops.reshape(x, (-1, 7, 140)),
        ops.transpose(x, (0, 3, 1, 2)),
        ops.expand_dims(ops.squeeze(ops.max(small, axis=1, keepdims=True), axis=1), -1),
        ops.clip(-ops.abs(small), -0.2, -0.1) + ops.sqrt(ops.exp(small)) + ops.square(small),
        small[:, 0],
    ]
    compare(keras.Model(start, outputs), rng)


def test_images_of_any_size(rng: np.random.Generator) -> None:
    """With sizes that are not known, "same" padding is worked out as the network runs."""
    start = keras.Input((None, None, 3), name="image")
    x = L.Conv2D(4, 3, strides=2, padding="same")(start)
    x = L.MaxPooling2D(3, 2, padding="same")(L.Conv2D(4, 4, padding="same")(x))
    x = L.Add()([L.UpSampling2D(2)(x), L.UpSampling2D(2)(x)])
    x = L.Conv2DTranspose(4, 3, strides=2, padding="same")(L.Resizing(6, 7)(x))
    model = compare(keras.Model(start, L.GlobalAveragePooling2D()(x)), rng)
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["N", "height", "width", "3"]


def test_sizes_and_the_batch_can_be_set(tmp_path: Path) -> None:
    model = keras.Model(
        start := keras.Input((None, None, 3), name="image"), L.Conv2D(4, 3, strides=2, padding="same")(start)
    )
    path = save(model, tmp_path / "net.keras")
    fixed = convert(path, shape="8x9x3", batch=2)
    assert list(fixed.graph.inputs[0].shape or ()) == [2, 8, 9, 3]
    assert "auto_pad" not in next(n for n in fixed.graph if n.op_type == "Conv").attributes
    named = convert(path, shape={"image": [8, 9, 3]})
    assert list(named.graph.inputs[0].shape or ())[1:] == [8, 9, 3]
    with pytest.raises(SurgeryError, match="no input takes the shape for other; it has \\['image'\\]"):
        convert(path, shape="other=8x8x3")


def test_dropout_drops_in_training_what_keras_drops(tmp_path: Path, rng: np.random.Generator) -> None:
    """Switched on, SpatialDropout drops whole channels, and what is left is larger."""
    path = save(functional(L.SpatialDropout2D(0.5), (4, 4, 40)), tmp_path / "net.keras")
    model = convert(path)
    node = next(n for n in model.graph if n.op_type == "Dropout")
    import onnx_ir as ir

    on = ir.Value(name="on", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    on.const_value = ir.tensor(np.array(True), name="on")
    model.graph.register_initializer(on)
    node.resize_inputs(3)
    node.replace_input_with(2, on)
    x = rng.uniform(1, 2, size=(3, 4, 4, 40)).astype(np.float32)
    found = next(iter(run(model, x).values())) / x
    dropped = (found == 0).reshape(3, 16, 40)
    assert (dropped.all(1) | ~dropped.any(1)).all()
    assert 0.3 < dropped.mean() < 0.7
    np.testing.assert_allclose(found[found != 0], 2, rtol=1e-5)


@pytest.mark.parametrize("reader", ["one", "a normalization", "two"])
def test_a_flattened_image_is_not_transposed_where_its_reader_can_be_turned(
    reader: str, rng: np.random.Generator
) -> None:
    start = image()
    flat = L.Dropout(0.2)(L.ReLU()(L.Flatten()(L.Conv2D(4, 3)(start))))
    if reader == "a normalization":
        flat = L.BatchNormalization()(flat)
    outputs = [L.Dense(3, kernel_constraint="max_norm", name="head")(flat), *([flat] if reader == "two" else [])]
    model = compare(keras.Model(start, outputs), rng)
    assert sum(n.op_type == "Transpose" for n in model.graph) == (1 if reader == "one" else 2)
    if reader == "one":
        ToFullyConvolutional()(model)
        shape = model.graph.outputs[0].shape
        assert shape is not None
        assert shape[1] == 3


def test_lenet_computes_as_its_caffe_network(lenet_files: tuple[Path, Path]) -> None:
    """The trained LeNet as Keras saves it; its layers have the Caffe layers' names."""
    model = convert(lenet_files[0].parent / "formats" / "lenet.keras")
    x = np.random.default_rng(0).random((4, 1, 28, 28), np.float32)
    (found,) = run(model, np.ascontiguousarray(x.transpose(0, 2, 3, 1))).values()
    (want,) = run(convert(lenet_files[0]), x).values()
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    names = [layer.name for layer in layers(model) if layer.op_type != "Transpose"]
    assert names == ["conv1", "pool1", "conv2", "pool2", "flatten", "ip1", "relu1", "drop1", "ip2", "prob"]


def test_masks_are_refused_only_where_they_count(tmp_path: Path, rng: np.random.Generator) -> None:
    words = keras.Input((5,), dtype="int32")
    x = L.Embedding(9, 4, mask_zero=True)(words)
    compare(keras.Model(words, L.Dense(2)(L.Flatten()(x))), rng, [".keras"])
    other = L.Masking(0.5)(steps := keras.Input((5, 3), name="steps"))
    compare(keras.Model(steps, L.Flatten()(other)), rng, [".keras"])
    for reads in (x, L.Dropout(0.1)(x), other):
        model = keras.Model(steps if reads is other else words, L.LSTM(3, name="lstm")(reads))
        with pytest.raises(SurgeryError, match=r"'lstm' \(LSTM\): would leave out the steps that a mask"):
            convert(save(model, tmp_path / "net.keras"))


def test_preprocessing_of_a_network_of_keras_applications(tmp_path: Path) -> None:
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=4, alpha=0.35)
    path = save(model, tmp_path / "net.keras")
    how = preprocessing(convert(path), str(convert(path).graph.inputs[0].name))
    assert how is not None
    assert (how.color, how.layout, how.size, how.mean) == ("rgb", "NHWC", (32, 32), (1.0,))
    pixels = np.array([0.0, 128.0, 255.0], np.float32)
    np.testing.assert_allclose(
        pixels * how.scale - how.mean[0], keras.applications.mobilenet_v2.preprocess_input(pixels)
    )
    turned = convert(path, layout="nchw")
    assert preprocessing(turned, str(turned.graph.inputs[0].name)).layout == "NCHW"  # type: ignore[union-attr]
