"""The models of the paper, its ablations and its baselines, by name."""

import difflib
import functools
import os
from pathlib import Path
from typing import Any

from grw_keras.hints import did_you_mean_path
from grw_keras.models.spec import MOVINETS, ModelSpec

# Resolution, resize, frames, fps and T of table 1 and section 4; sizes of the resize are the
# authors' evaluation script's.
_CLIPS = {
    "movinet_a0": (172, 200, 50, 5.0, 5),
    "movinet_a1": (172, 200, 50, 5.0, 5),
    "movinet_a2": (224, 256, 50, 5.0, 5),
    "movinet_a3": (256, 300, 120, 12.0, 6),
    "mobilenet_v3_small": (224, 256, 50, 5.0, 5),
    "mobilenet_v3_large": (224, 256, 50, 5.0, 5),
}
_STREAMING_MOVINETS = ("movinet_a0", "movinet_a1", "movinet_a2")
_STREAM: dict[str, Any] = {"streaming": True}
_BASE: dict[str, Any] = {
    "streaming": False,
    "conv_type": "3d",
    "se_type": "3d",
    "activation": "swish",
    "gating_activation": "sigmoid",
}
_RELU6: dict[str, Any] = {
    "activation": "relu6",
    "classifier_activation": "relu6",
    "se_type": "none",
}
_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "_grw": {"head": "transformer", "placement": "final"},
    "_intermediate": {"placement": "intermediate"},
    "_attention": {"head": "transformer"},
}


def _spec(backbone: str, *parts: dict[str, Any]) -> ModelSpec:
    resolution, resize, frames, fps, window = _CLIPS[backbone]
    fields: dict[str, Any] = {
        "backbone": backbone,
        "resolution": resolution,
        "resize": resize,
        "frames": frames,
        "fps": fps,
        "window": window,
    }
    for part in parts:
        fields |= part
    return ModelSpec(**fields)


def _movinets():
    for backbone in MOVINETS:
        for form in (_STREAM, _BASE) if backbone in _STREAMING_MOVINETS else (_BASE,):
            for mobile in ({}, _RELU6):
                for variant in _VARIANTS.values():
                    yield _spec(backbone, form, mobile, variant)


def _mobilenets():
    two_sided: dict[str, Any] = {"temporal_shift": "bidirectional"}
    for backbone in ("mobilenet_v3_small", "mobilenet_v3_large"):
        yield _spec(backbone, _STREAM)
        yield _spec(backbone, _STREAM, two_sided)
    pairs: dict[str, Any] = {"pair_input": True, "endpoint": "Conv_1"}
    for suffix, variant in _VARIANTS.items():
        if suffix:
            yield _spec("mobilenet_v3_small", _STREAM, pairs, variant)


@functools.cache
def specs() -> dict[str, ModelSpec]:
    """All registered models, name to spec, in the order of their families."""
    return {spec.name: spec for spec in (*_movinets(), *_mobilenets())}


def find(name: str | os.PathLike) -> ModelSpec:
    """As `get`, for what may have been meant as a path to a folder that isn't there.

    Raises:
        FileNotFoundError: so it looks.
        ValueError: as of `get`.
    """
    text = os.fspath(name)
    if Path(text).is_file():
        raise FileNotFoundError(
            "This must be the folder of a run or a model, or a model's name. A TFLite file is run "
            "by grw_keras.lite.StreamSession and measured by grw-keras benchmark; other files are "
            f"weights for a name. Received: {text}, a file"
        )
    if isinstance(name, os.PathLike) or os.sep in text:
        raise FileNotFoundError(
            f"No such folder, and no model has this name. {did_you_mean_path(Path(text))}"
            f"Received: {text}"
        )
    return get(text)


def get(name: str) -> ModelSpec:
    """The spec of a registered model.

    Raises:
        ValueError: no such name; says the closest ones.
    """
    if name not in specs():
        close = difflib.get_close_matches(name, specs(), n=3)
        hint = f"The closest: {', '.join(close)}. " if close else ""
        raise ValueError(
            f"No model has this name. {hint}All of them: grw-keras list, or "
            f"grw_keras.zoo.list_models(). Received: name={name!r}"
        )
    return specs()[name]
