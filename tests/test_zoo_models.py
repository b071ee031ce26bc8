"""Every registered model builds, runs, is smoothed where its spec says, and streams as it clips."""

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.mobilenet import base_frame_indices, shift_channels
from grw_keras.models.movinet import MovinetClassifierHead
from grw_keras.models.randomness import Randomness
from grw_keras.zoo import registry
from tests import lite_files
from tests.helpers import literal_loss
from tests.zoo_helpers import SIZE, random_clips, randomize

pytestmark = pytest.mark.xdist_group("zoo models")  # they share what is dear to make

CLASSES = 7
FRAMES = 6  # also the largest T of the paper
HEAD_WINDOW = 2


def small(name: str, **changes) -> VideoClassifier:
    spec = registry.get(name).replace(
        {"num_classes": CLASSES, "head_window": HEAD_WINDOW, **changes}
    )
    return randomize(VideoClassifier(spec))


def stream(model: VideoClassifier, clips) -> list[np.ndarray]:
    """The logits after each frame."""
    states = model.initial_states(len(clips), clips.shape[2])
    logits = []
    for frame in range(clips.shape[1]):
        now, states = model.step(clips[:, frame : frame + 1], states)
        logits.append(now.numpy())
    return logits


def smoothed(model: VideoClassifier, clips) -> np.ndarray:
    """What equation 6 is taken of: Z of figure 4, or the standardised features of figure 3."""
    if model.spec.placement == "final":
        z = model.embeddings(clips, training=True).numpy()
        if model.spec.loss_input == "z":
            return z
        centred = z - z.mean(-1, keepdims=True)
        return centred / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
    features = model.backbone(clips, training=True)["smoothed"].numpy().mean((2, 3))
    centred = features - features.mean((0, 1))
    return centred / np.sqrt(features.var((0, 1)) + 1e-5) / np.sqrt(features.shape[-1])


def check_smoothing(model: VideoClassifier):
    """It is smoothed in training alone, and there where its spec says."""
    clips = random_clips(2, FRAMES)
    logits = model(clips, training=True)
    assert logits.shape == (2, CLASSES)
    assert logits.dtype == tf.float32
    assert np.all(np.isfinite(logits))
    assert len(model.losses) == (model.spec.placement != "none")
    if model.spec.placement != "none":
        expected = 0.1 * literal_loss(smoothed(model, clips), model.spec.window, alpha=0.5)
        assert float(model.losses[0]) == pytest.approx(expected, rel=1e-3)
    model(clips, training=False)
    assert not model.losses


def one_sided(model: VideoClassifier) -> VideoClassifier:
    """What its stream should equal: two-sided TSM streams as the one-sided clip graph."""
    if model.spec.temporal_shift != "bidirectional":
        return model
    twin = small(model.spec.name, temporal_shift="causal")
    for name, variable in twin.named_weights().items():
        variable.assign(model.named_weights()[name])
    assert np.max(np.abs(twin(random_clips(1, 3)) - model(random_clips(1, 3)))) > 5e-6
    return twin


def check_streaming(streamed: VideoClassifier):
    """Frame by frame it answers as the clip graph; past its window, as that graph's head."""
    model = one_sided(streamed)
    clips = random_clips(2, HEAD_WINDOW + 2)
    for seen, logits in enumerate(stream(streamed, clips), start=1):
        if seen not in (1, HEAD_WINDOW, HEAD_WINDOW + 2):
            continue
        if seen <= HEAD_WINDOW or model.spec.head == "classifier":
            expected = model(clips[:, :seen])
        else:
            z = model.embeddings(clips[:, :seen])
            expected = model.classify(z[:, -HEAD_WINDOW:])
        # Shifts change little in an untrained model, but more than the latter tolerance.
        atol = 1e-4 if model.spec.temporal_shift == "none" else 1e-6
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=atol)
        assert np.ptp(logits) > 0.01


# Each kind of model on the smallest backbones; larger ones have the same layers, and heads don't
# know whose activations and gates their features are of.
SAMPLE = {
    *(f"movinet_a0{variant}" for variant in ("_stream", "_stream_grw", "_grw")),
    *(f"mobilenet_v3_small{variant}" for variant in ("_intermediate", "_grw", "_tsm")),
}
NAMES = [
    name if name in SAMPLE else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in registry.specs()
]


