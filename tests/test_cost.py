"""Costs against formulas written out, known graphs, and the paper's printed numbers."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf
from official.projects.movinet.modeling import movinet, movinet_model

from benchmarks import cost as benchmark
from grw_keras.evaluation.cost import measure, multiply_accumulates, peak_activation_bytes, trace
from grw_keras.evaluation.published import ROWS, published
from grw_keras.models.classifier import VideoClassifier
from grw_keras.zoo import registry

SHORT = {"frames": 3, "resolution": 40}
CLIPS = {"a0": (50, 172), "a1": (50, 172), "a2": (50, 224), "a3": (120, 256)}


def literal_movinet(size: str, frames: int, pixels: int, streaming: bool) -> tuple[int, int]:
    """Multiply-accumulates of a backbone, layer by layer from the published architecture; and the
    values that its batch norms and gates multiply."""
    stem, *blocks, head = movinet.BLOCK_SPECS[size]

    def eights(width):
        rounded = max(8, int(width + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * width else rounded

    side, width = math.ceil(pixels / 2), stem.filters
    macs = frames * side**2 * 9 * 3 * width
    multiplied = frames * side**2 * width
    for block in blocks:
        for hidden, (k_time, k_space, _), strides in zip(
            block.expand_filters, block.kernel_sizes, block.strides, strict=True
        ):
            before, side = side, math.ceil(side / strides[1])
            seen, made = frames * before**2, frames * side**2
            macs += seen * width * hidden  # expansion
            if streaming:
                macs += made * hidden * (k_space**2 + (k_time if k_time > 1 else 0))
                squeezed = eights(0.25 * 2 * hidden)
                macs += frames * (2 * hidden * squeezed + squeezed * hidden)
            else:
                macs += made * hidden * k_time * k_space**2
                squeezed = eights(0.25 * hidden)
                macs += 2 * hidden * squeezed
            macs += made * hidden * block.base_filters  # projection
            multiplied += seen * hidden + 2 * made * hidden + made * block.base_filters
            if strides[1] > 1 or width != block.base_filters:
                macs += made * width * block.base_filters  # skip
                multiplied += made * block.base_filters
            width = block.base_filters
    made = frames * side**2 * head.project_filters
    return macs + made * width, multiplied + made


def literal_transformer(width: int, frames: int, classes: int) -> int:
    """The paper's head, once per clip: affine, two blocks of MLP width 4 D, logits."""
    attention = 4 * frames * width**2 + 2 * frames**2 * width
    mlp = 2 * frames * width * 4 * width
    return frames * width**2 + 2 * (attention + mlp) + width * classes


def literal_classifier(width: int, classes: int) -> int:
    return width * 2048 + 2048 * classes


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (lambda x, w: tf.nn.conv2d(x, w, 2, "SAME"), ([2, 9, 8, 3], [3, 3, 3, 5]), 40 * 27 * 5),
        (lambda x, w: tf.nn.conv2d(x, w, 1, "VALID"), ([1, 5, 5, 4], [3, 3, 2, 6]), 9 * 6 * 18),
        (
            lambda x, w: tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "SAME"),
            ([1, 5, 5, 4], [3, 3, 4, 2]),
            25 * 8 * 9,
        ),
        (
            lambda x, w: tf.nn.conv3d(x, w, [1, 1, 2, 2, 1], "SAME"),
            ([1, 4, 6, 6, 3], [3, 3, 3, 3, 5]),
            36 * 5 * 81,
        ),
        (lambda x, w: tf.matmul(x, w, transpose_a=True), ([7, 3], [7, 5]), 3 * 5 * 7),
        (lambda x, w: tf.matmul(x, w, transpose_b=True), ([2, 4, 3, 7], [2, 4, 5, 7]), 8 * 105),
        (lambda x, w: tf.einsum("bqhd,bkhd->bhqk", x, w), ([2, 5, 3, 4], [2, 6, 3, 4]), 720),
        (
            lambda x, w: tf.raw_ops.Einsum(inputs=[x, w], equation="...ab,bc->...ac"),
            ([2, 3, 4, 5], [5, 6]),
            720,
        ),
        (lambda x, w: x * w + tf.exp(x) - tf.reduce_mean(w), ([8, 8], [8, 8]), 0),
    ],
    ids=[
        *("conv", "grouped", "depthwise", "conv3d", "matmul", "batch_matmul"),
        *("einsum", "einsum_dots", "elementwise"),
    ],
)
def test_an_operation_counts_its_products(function, shapes, macs):
    assert multiply_accumulates(trace(function, *map(tf.TensorSpec, shapes))) == macs


