"""Fitting foreign tensors to a model: what a file fixes, and a strict comparison name by name."""

import dataclasses
import fnmatch
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from grw_keras.models.names import BATCH_NORM_EPSILON
from grw_keras.models.spec import ModelSpec
from grw_keras.zoo.importers import Imported
from grw_keras.zoo.importers.conv_forms import convert_conv_type

log = logging.getLogger("grw_keras")

# Fields of the spec that weights fix: always, and where their head is the model's.
_FIXED = ("activation", "gating_activation", "se_type", "frozen_batch_norm")
_FIXED_BY_HEAD = ("classifier_activation", "embed_dim", "head_depth", "head_heads", "head_mlp")
_MLP = re.compile(r"(transformer/layer\d+/mlp_)hidden/kernel")
_RGB_STEM = "backbone/Conv/kernel"
# What importers give a folded batch norm: epsilon makes it 1.
_FOLDED_VARIANCE = 1 - BATCH_NORM_EPSILON


class WeightsMismatchError(ValueError):
    """A file's tensors are not the model's; `report` says which."""

    def __init__(self, message: str, report: "Report"):
        super().__init__(message)
        self.report = report


@dataclasses.dataclass(frozen=True)
class Report:
    """How a file's tensors compare with a model's weights.

    Args:
        loaded: names that fit.
        missing: in the model, not in the file.
        unexpected: in the file, not in the model.
        wrong_shape: name to (shape in the model, shape in the file).
        left_new: in the model, meant to stay as initialised.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: Mapping[str, tuple[tuple, tuple]]
    left_new: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        shapes = [f"{n}: model {m}, file {f}" for n, (m, f) in self.wrong_shape.items()]
        lines = [f"{len(self.loaded)} tensors fit"]
        for title, names in (
            ("missing in the file", self.missing),
            ("unexpected in the file", self.unexpected),
            ("of another shape", shapes),
        ):
            if names:
                lines.append(f"{len(names)} {title}:")
                lines += [f"  {name}" for name in names]
        return "\n".join(lines)


def resolve(
    spec: ModelSpec, imported: Imported, num_classes: int | None, chosen: Sequence[str] = ()
) -> ModelSpec:
    """The spec with what the weights fix: activations, gates, head sizes, number of classes.

    Args:
        spec: of the model asked for.
        imported: the weights.
        num_classes: width of the logits; None takes the file's.
        chosen: fields that the user chose, which the weights may not contradict.

    Raises:
        ValueError: weights of another backbone, or of other parts than the user chose.
    """
    file = imported.spec
    identity = ("backbone", "streaming") if spec.family == "movinet" else ("backbone",)
    for field in identity:
        if file.get(field, getattr(spec, field)) != getattr(spec, field):
            stream = "_stream" if file.get("streaming") and spec.family == "movinet" else ""
            raise ValueError(
                f"The weights are of another model than {spec.name}: of "
                f"{file.get('backbone', spec.backbone)}{stream}. Load them by a name that begins "
                f"so. Their `{field}` is {file[field]!r}."
            )
    fixed = _FIXED + (_FIXED_BY_HEAD if same_head(spec, imported) else ())
    changes: dict[str, Any] = {
        field: file[field]
        for field in fixed
        if field in file and not (field in chosen and field in imported.assumed)
    }
    if same_head(spec, imported) and file.get("head_attention") == "causal":
        changes |= {field: file[field] for field in ("head_attention", "head_window")}
    elif spec.head_attention == "causal":
        changes.pop("head_mlp", None)  # its hidden units are taken from the file's
    if is_folded(imported.tensors):
        changes["frozen_batch_norm"] = True
    if "frozen_batch_norm" in chosen and spec.frozen_batch_norm:
        changes.pop("frozen_batch_norm", None)  # any weights can be frozen
    for field in chosen:
        if field in changes and changes[field] != getattr(spec, field):
            raise ValueError(
                f"The weights fix `{field}`={changes[field]!r}: leave it out, or load without "
                f"weights. Received: {field}={getattr(spec, field)!r}"
            )
    if num_classes is None:
        num_classes = file.get("num_classes", spec.num_classes)
    resolved = spec.replace({**changes, "num_classes": num_classes})
    for field in ("temporal_shift", "resolution", "fps"):
        trained, asked = file.get(field, getattr(spec, field)), getattr(spec, field)
        if trained != asked and field not in chosen:
            told = (spec.name, field, trained, asked)
            log.warning("%s: its weights were trained with %s=%r, not %r", *told)
    if resolved.name != spec.name:
        log.warning("%s became %s: its weights fix that", spec.name, resolved.name)
    return resolved


def same_head(spec: ModelSpec, imported: Imported) -> bool:
    """Whether the file's head, official classifier or transformer, is the model's."""
    return imported.spec.get("head") == spec.head


def is_folded(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the batch norms are folded into the convolutions: each is only a bias."""
    means = [t for n, t in tensors.items() if n.endswith("/moving_mean")]
    variances = [t for n, t in tensors.items() if n.endswith("/moving_variance")]
    return (
        bool(means)
        and not any(np.any(mean) for mean in means)
        and all(np.allclose(variance, _FOLDED_VARIANCE, atol=1e-6) for variance in variances)
    )