@pytest.mark.slow
def test_the_loss_takes_the_layer_norm_of_z_where_the_spec_says_so():
    check_smoothing(small("mobilenet_v3_small_grw", loss_input="layer_norm"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_registered_model_is_smoothed_and_streams_as_its_spec_says(name):
    model = small(name)
    check_smoothing(model)
    if model.spec.streaming:
        check_streaming(model)
    else:
        with pytest.raises(ValueError, match="frame by frame"):
            model.to_streaming()


@pytest.mark.parametrize("temporal_shift", ["bidirectional", "causal"])
def test_an_eighth_of_the_channels_is_shifted(temporal_shift):
    x = np.random.default_rng(0).random((2, 3, 4, 4, 17), np.float32)
    expected = x.copy()
    for frame in range(3):
        expected[:, frame, ..., 0:2] = x[:, frame - 1, ..., 0:2] if frame > 0 else 0
        if temporal_shift == "bidirectional":
            expected[:, frame, ..., 2:4] = x[:, frame + 1, ..., 2:4] if frame < 2 else 0
    np.testing.assert_array_equal(shift_channels(tf.constant(x), temporal_shift), expected)


@pytest.mark.slow
def test_every_residual_block_is_shifted():
    model = small("mobilenet_v3_small_tsm")
    layers = model.backbone.cnn.layers
    blocks = {layer.name.removesuffix("/Add") for layer in layers if layer.name.endswith("/Add")}
    assert model.backbone.shifted == {f"{block}/expand" for block in blocks}
    assert len(blocks) == 6


def test_a_frame_is_paired_with_the_first_of_its_window():
    np.testing.assert_array_equal(base_frame_indices(7, 3), [0, 0, 0, 3, 3, 3, 6])


@pytest.fixture(scope="module")
def mobilenet():
    return small("mobilenet_v3_small")


@pytest.fixture(scope="module")
def smoothed_mobilenet():
    return small("mobilenet_v3_small_grw")


@pytest.mark.slow
def test_a_session_answers_with_probabilities_and_forgets_on_reset(smoothed_mobilenet):
    model = smoothed_mobilenet
    first, second = random_clips(2, 7, size=64).numpy()
    session = model.to_streaming(resolution=64)
    alone = [session.step(frame) for frame in second]
    session.reset()
    for frame in first:
        session.step(frame)
    session.reset()
    again = [session.step(frame) for frame in second]
    np.testing.assert_array_equal(alone, again)
    assert session.frames_seen == 7
    assert alone[-1].shape == (CLASSES,)
    assert alone[-1].dtype == np.float32
    np.testing.assert_allclose(np.sum(alone, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(alone[1], tf.nn.softmax(model(second[None, :2]))[0], atol=1e-5)


@pytest.mark.slow
def test_two_sessions_of_a_model_do_not_share_states(smoothed_mobilenet):
    model = smoothed_mobilenet
    first, second = random_clips(2, 3).numpy()
    one, other = model.to_streaming(SIZE), model.to_streaming(SIZE)
    interleaved = [(one.step(a), other.step(b))[1] for a, b in zip(first, second, strict=True)]
    other.reset()
    np.testing.assert_array_equal(interleaved, [other.step(frame) for frame in second])


def test_a_session_takes_camera_frames(mobilenet):
    session = mobilenet.to_streaming(resolution=56)
    frame = np.full((90, 120, 3), 128, np.uint8)
    from_camera = session.step(frame)
    session.reset()
    np.testing.assert_allclose(
        from_camera, session.step(np.full((56, 56, 3), 128 / 255)), atol=1e-5
    )
    noise = np.random.default_rng(0).integers(0, 256, frame.shape, np.uint8)
    resize = round(56 * mobilenet.spec.resize / mobilenet.spec.resolution)
    assert resize > 56
    prepared = lite_files.prepared(noise, resize, 56)[0, 0].numpy().clip(0, 1)
    session.reset()
    of_noise = session.step(noise)
    session.reset()
    np.testing.assert_allclose(of_noise, session.step(prepared), atol=1e-6)
    session.reset()
    cut_otherwise = lite_files.prepared(noise, 56, 56)[0, 0].numpy().clip(0, 1)
    assert np.abs(session.step(cut_otherwise) - of_noise).max() > 1e-5


@pytest.fixture(scope="module")
def mobilenet_session(mobilenet):
    return mobilenet.to_streaming(SIZE)


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (None, TypeError, "did the camera give none"),
        (np.zeros((8, 8), np.uint8), ValueError, r"\[H, W, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"\[H, W, 3\]"),
        (np.zeros((8, 8, 3), np.int64), TypeError, "uint8 or float"),
        (np.full((8, 8, 3), 2.0), ValueError, "divide by 255"),
        (np.full((8, 8, 3), np.nan), ValueError, "divide by 255"),
    ],
)
def test_frames_that_are_none_are_refused(frame, error, message, mobilenet_session):
    with pytest.raises(error, match=message):
        mobilenet_session.step(frame)
    assert mobilenet_session.frames_seen == 0


@pytest.mark.parametrize(
    ("clips", "error", "message"),
    [
        (tf.zeros([1, 5, 32, 32, 3], tf.uint8), TypeError, "divide uint8 pixels by 255"),
        (tf.zeros([1, 5, 32, 48, 3]), ValueError, "squares"),
        (tf.zeros([5, 32, 32, 3]), ValueError, r"\[B, N, H, W, 3\]"),
        (tf.zeros([1, 5, 3, 32, 32]), ValueError, r"\[B, N, H, W, 3\]"),
    ],
)
def test_clips_that_are_none_are_refused(clips, error, message, mobilenet):
    with pytest.raises(error, match=message):
        mobilenet(clips)


@pytest.mark.slow
def test_masked_frames_reach_neither_the_head_nor_the_loss(mobilenet, smoothed_mobilenet):
    model = smoothed_mobilenet
    clips = random_clips(2, 10)
    mask = tf.constant([[True] * 5 + [False] * 5] * 2)
    padded = tf.concat([clips[:, :5], tf.ones_like(clips[:, 5:])], axis=1)
    np.testing.assert_allclose(model(padded, mask=mask), model(clips[:, :5]), atol=1e-5)
    plain = mobilenet(padded, mask=mask)
    np.testing.assert_allclose(plain, mobilenet(clips[:, :5]), atol=1e-5)


def test_the_official_classifier_refuses_a_mask():
    head = MovinetClassifierHead(registry.get("movinet_a0_stream"), Randomness(0))
    with pytest.raises(ValueError, match="averages over all frames"):
        head(tf.zeros([1, 1, 1, 1, 480]), mask=tf.ones([1, 3], tf.bool))


@pytest.mark.slow
def test_an_endpoint_of_two_inputs_is_refused():
    with pytest.raises(ValueError, match="must be one of Conv, ") as refused:
        small("mobilenet_v3_small_intermediate", endpoint="expanded_conv_1/Add")
    assert "/Add" not in str(refused.value).partition("Received")[0]


@pytest.mark.exhaustive
def test_an_endpoint_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"one of block0_layer0, .*head"):
        small("movinet_a0_stream_intermediate", endpoint="block9_layer9")
