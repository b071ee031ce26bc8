"""The loss against the authors' numbers and against the equations written out; any backend."""

import keras
import numpy as np
import pytest

from grw_keras import grw_loss
from grw_keras.losses import ShortClipError, grw_terms
from grw_keras.orderings import resolve
from tests.helpers import literal_loss, literal_terms, value_and_grad

BACKEND = keras.backend.backend()
ALPHAS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def reference(shared):
    with np.load(shared / "fixtures" / "grw_loss.npz") as fixture:
        return dict(fixture)


def check_loss(loss, expected):
    assert abs(loss - expected) <= 1e-5 * max(1.0, abs(expected))


def check_gradient(gradient, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * scale + 1e-9)


def cases_of(reference, window, alpha):
    """The case numbers of one window and alpha, grouped by embedding width."""
    chosen = (reference["case_T"] == window) & (reference["case_alpha"] == alpha)
    widths = reference["case_D"]
    return [np.nonzero(chosen & (widths == width))[0] for width in np.unique(widths[chosen])]


# α is added after the orderings are compared: the dear way of comparing them has one, and so have
# backends other than TensorFlow, to which the same code is dear to compile.
AUTHORS_CASES = [("auto", alpha) for alpha in (ALPHAS if BACKEND == "tensorflow" else ALPHAS[1:2])]
AUTHORS_CASES += [("exact", ALPHAS[-1])]


@pytest.mark.parametrize("window", range(3, 8))
@pytest.mark.parametrize(("orderings", "alpha"), AUTHORS_CASES)
def test_every_authors_case_agrees(reference, window, alpha, orderings):
    checked = 0
    for cases in cases_of(reference, window, alpha):
        inputs = [reference[f"Z/{reference['case_Z'][case]:03d}"] for case in cases]
        losses, gradients = value_and_grad(
            lambda z: grw_loss(
                z, window=window, alpha=alpha, orderings=orderings, reduction="none"
            ),
            np.concatenate(inputs),
        )
        ends = np.cumsum([len(z) for z in inputs])
        for case, end, z in zip(cases, ends, inputs, strict=True):
            rows = slice(end - len(z), end)
            check_loss(losses[rows].mean(), reference["loss64"][case])
            if f"g64/{case:04d}" in reference:
                check_gradient(gradients[rows] / len(z), reference[f"g64/{case:04d}"])
            checked += 1
    assert checked >= 24


def test_the_reference_cases_are_all_there(reference):
    total = sum(len(c) for T in range(3, 8) for a in ALPHAS for c in cases_of(reference, T, a))
    assert total == len(reference["case_T"]) == 441


def test_authors_sampled_cases_agree_given_their_orderings(reference):
    assert len(reference["big_keys"]) == 9
    for key in reference["big_keys"]:
        z, rows = reference[f"{key}/Z"], reference[f"{key}/perm_index"]
        loss, gradient = value_and_grad(
            lambda z, rows=rows: grw_loss(z, window=z.shape[1], alpha=0.5, orderings=rows), z
        )
        check_loss(loss, reference[f"{key}/loss64"])
        check_gradient(gradient, reference[f"{key}/g64"])


@pytest.mark.parametrize("orderings", ["exact", "all"])
def test_long_windows_agree_with_the_authors_loss_over_all_orderings(reference, orderings):
    checked = 0
    for key in reference["big_keys"]:
        z = reference[f"{key}/Z"]
        if f"{key}/exact_all_perms_loss64" not in reference or (
            orderings == "all" and z.shape[1] > 8
        ):
            continue
        loss, gradient = value_and_grad(
            lambda z: grw_loss(z, window=z.shape[1], alpha=0.5, orderings=orderings), z
        )
        check_loss(loss, reference[f"{key}/exact_all_perms_loss64"])
        if f"{key}/exact_all_perms_g64" in reference:
            check_gradient(gradient, reference[f"{key}/exact_all_perms_g64"])
        checked += 1
    assert checked == (7 if orderings == "exact" else 6)


@pytest.mark.parametrize("orderings", ["auto", "all", "exact"])
def test_value_worked_out_by_hand(orderings):
    z = np.arange(4.0, dtype=np.float32).reshape(1, 4, 1)
    loss = grw_loss(z, window=4, alpha=1.0, orderings=orderings)
    # ½ Σ a² of 0123, 0132, 0213, 0231, 0312, 0321 is 0, 5, 9, 5, 17, 8; ½ Σ v² of 0123 is 1.5
    by_hand = np.log(sum(np.exp(-energy) for energy in (0, 5, 9, 5, 17, 8))) + 1.5
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    assert by_hand == pytest.approx(1.51384, abs=5e-6)


