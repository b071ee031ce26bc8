import numpy as np
import pytest
from keras import ops

from grw_keras.normalization import EPSILON, pool_space, standardize, standardize_frames


def literal(z, mask=None):
    """BN_1d without learnable parameters over batch and time, divided by √D (figure 3)."""
    frames = z[np.ones(z.shape[:2], bool) if mask is None else mask]
    mean, variance = frames.mean(axis=0), frames.var(axis=0)
    return (z - mean) / np.sqrt(variance + EPSILON) / np.sqrt(z.shape[-1])


def test_standardize_is_batch_norm_over_batch_and_time_divided_by_root_d():
    z = np.random.default_rng(0).normal(3.0, 5.0, size=(4, 6, 8))
    out = ops.convert_to_numpy(standardize(ops.convert_to_tensor(z)))
    np.testing.assert_allclose(out, literal(z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.mean(axis=(0, 1)), 0, atol=1e-6)
    assert np.mean(np.sum(out**2, axis=-1)) == pytest.approx(1, rel=1e-6)


def test_standardize_ignores_masked_frames_whatever_they_hold():
    z = np.random.default_rng(1).normal(size=(3, 5, 2))
    mask = np.arange(5) < np.array([[5], [3], [1]])
    rubbish = np.where(mask[..., None], z, 1e6)
    out = ops.convert_to_numpy(standardize(ops.convert_to_tensor(rubbish), mask))
    np.testing.assert_allclose(out[mask], literal(z, mask)[mask], rtol=1e-5, atol=1e-6)


def test_standardize_survives_a_constant_channel_and_a_common_offset():
    z = np.random.default_rng(2).normal(size=(2, 6, 2)).astype(np.float32) + np.float32(1e4)
    z[..., 1] = 7.0
    out = ops.convert_to_numpy(standardize(ops.convert_to_tensor(z)))
    np.testing.assert_allclose(out, literal(z.astype(np.float64)), atol=1e-3)
    np.testing.assert_array_equal(out[..., 1], 0)


def test_standardize_frames_is_a_layer_norm():
    z = np.random.default_rng(4).normal(3.0, 5.0, size=(2, 3, 16))
    out = ops.convert_to_numpy(standardize_frames(ops.convert_to_tensor(z)))
    mean, variance = z.mean(-1, keepdims=True), z.var(-1, keepdims=True)
    np.testing.assert_allclose(out, (z - mean) / np.sqrt(variance + EPSILON), rtol=1e-5, atol=1e-6)


def test_pool_space_averages_pixels_and_leaves_vectors():
    features = np.random.default_rng(3).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    pooled = ops.convert_to_numpy(pool_space(ops.convert_to_tensor(features)))
    np.testing.assert_allclose(pooled, features.mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    vectors = ops.convert_to_tensor(features[:, :, 0, 0])
    assert pool_space(vectors) is vectors


def test_pool_space_refuses_other_ranks():
    with pytest.raises(ValueError, match=r"\[B, N, H, W, D\].*shape \(2, 3, 4, 5\)"):
        pool_space(np.zeros((2, 3, 4, 5)))
