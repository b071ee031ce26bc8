"""Micro-batches make the update of the whole batch."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras.training import objective
from tests.training_programs import CLASSES, FRAMES, SIZE, Tiny

# Frames that count in each of 8 clips; windows are of 3. Halves have 7 and 3 windows, quarters 4,
# 3, 0 and 3, so that each part's loss must count by its windows.
LENGTHS = [6, 6, 4, 6, 2, 1, 6, 5]


def batch(count=8):
    rng = np.random.default_rng(0)
    video = rng.random((count, FRAMES, SIZE, SIZE, 3)) * rng.random((count, FRAMES, 1, 1, 3))
    mask = np.arange(FRAMES) < np.array(LENGTHS)[:count, None]
    return {"video": tf.constant(video, tf.float32), "mask": tf.constant(mask)}, tf.constant(
        rng.integers(0, CLASSES, count)
    )


def make_model(parts, *, optimizer=None, grw_weight=2.0, precision="float32"):
    with objective.precision(precision):
        model = Tiny(dropout=0.0)
    model.set_batch_norm_frozen(True)
    model.regularizer.weight = grw_weight
    model.compile_for_training(
        accumulate=parts,
        optimizer=optimizer or tf_keras.optimizers.SGD(0.5),
        loss=objective.SmoothedCrossEntropy(0.1),
    )
    return model


def compiled(model):
    return tf.function(model.train_step, autograph=False)


def update(parts, data=None, **options):
    """What one step changes in each trained weight, and its logs."""
    model = make_model(parts, **options)
    before = [v.numpy() for v in model.trainable_variables]
    logs = compiled(model)(batch() if data is None else data)
    changes = [v.numpy() - b for v, b in zip(model.trainable_variables, before, strict=True)]
    return changes, {name: float(value) for name, value in logs.items()}


@pytest.fixture(scope="module")
def whole():
    return update(1)


def assert_close(changes, expected, share):
    for ours, theirs in zip(changes, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=share * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_make_the_update_of_the_whole(parts, whole):
    changes, logs = update(parts)
    assert_close(changes, whole[0], 1e-4)
    assert logs.keys() == whole[1].keys()
    for name, value in whole[1].items():
        assert logs[name] == pytest.approx(value, rel=1e-4), name


def test_the_smoothing_counts_in_the_update(whole):
    """Or the tests here would say nothing of it."""
    without, _ = update(1, grw_weight=0.0)
    affine = [n for n, c in enumerate(whole[0]) if c.shape == (4, 5)]
    assert affine
    for place in affine:
        difference = np.abs(without[place] - whole[0][place]).max()
        assert difference > 0.05 * np.abs(whole[0][place]).max()


@pytest.mark.slow
def test_clips_without_a_mask_and_without_windows():
    inputs, labels = batch()
    bare = (inputs["video"], labels)
    assert_close(update(4, bare)[0], update(1, bare)[0], 1e-4)
    nothing = ({**inputs, "mask": inputs["mask"] & (tf.range(FRAMES) < 2)}, labels)
    changes, logs = update(2, nothing)
    assert_close(changes, update(1, nothing)[0], 1e-4)
    assert np.isnan(logs["grw_ordering"])


@pytest.mark.slow
def test_float16_scales_and_sums(whole):
    scaled = tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.SGD(0.5))
    changes, _ = update(4, optimizer=scaled, precision="float16")
    assert_close(changes, whole[0], 0.03)  # float16 has 11 bits
    assert float(scaled.loss_scale) == 2**15
    assert int(scaled.dynamic_counter) == 1


@pytest.mark.slow
def test_an_overflow_of_one_part_skips_the_step():
    scaled = tf_keras.mixed_precision.LossScaleOptimizer(
        tf_keras.optimizers.SGD(0.5), initial_scale=2.0**60
    )
    changes, _ = update(4, optimizer=scaled, precision="float16")
    assert all(not change.any() for change in changes)
    assert float(scaled.loss_scale) == 2.0**59


def test_the_batch_must_be_a_multiple():
    model = make_model(4)
    with pytest.raises(ValueError, match=r"multiple of its 4 micro-batches.+ 6 clips"):
        model.train_step(batch(6))
    inputs, labels = batch(6)
    shape = [None, FRAMES, SIZE, SIZE, 3]
    signature = ({"video": tf.TensorSpec(shape), "mask": tf.TensorSpec([None, FRAMES], tf.bool)},)
    step = tf.function(
        lambda *data: model.train_step(data),
        input_signature=[*signature, tf.TensorSpec([None], labels.dtype)],
        autograph=False,
    )
    with pytest.raises(tf.errors.InvalidArgumentError):
        step(inputs, labels)
    step(*batch(8))


@pytest.mark.slow
def test_parts_take_turns_in_one_loop():
    """The graph, and so the memory, is that of one part, however many there are."""

    def operations(parts):
        graph = compiled(make_model(parts)).get_concrete_function(batch()).graph.as_graph_def()
        nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
        loops = [node for node in nodes if node.op in ("While", "StatelessWhile")]
        assert [loop.attr["parallel_iterations"].i for loop in loops] == [1]
        return len(nodes)

    assert operations(2) == operations(8)


def test_dropout_draws_anew_for_each_part():
    model = make_model(4)
    compiled(model)(batch())
    assert int(model.randomness.step) == 4


@pytest.mark.slow
def test_fit_accumulates():
    model = make_model(2)
    inputs, labels = batch()
    data = tf.data.Dataset.from_tensors((inputs, labels)).repeat(2)
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()
    assert int(model.optimizer.iterations) == 2
