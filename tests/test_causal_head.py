"""The causal head: its stream, its mathematics, and how it takes a bidirectional head's weights."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import erf, softmax

from grw_keras import zoo
from grw_keras.models.causal_head import CausalTransformerHead
from grw_keras.models.randomness import Randomness
from grw_keras.training import objective
from grw_keras.zoo import registry
from tests.zoo_helpers import random_clips, randomize

pytestmark = pytest.mark.xdist_group("causal head")  # they share what is dear to make

WINDOW, WIDTH, HEADS, MLP, CLASSES = 4, 8, 2, 6, 3
SPEC = registry.get("movinet_a0_stream_grw").replace(
    {
        "head_attention": "causal",
        "head_window": WINDOW,
        "embed_dim": WIDTH,
        "head_heads": HEADS,
        "head_mlp": MLP,
        "num_classes": CLASSES,
    }
)


@pytest.fixture(scope="module")
def head():
    head = CausalTransformerHead(SPEC, Randomness(0))
    head(tf.zeros([1, 2, 5]))
    rng = np.random.default_rng(0)
    for variable in head.weights:
        variable.assign(rng.normal(0.5, 0.7, variable.shape))
    return head


def features(frames, seed=1):
    return np.random.default_rng(seed).normal(size=(2, frames, 5)).astype(np.float32)


def literal_logits(head, x):
    """Of one clip [N, D'], frame by frame and head by head, in float64."""
    w = {name: np.asarray(v.numpy(), np.float64) for name, v in head.named_weights().items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        standard = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return standard * w[f"{name}/gamma"] + w[f"{name}/beta"]

    z = norm(x @ w["affine/kernel"] + w["affine/bias"], "norm")
    for layer in range(SPEC.head_depth):
        at = f"transformer/layer{layer}"
        y = norm(z, f"{at}/attention_norm")
        q, k, v = (
            np.einsum("nd,dhk->hnk", y, w[f"{at}/attention/{p}/kernel"])
            + w[f"{at}/attention/{p}/bias"][:, None]
            for p in ("query", "key", "value")
        )
        attended = np.zeros_like(z) + w[f"{at}/attention/output/bias"]
        for h in range(HEADS):
            for t in range(len(z)):
                past = range(max(0, t - WINDOW + 1), t + 1)
                scores = [
                    q[h, t] @ k[h, s] / np.sqrt(WIDTH / HEADS)
                    + w[f"{at}/attention/distance_bias"][h, t - s]
                    for s in past
                ]
                mixed = sum(p * v[h, s] for p, s in zip(softmax(scores), past, strict=True))
                attended[t] += mixed @ w[f"{at}/attention/output/kernel"][h]
        z = z + attended
        hidden = norm(z, f"{at}/mlp_norm") @ w[f"{at}/mlp_hidden/kernel"]
        hidden += w[f"{at}/mlp_hidden/bias"]
        gelu = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        z = z + gelu @ w[f"{at}/mlp_output/kernel"] + w[f"{at}/mlp_output/bias"]
    mean = norm(z, "transformer/norm")[-WINDOW:].mean(0)
    return mean @ w["logits/kernel"] + w["logits/bias"]


@pytest.mark.parametrize("frames", [1, WINDOW - 1, WINDOW, 3 * WINDOW])
def test_clip_is_the_literal_formula(head, frames):
    x = features(frames)
    expected = [literal_logits(head, clip) for clip in x]
    np.testing.assert_allclose(head(x).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("frames", [WINDOW - 1, WINDOW, 3 * WINDOW])
def test_stream_equals_clip(head, frames):
    x, states = features(frames), head.initial_states(2)
    for t in range(frames):
        logits, states = head.step(x[:, t : t + 1], states)
    np.testing.assert_allclose(logits, head(x), atol=1e-4)


@pytest.mark.parametrize(
    "masks",
    [
        ("111110000", "111111111"),  # padding behind one clip, none behind the other
        ("111011100", "101110111"),  # holes
        ("000111111", "000000001"),  # frames before the first
    ],
)
def test_masked_frames_are_as_if_not_there(head, masks):
    x, mask = features(9), np.array([[frame == "1" for frame in row] for row in masks])
    expected = [head(clip[None, row])[0] for clip, row in zip(x, mask, strict=True)]
    np.testing.assert_allclose(head(x, mask=mask), expected, atol=1e-4)


def test_a_clip_without_frames_gives_numbers(head):
    assert np.isfinite(head(features(3), mask=np.zeros([2, 3], bool))).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_frames_that_see_nothing_spoil_no_half_precision(head, dtype):
    with objective.precision(dtype):
        half = CausalTransformerHead(SPEC, Randomness(0))
        half(tf.zeros([1, 2, 5]))
    for variable, value in zip(half.weights, head.weights, strict=True):
        variable.assign(value / 4)  # within float16's range
    x, mask = features(5), np.array([[False, True, True, True, True]] * 2)
    np.testing.assert_allclose(half(x, mask=mask), half(x[:, 1:]), rtol=0.05, atol=0.05)


def test_frames_out_of_reach_change_nothing(head):
    # The mean reaches back W - 1 frames, and each of two layers W - 1 more.
    reach = 3 * (WINDOW - 1) + 1
    x = features(reach + 1)
    beyond, within = x.copy(), x.copy()
    beyond[:, 0] += 1
    within[:, 1] += 1
    assert np.abs(head(beyond) - head(x)).max() < 2e-6
    assert np.abs(head(within) - head(x)).max() > 2e-5


def test_official_classifier_has_no_attention():
    with pytest.raises(ValueError, match="head_attention"):
        registry.get("movinet_a0_stream").replace({"head_attention": "causal"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A bidirectional model's folder and model, and a causal one's made from it."""
    root = tmp_path_factory.mktemp("heads")
    small = {"num_classes": CLASSES, "resolution": 32, "compile": False, "frames": 6}
    wide = randomize(zoo.load("mobilenet_v3_small_grw", None, head_heads=8, **small))
    wide.save_pretrained(root / "bidirectional")
    causal = zoo.load(
        "mobilenet_v3_small_grw", root / "bidirectional", head_attention="causal", **small
    )
    causal.save_pretrained(root / "causal")
    return root, wide, causal


@pytest.mark.slow
def test_a_bidirectional_heads_weights_are_taken(folders):
    _, wide, causal = folders
    assert causal.spec.head_mlp == causal.spec.embed_dim // 2 == wide.spec.head_mlp // 8
    ours, theirs = causal.named_weights(), wide.named_weights()
    new = {name for name in ours if name not in theirs}
    assert new == {f"transformer/layer{i}/attention/distance_bias" for i in range(2)}
    for name in ours:
        if name in new:
            assert not ours[name].numpy().any()
        elif "/mlp_hidden/" not in name and "/mlp_output/kernel" not in name:
            np.testing.assert_array_equal(ours[name], theirs[name])
    into, out = (theirs[f"transformer/layer1/mlp_{n}/kernel"].numpy() for n in ("hidden", "output"))
    strength = [
        np.sqrt((into[:, u] ** 2).sum() * (out[u] ** 2).sum()) for u in range(into.shape[1])
    ]
    strongest = sorted(np.argsort(strength)[-causal.spec.head_mlp :])
    np.testing.assert_array_equal(ours["transformer/layer1/mlp_hidden/kernel"], into[:, strongest])
    np.testing.assert_array_equal(ours["transformer/layer1/mlp_output/kernel"], out[strongest])


@pytest.mark.slow
def test_a_causal_folder_makes_a_causal_model(folders):
    root, _, causal = folders
    clip = random_clips(1, 4)
    again = zoo.load(root / "causal")
    np.testing.assert_array_equal(again(clip), causal(clip))
    by_name = zoo.load("mobilenet_v3_small_grw", root / "causal", resolution=32)
    assert (by_name.spec.head_attention, by_name.spec.head_window) == ("causal", 6)
    for field, other in (("head_attention", "bidirectional"), ("head_window", 5)):
        with pytest.raises(ValueError, match=field):
            zoo.load("mobilenet_v3_small_grw", root / "causal", **{field: other})


@pytest.mark.slow
def test_a_models_stream_equals_its_clip(folders):
    root, _, _ = folders
    model = zoo.load(root / "causal", compile=False)
    rng = np.random.default_rng(2)
    for name, variable in model.named_weights().items():
        if name.endswith("/distance_bias"):
            variable.assign(rng.normal(size=variable.shape))
    window = model.spec.head_window
    clip, step, states = random_clips(1, 3 * window), tf.function(model.step), None
    states = model.initial_states(resolution=32)
    for seen in range(1, 3 * window + 1):
        logits, states = step(clip[:, seen - 1 : seen], states)
        if seen in (window - 1, window, 3 * window):
            expected = model(clip[:, :seen])
            np.testing.assert_allclose(logits, expected, atol=1e-5 * np.ptp(expected))


@pytest.mark.exhaustive
def test_three_steps_of_training_lower_the_loss_and_move_the_distance_bias(folders):
    root, _, _ = folders
    model = zoo.load(root / "causal", dropout=0.0)
    # The same two clips each time; the loss is the one before the step.
    losses = model.fit(random_clips(2, 6), np.array([0, 1]), epochs=4, verbose=0).history["loss"]
    assert losses[3] < losses[0]
    for layer in range(2):
        name = f"transformer/layer{layer}/attention/distance_bias"
        assert model.named_weights()[name].numpy()[:, 1:].any()