@pytest.mark.parametrize("window", [9, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 unless switched on")
def test_exact_equals_brute_force_in_float64(window):
    rng = np.random.default_rng(window)
    frames = np.cumsum(rng.normal(size=(1, window, 3)), axis=1) * 0.4
    ordering, speed = literal_terms(frames[0])
    loss = grw_loss(frames, window=window, alpha=0.5, orderings="exact")
    assert keras.backend.standardize_dtype(loss.dtype) == "float64"
    assert float(loss) == pytest.approx(ordering + 0.5 * speed, rel=1e-12)


@pytest.mark.parametrize(("window", "stride"), [(3, None), (4, 1), (4, 3), (5, 5), (3, 7)])
def test_windows_strides_and_dropped_tail(window, stride):
    z = np.random.default_rng(0).normal(size=(2, 13, 3)).astype(np.float32)
    loss, gradient = value_and_grad(lambda z: grw_loss(z, window=window, stride=stride), z)
    assert float(loss) == pytest.approx(literal_loss(z, window, 0.5, stride), rel=1e-5)
    step = stride or window
    used = {s + t for s in range(0, 13 - window + 1, step) for t in range(window)}
    seen = np.nonzero(np.abs(gradient).max(axis=(0, 2)))[0]
    assert set(seen.tolist()) == used


def test_reductions():
    z = np.random.default_rng(1).normal(size=(3, 11, 2)).astype(np.float32)
    each = keras.ops.convert_to_numpy(grw_loss(z, window=5, reduction="none"))
    assert each.shape == (3, 2)
    assert each[1, 1] == pytest.approx(literal_loss(z[1:2, 5:], 5, 0.5), rel=1e-5)
    assert float(grw_loss(z, window=5, reduction="sum")) == pytest.approx(each.sum(), rel=1e-5)
    assert float(grw_loss(z, window=5)) == pytest.approx(each.mean(), rel=1e-5)


def test_masked_frames_take_their_windows_out():
    z = np.random.default_rng(2).normal(size=(2, 12, 4)).astype(np.float32)
    mask = np.ones((2, 12), bool)
    mask[1, 7:] = False  # windows of 4: clip 1 keeps its first only
    padded = np.where(mask[..., None], z, np.nan)
    loss, gradient = value_and_grad(lambda z: grw_loss(z, window=4, mask=mask), padded)
    kept = [literal_loss(z[:1], 4, 0.5)] * 3 + [literal_loss(z[1:, :4], 4, 0.5)]
    assert float(loss) == pytest.approx(np.mean(kept), rel=1e-5)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[1, :4]).max() > 0
    np.testing.assert_array_equal(gradient[1, 4:], 0)
    each = keras.ops.convert_to_numpy(grw_loss(padded, window=4, mask=mask, reduction="none"))
    np.testing.assert_array_equal(each[1, 1:], 0)


def test_no_valid_window_gives_zero_loss_and_gradient():
    z = np.full((1, 6, 2), np.inf, np.float32)
    mask = np.zeros((1, 6), bool)
    loss, gradient = value_and_grad(lambda z: grw_loss(z, window=3, mask=mask), z)
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    z = keras.ops.cast(np.random.default_rng(3).normal(size=(2, 10, 8)), dtype)
    loss = grw_loss(z, window=5)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    rounded = keras.ops.convert_to_numpy(keras.ops.cast(z, "float32"))
    assert float(loss) == pytest.approx(literal_loss(rounded, 5, 0.5), rel=1e-5)


def terms_of(frames, orderings="auto", window=None):
    frames = np.asarray(frames, np.float32)
    window = window or frames.shape[1]
    terms = grw_terms(frames, window=window, orderings=resolve(orderings, window))
    return {name: keras.ops.convert_to_numpy(value) for name, value in terms._asdict().items()}


@pytest.mark.parametrize("orderings", ["all", "exact", "sampled"])
def test_margin_is_positive_only_where_the_true_order_is_strictly_likeliest(orderings):
    line = np.arange(8.0)[:, None]
    swapped = line[[0, 2, 1, 3, 4, 5, 6, 7]]
    still = np.zeros((8, 1))
    margin = terms_of([line, swapped, still], orderings)["margin"][:, 0]
    assert margin[0] > 0
    assert margin[2] == 0
    if orderings != "sampled":  # a sample may lack the straight line
        assert margin[1] < 0
        assert margin[0] == pytest.approx(5.0)  # the last two frames swapped: ½(1² + 3²)


@pytest.mark.parametrize("orderings", ["all", "exact"])
def test_margin_equals_the_literal_one(orderings):
    frames = np.random.default_rng(4).normal(size=(6, 6, 2)) * 0.7
    margins = terms_of(frames, orderings)["margin"][:, 0]
    for window, margin in zip(frames, margins, strict=True):
        rivals = [
            literal_terms(window, [np.arange(6), row])[0] for row in resolve("all", 6)[1:]
        ]  # log(1 + exp(gain)) grows with the rival's log-probability
        assert margin == pytest.approx(-np.log(np.expm1(max(rivals))), abs=1e-4)


def test_a_true_order_drawn_again_counts_in_the_loss_but_is_no_rival():
    line = np.arange(4.0)[None, :, None]
    twice = [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 3, 2]]
    terms = terms_of(line, twice)
    assert terms["ordering"][0, 0] == pytest.approx(np.log(2 + np.exp(-5)), rel=1e-6)
    assert terms["margin"][0, 0] == pytest.approx(5.0)