def fit(model, imported: Imported, skip: Sequence[str] = ()) -> Report:
    """Assigns the tensors to the model's weights; nothing where they don't fit.

    The official classifier's weights stay away from a transformer head and the other way round;
    where the number of classes differs, the last linear layer stays new.

    Args:
        model: a `VideoClassifier` whose spec `resolve` gave.
        imported: the weights.
        skip: patterns (`fnmatch`) of names to leave as they are in the model.

    Raises:
        WeightsMismatchError: tensors missing, unexpected or of another shape.
        ValueError: tensors that are not finite, a pattern that fits no name.
    """
    weights = model.named_weights()
    tensors = _conformed(model.spec, imported)
    new: list[str] = []

    def leave(pattern) -> None:
        new.extend(name for name in weights if pattern(name) and name not in new)
        for name in filter(pattern, list(tensors)):
            del tensors[name]

    if not same_head(model.spec, imported):
        leave(lambda name: not name.startswith("backbone/"))
    elif imported.spec.get("num_classes", model.spec.num_classes) != model.spec.num_classes:
        leave(lambda name: name.startswith("logits/"))
    if imported.spec.get("head_attention") != "causal":
        leave(lambda name: name.endswith("/distance_bias"))
    if isinstance(skip, str):
        raise TypeError(f"`skip` must be a sequence of patterns. Received: the string {skip!r}")
    for pattern in skip:
        if not fnmatch.filter([*weights, *tensors], pattern):
            raise ValueError(f"No tensor's name fits this pattern of `skip`: {pattern!r}")
        leave(lambda name, pattern=pattern: fnmatch.fnmatch(name, pattern))
    report = compare({n: tuple(w.shape) for n, w in weights.items() if n not in new}, tensors)
    report = dataclasses.replace(report, left_new=tuple(new))
    if not report:
        raise WeightsMismatchError(
            f"The weights don't fit {model.spec.name}; nothing was loaded. Patterns of names "
            f"to leave out can be given as `skip`.\n{report}",
            report,
        )
    broken = [n for n in report.loaded if not np.all(np.isfinite(tensors[n]))]
    if broken:
        raise ValueError(f"Tensors with NaN or infinite values: {', '.join(broken)}")
    for name in report.loaded:
        weights[name].assign(tensors[name])
    if new:
        log.warning(
            "%s: %d tensors loaded; new, to be trained: %s",
            model.spec.name,
            len(report.loaded),
            ", ".join(_parts(new, report.loaded)),
        )
    for note in imported.notes:
        log.warning("%s: %s", model.spec.name, note)
    return report


def _parts(new: Iterable[str], loaded: Iterable[str]) -> list[str]:
    """The parts of the model that are new; of those that were loaded in part, how many tensors."""
    known = {name.partition("/")[0] for name in loaded}
    counts = Counter(name.partition("/")[0] for name in new)
    return [f"{n} tensors of {p}" if p in known else p for p, n in sorted(counts.items())]


def compare(shapes: Mapping[str, tuple], tensors: Mapping[str, np.ndarray]) -> Report:
    """How the tensors of a file compare with the shapes of a model's weights."""
    wrong = {
        name: (shape, tensors[name].shape)
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    }
    return Report(
        loaded=tuple(n for n in shapes if n in tensors and n not in wrong),
        missing=tuple(n for n in shapes if n not in tensors),
        unexpected=tuple(n for n in tensors if n not in shapes),
        wrong_shape=wrong,
    )


def _conformed(spec: ModelSpec, imported: Imported) -> dict[str, np.ndarray]:
    """The tensors in the model's convolution form, the stem with the model's input channels."""
    tensors = dict(imported.tensors)
    if imported.spec.get("conv_type", spec.conv_type) != spec.conv_type:
        tensors = convert_conv_type(tensors, spec.conv_type)
    if spec.head_attention == "causal" and imported.spec.get("head_attention") != "causal":
        tensors |= _strongest_units(tensors, spec.head_mlp)
    stem = tensors.get(_RGB_STEM)
    if spec.pair_input and stem is not None and stem.shape[2] == 3:
        # The frame and its base frame share the RGB kernel at first: a still clip of either
        # gives what the RGB model gives.
        tensors[_RGB_STEM] = np.concatenate([stem, stem], axis=2) / 2
    return tensors


def _strongest_units(tensors: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The transformer's MLPs with `count` hidden units each: those whose weights in and out have
    the largest product of norms, in their order."""
    fewer = {}
    for prefix in (match[1] for match in map(_MLP.fullmatch, tensors) if match):
        into, out = tensors[f"{prefix}hidden/kernel"], tensors[f"{prefix}output/kernel"]
        strength = np.linalg.norm(into, axis=0) * np.linalg.norm(out, axis=1)
        kept = np.sort(np.argsort(-strength, kind="stable")[:count])
        fewer[f"{prefix}hidden/kernel"] = into[:, kept]
        fewer[f"{prefix}hidden/bias"] = tensors[f"{prefix}hidden/bias"][kept]
        fewer[f"{prefix}output/kernel"] = out[kept]
    return fewer