def test_functions_count_once_per_call_and_unused_results_not_at_all():
    product = tf.function(lambda x: tf.matmul(x, x), autograph=False)

    def thrice(x):
        tf.matmul(x, x)
        return product(product(product(x)))

    assert multiply_accumulates(trace(thrice, tf.TensorSpec([4, 4]))) == 3 * 64


def test_a_function_traced_for_other_shapes_counts_at_those_it_gets():
    product = tf.function(lambda x: tf.matmul(x, x, transpose_b=True), autograph=False)
    product.get_concrete_function(tf.TensorSpec([None, None]))
    graph = trace(lambda x: product(x) + product(x + 1.0), tf.TensorSpec([4, 5]))
    assert multiply_accumulates(graph) == 2 * 4 * 4 * 5
    assert peak_activation_bytes(graph) == 4 * max(20 + 20 + 16, 20 + 16 + 16, 16 * 3)


def test_what_can_not_be_counted_raises():
    def loop(x):
        return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.matmul(x, x)), [0, x])

    def backwards(x):
        return tf.nn.conv2d_transpose(x, tf.ones([3, 3, 4, 1]), [1, 8, 8, 4], 2)

    def unknown(x):
        return tf.matmul(x[: tf.cast(x[0, 0], tf.int32)], x)

    for function, shape, message in [
        (loop, [4, 4], "unroll"),
        (backwards, [1, 4, 4, 1], "Conv2DBackpropInput"),
        (unknown, [4, 4], "static shapes"),
    ]:
        with pytest.raises(ValueError, match=message):
            multiply_accumulates(trace(function, tf.TensorSpec(shape)))


def chain(x):
    return tf.exp(tf.exp(tf.exp(x)))


def kept_for_later(x):
    a = tf.exp(x)
    return tf.concat([tf.exp(tf.exp(a)), a], axis=0)


def reshaped(x):
    return tf.exp(tf.identity(tf.reshape(tf.exp(x), [2, 5])))


@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        (chain, 2),  # one read, one made
        (kept_for_later, 4),  # two to join, and twice their size made
        (reshaped, 2),  # other shapes of the same memory
        (lambda x: (tf.exp(x), tf.exp(x + 1.0), x), 4),  # x and both results stay; x + 1 between
        (lambda x: x, 1),
        (lambda x: tf.function(chain, autograph=False)(x), 2),
    ],
    ids=["chain", "kept", "reshaped", "outputs", "argument", "call"],
)
def test_the_peak_of_known_graphs(function, tensors):
    assert peak_activation_bytes(trace(function, tf.TensorSpec([10]))) == tensors * 40


def test_weights_and_what_follows_from_them_are_no_activations():
    weight = tf.Variable(tf.ones([10]))
    graph = trace(lambda x: x + tf.exp(tf.ones([10])) * tf.exp(weight), tf.TensorSpec([10]))
    assert peak_activation_bytes(graph) == 2 * 40


@pytest.fixture(scope="module")
def a0_stream_grw():
    return VideoClassifier(registry.get("movinet_a0_stream_grw"))


@pytest.mark.slow
def test_clip_and_step_of_the_paper_s_a0_count_as_the_formula(a0_stream_grw):
    cost = measure(a0_stream_grw)
    backbone, _ = literal_movinet("a0", 50, 172, streaming=True)
    frame, _ = literal_movinet("a0", 1, 172, streaming=True)
    assert cost.macs == backbone + literal_transformer(480, 50, 600)
    # One frame, its own affine map alone; then the rest of the head over a window of 50.
    head = literal_transformer(480, 50, 600) - 49 * 480**2
    assert cost.macs_per_frame == frame + head
    assert (cost.frames, cost.resolution_px) == (50, 172)