def test_acceleration_is_the_mean_norm():
    frames = np.array([[[0.0, 0.0], [1.0, 0.0], [2.0, 3.0], [7.0, 6.0]]])
    assert terms_of(frames)["acceleration"][0, 0] == pytest.approx((3.0 + 4.0) / 2)


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (np.zeros((5, 3)), {}, r"embeddings \[B, N, D\].*shape \(5, 3\)"),
        (np.zeros((1, 4, 3)), {}, r"N=4 frames, window=5"),
        (np.zeros((1, 9, 3)), {"window": 2}, r"window=2"),
        (np.zeros((1, 9, 3)), {"alpha": -0.5}, r"`alpha`.*>= 0.*alpha=-0\.5"),
        (np.zeros((1, 9, 3)), {"alpha": np.nan}, r"alpha=nan"),
        (np.zeros((1, 9, 3)), {"stride": 0}, r"`stride`.*stride=0"),
        (np.zeros((1, 9, 3)), {"reduction": "max"}, r"'mean', 'sum', 'none'.*reduction='max'"),
        (np.zeros((1, 9, 3)), {"orderings": "al"}, r"orderings='al'"),
        (np.zeros((1, 9, 3)), {"mask": np.ones(9)}, r"`mask` must be \[B, N\].*\(9,\)"),
        (np.zeros((1, 9, 3)), {"mask": np.ones((1, 8))}, r"`mask` must be \[B, N\].*\(1, 8\)"),
        (np.full((1, 9, 3), np.nan), {"debug": True}, r"`z` must be finite"),
    ],
)
def test_bad_input_is_refused_with_what_was_received(z, options, message):
    with pytest.raises(ValueError, match=message):
        grw_loss(z, **options)


def test_a_short_clip_is_a_value_error_of_its_own():
    assert issubclass(ShortClipError, ValueError)
    with pytest.raises(ShortClipError, match="N=2 frames, window=3"):
        grw_loss(np.zeros((1, 2, 1)), window=3)


def test_debug_lets_masked_rubbish_pass():
    z = np.zeros((1, 6, 1), np.float32)
    z[0, 5] = np.nan
    mask = np.arange(6)[None] < 5
    assert float(grw_loss(z, window=3, mask=mask, debug=True)) == pytest.approx(np.log(2))


@pytest.mark.skipif(BACKEND != "jax", reason="JAX only")
def test_debug_works_under_jit_on_jax():
    import jax

    loss = jax.jit(lambda z: grw_loss(z, window=3, debug=True))
    assert float(loss(np.zeros((1, 3, 1), np.float32))) == pytest.approx(np.log(2))

    def run_on_nan():
        jax.block_until_ready(loss(np.full((1, 3, 1), np.nan, np.float32)))
        jax.effects_barrier()

    with pytest.raises(Exception, match="`z` must be finite"):
        run_on_nan()


def test_a_tensor_of_another_framework_is_refused():
    class Foreign:
        shape, dtype = (1, 5, 1), "float32"

    other = "jax" if BACKEND == "tensorflow" else "tensorflow"
    Foreign.__module__ = f"{other}.python.framework.ops"
    with pytest.raises(TypeError, match=f"{other} tensor.*KERAS_BACKEND={other}"):
        grw_loss(Foreign())
