"""The registered names and their specs."""

import dataclasses

import pytest

from grw_keras.models.spec import ModelSpec
from grw_keras.zoo import registry

VARIANTS = ("", "_grw", "_intermediate", "_attention")


def literal_names() -> set[str]:
    """Every name of the architecture's list, spelled out."""
    movinets = ["movinet_a0_stream", "movinet_a1_stream", "movinet_a2_stream"]
    movinets += ["movinet_a0", "movinet_a1", "movinet_a2", "movinet_a3"]
    names = {f"{m}{r}{v}" for m in movinets for r in ("", "_relu6") for v in VARIANTS}
    names |= {f"mobilenet_v3_{size}{tsm}" for size in ("small", "large") for tsm in ("", "_tsm")}
    return names | {f"mobilenet_v3_small{variant}" for variant in VARIANTS[1:]}


def test_every_name_of_the_paper_is_registered():
    assert set(registry.specs()) == literal_names()


@pytest.mark.parametrize("name", registry.specs())
def test_a_spec_survives_its_plain_form(name):
    spec = registry.get(name)
    assert spec.name == name
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert all(type(v) in (str, int, float, bool) for v in spec.to_dict().values())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # resolution, frames, fps: table 1 and section 4; T, λ, α: section 4.
        ("movinet_a0_stream_grw", (172, 50, 5, 5, 0.1, 0.5, 480)),
        ("movinet_a1_stream_grw", (172, 50, 5, 5, 0.1, 0.5, 600)),
        ("movinet_a2_stream_grw", (224, 50, 5, 5, 0.1, 0.5, 640)),
        ("movinet_a3_grw", (256, 120, 12, 6, 0.1, 0.5, 744)),
        ("mobilenet_v3_small_grw", (224, 50, 5, 5, 0.1, 0.5, 576)),
    ],
)
def test_the_settings_are_the_papers(name, settings):
    spec = registry.get(name)
    found = (spec.resolution, spec.frames, spec.fps, spec.window, spec.grw_weight, spec.alpha)
    assert (*found, spec.embed_dim) == settings
    assert (spec.head_depth, spec.head_mlp) == (2, 4 * spec.embed_dim)
    assert spec.head_window == spec.frames


def test_an_unknown_name_gets_the_closest():
    with pytest.raises(ValueError, match="movinet_a1_stream_grw"):
        registry.get("movinet_a1_stream_gwr")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"activation": "relu"}, ValueError, "one of 'hard_swish'"),
        ({"window": 2}, ValueError, "`window` must be >= 3"),
        ({"orderings": "some"}, ValueError, "one of 'auto', 'all', 'exact', 'sampled'"),
        (
            {"placement": "intermediate", "loss_input": "layer_norm"},
            ValueError,
            "'z' but in the final placement",
        ),
        ({"frames": 2.5}, ValueError, "`frames` must be an integer"),
        ({"num_classes": True}, ValueError, "an integer"),
        ({"grw_weight": -1.0}, ValueError, "`grw_weight` must be >= 0"),
        ({"alpha": float("nan")}, ValueError, "`alpha`"),
        ({"dropout": 1.0}, ValueError, r"`dropout` must be in \[0, 1\)"),
        ({"fps": 0}, ValueError, "`fps` must be positive"),
        ({"embed_dim": 481}, ValueError, "even"),
        ({"head_heads": 7}, ValueError, "a divisor of 480"),
        ({"head": "classifier"}, ValueError, "only head='transformer' has Z"),
        ({"pair_input": True}, ValueError, "False with a MoViNet"),
        ({"fps": "5"}, ValueError, "`fps` must be a number"),
        ({"pair_input": "no"}, ValueError, "True or False"),
        ({"windw": 5}, TypeError, "Did you mean 'window'"),
    ],
)
def test_specs_that_cannot_be_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        registry.get("movinet_a0_stream_grw").replace(changes)


def test_sizes_follow_what_they_depend_on():
    spec = registry.get("movinet_a0_stream_grw")
    assert spec.replace({"embed_dim": 64}).head_mlp == 256
    assert spec.replace({"embed_dim": 64, "head_mlp": 100}).head_mlp == 100
    assert spec.replace({"frames": 10}).head_window == 10
    assert spec.replace({"dropout": 0.5}).head_mlp == 4 * 480
    assert spec.replace({"backbone": "movinet_a1"}).embed_dim == 600
    assert spec.replace({"resolution": 86}).resize == 100
    assert spec.replace({"resolution": 86, "resize": 90}).resize == 90
    chosen = spec.replace({"head_window": 4, "head_mlp": 100})
    assert chosen.replace({"frames": 10, "embed_dim": 64}).head_window == 4
    assert chosen.replace({"frames": 10, "embed_dim": 64}).head_mlp == 100


def test_a_spec_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        registry.get("movinet_a0").window = 3