@pytest.mark.slow
def test_weights_and_states_are_all_counted(a0_stream_grw):
    cost = measure(a0_stream_grw, **SHORT)
    weights = a0_stream_grw.named_weights().values()
    trained = [w for w in a0_stream_grw.trainable_weights if any(w is other for other in weights)]
    assert cost.parameters == sum(int(np.prod(w.shape)) for w in trained)
    assert cost.parameters + cost.statistics == sum(w.numpy().size for w in weights)
    assert cost.weights_bytes == 4 * (cost.parameters + cost.statistics)
    states = a0_stream_grw.initial_states(1, SHORT["resolution"])
    assert cost.state_bytes == sum(state.numpy().nbytes for state in states.values())
    assert cost.step_peak_activation_bytes > cost.state_bytes


@pytest.mark.exhaustive
def test_base_models_count_as_the_official_graph_and_the_formula():
    ours = measure(VideoClassifier(registry.get("movinet_a0")), **SHORT)
    official = movinet_model.MovinetClassifier(movinet.Movinet("a0"), num_classes=600)
    graph = trace(lambda x: official(x, training=False), tf.TensorSpec([1, 3, 40, 40, 3]))
    backbone, _ = literal_movinet("a0", 3, 40, streaming=False)
    assert any(op.type == "StatefulPartitionedCall" for op in graph.get_operations())
    assert ours.macs == multiply_accumulates(graph) == backbone + literal_classifier(480, 600)
    assert (ours.macs_per_frame, ours.state_bytes, ours.step_peak_activation_bytes) == (None,) * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"), [("mobilenet_v3_small", 56), ("mobilenet_v3_large", 219)]
)
def test_a_mobilenet_counts_what_its_paper_says(name, millions):
    """Multiply-adds per image of 224 px, 1,000 classes: Howard et al. 2019, tables 3 and 4."""
    spec = registry.get(name).replace({"num_classes": 1000})
    macs = measure(VideoClassifier(spec), frames=1).macs
    assert macs == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize(("argument", "value"), [("frames", 0), ("resolution", -1)])
def test_a_clip_must_not_be_empty(argument, value):
    model = VideoClassifier(registry.get("mobilenet_v3_small"))
    with pytest.raises(ValueError, match=rf"`{argument}` must be >= 1. Received: {value}"):
        measure(model, **{argument: value})


@pytest.fixture(scope="module")
def table():
    return benchmark.read()


def test_every_registered_model_has_a_row(table):
    assert list(table) == list(registry.specs())
    for name, line in table.items():
        spec = registry.get(name)
        settings = (spec.family, str(spec.resolution), str(spec.frames), str(spec.fps))
        fields = ("family", "resolution_px", "frames", "fps")
        assert tuple(line[field] for field in fields) == settings
        assert bool(line["state_bytes"]) == bool(line["macs_per_frame_m"]) == spec.streaming


# Issue: the paper's own models within 2 %, MobileNetV3-S too, other baselines within 5 %.
TIGHT = [row.model for row in ROWS if "_grw" in row.model] + ["mobilenet_v3_small"]
# Its printed number is not that of the released architecture; see zoo/results/cost.md.
OPEN = {"movinet_a2": 12.3}


def test_counts_are_near_the_published_ones(table):
    for name, line in table.items():
        deviation = benchmark.deviation_percent(line)
        if deviation is not None:
            assert abs(deviation) <= (2 if name in TIGHT else OPEN.get(name, 5)), name


