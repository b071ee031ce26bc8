"""The forms of a convolution turned into each other."""

import numpy as np
import pytest

from grw_keras.zoo.importers.conv_forms import conv_type_of, convert_conv_type
from tests.official_movinets import assert_same_tensors

FORMS = {
    "2plus1d": {
        "stem/conv/kernel": (3, 3, 3, 8),
        "block1_layer0/feature/conv/kernel": (3, 3, 80, 1),
        "block1_layer0/feature/conv_temporal/kernel": (5, 1, 80, 1),
        "block1_layer0/se_reduce/conv/kernel": (1, 1, 160, 40),
        "block1_layer0/se_reduce/conv/bias": (40,),
    },
    "3d_2plus1d": {
        "stem/conv/kernel": (1, 3, 3, 3, 8),
        "block1_layer0/feature/conv/kernel": (1, 3, 3, 1, 80),
        "block1_layer0/feature/conv_temporal/kernel": (5, 1, 1, 1, 80),
        "block1_layer0/se_reduce/conv/kernel": (1, 1, 1, 160, 40),
        "block1_layer0/se_reduce/conv/bias": (40,),
    },
}


def arrays(shapes):
    return {
        name: np.arange(np.prod(shape)).reshape(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("source", "target"), [tuple(FORMS), tuple(FORMS)[::-1]])
def test_conversion_gives_the_other_forms_shapes_and_comes_back(source, target):
    tensors = arrays(FORMS[source])
    converted = convert_conv_type(tensors, target)
    assert {name: tensor.shape for name, tensor in converted.items()} == FORMS[target]
    assert conv_type_of(converted) == target
    assert_same_tensors(convert_conv_type(converted, source), tensors)
    assert_same_tensors(convert_conv_type(tensors, source), tensors)


def test_each_channel_keeps_its_depthwise_kernel():
    tensors = arrays(FORMS["3d_2plus1d"])
    converted = convert_conv_type(tensors, "2plus1d")
    spatial, temporal = (f"block1_layer0/feature/{c}/kernel" for c in ("conv", "conv_temporal"))
    for channel in range(80):
        np.testing.assert_array_equal(
            converted[spatial][:, :, channel, 0], tensors[spatial][0, :, :, 0, channel]
        )
        np.testing.assert_array_equal(
            converted[temporal][:, 0, channel, 0], tensors[temporal][:, 0, 0, 0, channel]
        )


@pytest.mark.parametrize("target", ["2plus1d", "3d_2plus1d"])
def test_3d_kernels_of_one_frame_convert(target):
    shapes = {n: s for n, s in FORMS["3d_2plus1d"].items() if "temporal" not in n}
    tensors = arrays(shapes)
    assert conv_type_of(tensors) == "3d"
    converted = convert_conv_type(tensors, target)
    expected = {n: s for n, s in FORMS[target].items() if "temporal" not in n}
    assert {name: tensor.shape for name, tensor in converted.items()} == expected


@pytest.mark.parametrize(
    ("shapes", "target", "message"),
    [
        ({"block0_layer0/feature/conv/kernel": (3, 3, 3, 1, 24)}, "2plus1d", "block0_layer0/fea"),
        (FORMS["2plus1d"], "3d", "block1_layer0/feature/conv_temporal/kernel"),
        (FORMS["3d_2plus1d"], "3d", "block1_layer0/feature/conv_temporal/kernel"),
        (FORMS["2plus1d"], "2d", "Received: conv_type='2d'"),
        ({"logits/conv/bias": (5,)}, "2plus1d", "Received: 0 kernels"),
        ({"a/conv/kernel": (1, 1, 2, 2), "b/conv/kernel": (2, 2)}, "3d", r"b/conv/kernel \(2, 2\)"),
    ],
)
def test_impossible_conversions_name_the_tensors(shapes, target, message):
    with pytest.raises(ValueError, match=message):
        convert_conv_type(arrays(shapes), target)