@pytest.mark.parametrize("size", CLIPS)
def test_rows_of_the_table_are_the_formula(table, size):
    frames, pixels = CLIPS[size]
    width = movinet.BLOCK_SPECS[size][-1].project_filters
    for form in ("", "_stream"):
        name = f"movinet_{size}{form}"
        if name in table:
            backbone, _ = literal_movinet(size, frames, pixels, streaming=bool(form))
            for variant, head in {
                "": literal_classifier(width, 600),
                "_grw": literal_transformer(width, frames, 600),
            }.items():
                counted = f"{(backbone + head) / 1e9:.4f}"
                assert table[name + variant]["gmacs"] == counted, name + variant


@pytest.mark.parametrize(("size", "gflops"), [("a0", 2.7), ("a1", 6.0), ("a3", 56.9)])
def test_published_base_models_count_batch_norms_and_gates_too(size, gflops):
    """The reason that zoo/results/cost.md gives for what our counts lack."""
    macs, multiplied = literal_movinet(size, *CLIPS[size], streaming=False)
    macs += literal_classifier(movinet.BLOCK_SPECS[size][-1].project_filters, 600)
    assert round((macs + multiplied) / 1e9, 1) == gflops
    stated = benchmark.EXPLANATIONS[f"movinet_{size}"]
    assert f"{float(f'{(macs + multiplied) / 1e9:.3g}'):g} G," in stated


def test_published_numbers_stand_in_the_paper(shared):
    """The rows of each table are those that the paper prints, all of them, in its order."""
    text = (shared / "paper" / "smooth-regularization.md").read_text().replace("<b>", "")
    starts = {table: text.index(f"\nTable {table}: ") for table in (2, 3, 4)}
    starts[1] = text.index("1\tMoViNet-A0-S-GRW")  # it has no heading, and numbers its rows
    for table, start in starts.items():
        block = text[start:].replace("</b>", "")
        if table > 1:
            block = block.split("Model\t", 1)[1]
        lines = [line.split("\t") for line in block.split("\n\n")[0].splitlines()]
        printed = [
            (re.sub(r"\[\d+\]$", "", name), float(top1), float(value))
            for name, top1, value, *_ in (cells[table == 1 :] for cells in lines if len(cells) > 2)
        ]
        assert printed == [
            (row.printed, row.top1, row.gflops if row.memory_mb is None else row.memory_mb)
            for row in ROWS
            if row.table == table
        ]


def test_published_models_are_the_zoos_of_that_name():
    titles = {"movinet_a": "MoViNet-A", "mobilenet_v3_small": "MobileNetV3-S"}
    titles |= {"mobilenet_v3_large": "MobileNetV3-L", "_stream": "-S", "_grw": "-GRW"}
    titles |= {"_tsm": "+TSM", "_intermediate": "-GRW (intermediate layer)"}
    titles |= {"_attention": " + attention (no GRW)"}
    for row in ROWS:
        title = row.model
        for ours, theirs in titles.items():
            title = title.replace(ours, theirs)
        assert title in (row.printed.removesuffix(" (final layer)"), "")
    named = {row.printed for row in ROWS if not row.model}
    assert not {
        name for name in named if name.startswith(("MobileNet", "MoViNet-A0", "MoViNet-A3"))
    }


def test_published_numbers_come_with_their_table():
    assert published("movinet_a2_stream_grw", "gflops") == (11.3, 1)
    assert published("movinet_a2_stream_grw", "memory_mb") == (78, 2)
    assert published("movinet_a0_stream", "gflops") is None
    assert published("movinet_a2_grw", "gflops") is None  # of Kinetics-400 alone
    assert {row.model for row in ROWS} <= {*registry.specs(), ""}


def test_a_deviation_without_a_reason_stops_the_page(table):
    line = {**table["mobilenet_v3_large"], "gmacs": "12.0"}
    with pytest.raises(ValueError, match=r"mobilenet_v3_large is \+9.1 % off"):
        benchmark.page({line["name"]: line})


def test_the_page_is_that_of_the_table(table):
    assert benchmark.PAGE.read_text() == benchmark.page(table)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", registry.specs())
def test_a_row_is_what_a_fresh_count_gives(table, name):
    assert benchmark.row(name) == table[name]
