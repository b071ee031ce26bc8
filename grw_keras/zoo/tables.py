"""What the zoo holds, for people: a table of all models, and a page on one."""

import dataclasses
import fnmatch
import textwrap
from collections.abc import Iterable
from pathlib import Path

from grw_keras import csv_table
from grw_keras.models import pretrained
from grw_keras.models.spec import ModelSpec
from grw_keras.text_table import aligned
from grw_keras.zoo import manifest, registry

COSTS = Path(__file__).with_name("costs.csv")  # counted by benchmarks/cost.py
_COLUMNS = (
    "name",
    "family",
    "px",
    "frames",
    "fps",
    "GMACs/clip",
    "state MB",
    "weights MB",
    "published",
    "K600 top-1",
)


class ModelNames(tuple[str, ...]):
    """Names of models; printed, they are a table with cost and published accuracy."""

    def __repr__(self) -> str:
        costs = read_costs()
        published = {name: entry.dataset for entry in manifest.entries() for name in entry.models}
        rows = [_row(costs[name], published.get(name, "")) for name in self]
        return aligned((_COLUMNS, *rows), "<<>")

    __str__ = __repr__


def list_models(pattern: str = "*") -> ModelNames:
    """Names of the registered models.

    Args:
        pattern: shell pattern of the names.

    Returns:
        A tuple of names. Printed, it is a table: multiply-accumulates of one clip of that many
        frames (10⁹), states of a stream and weights (10⁶ bytes), the data set of published weights
        where there are any, top-1 on Kinetics-600 as published (percent, the paper's tables 1, 2
        and 4).

    Raises:
        ValueError: no name fits the pattern.

    Example:
        >>> list_models("mobilenet_v3_large*")[:]
        ('mobilenet_v3_large', 'mobilenet_v3_large_tsm')
    """
    names = fnmatch.filter(registry.specs(), pattern)
    if not names:
        raise ValueError(f"No model's name fits this pattern. Received: pattern={pattern!r}")
    return ModelNames(names)


def describe(name: str) -> str:
    """A page on one model: its spec, its cost, and where weights are.

    Args:
        name: a registered name, or a folder that `save_pretrained` wrote.

    Raises:
        ValueError: no such name.
        FileNotFoundError: a folder of another kind.
    """
    folder = name not in registry.specs() and Path(name).is_dir()
    spec = pretrained.read_spec(name) if folder else registry.get(name)
    lines = [spec.name, "", *_pairs(_settings(spec))]
    cost = read_costs().get(spec.name)
    if cost:
        lines += ["", "cost (batch 1; of the registered model)", *_pairs(_cost(cost))]
    if folder:
        return "\n".join(lines)
    entries = [entry for entry in manifest.entries() if name in entry.models]
    for entry in entries:
        lines += ["", f'weights "{entry.dataset}", licence: {entry.licence}']
        lines += [f"  {source.url}" for source in entry.sources]
        for metric in entry.metrics:
            lines.append(f"  published top-1: {metric.top1_percent} (table {metric.table})")
        if entry.notes:
            lines += [f"  {line}" for line in textwrap.wrap(entry.notes, 98)]
    if not entries:
        lines += ["", "weights: none published; load with weights=None, a file, or another name's"]
    return "\n".join(lines)


def read_costs() -> dict[str, dict[str, str]]:
    """The rows of `costs.csv` by name."""
    return {row["name"]: row for row in csv_table.read(COSTS)}


def _row(cost: dict[str, str], published: str) -> tuple[str, ...]:
    return (
        cost["name"],
        cost["family"],
        cost["resolution_px"],
        cost["frames"],
        f"{float(cost['fps']):g}",
        f"{float(cost['gmacs']):.2f}",
        _megabytes(cost["state_bytes"]),
        _megabytes(cost["weights_bytes"]),
        published,
        cost["top1_k600"],
    )


def _settings(spec: ModelSpec) -> dict[str, str]:
    return {name: str(value) for name, value in dataclasses.asdict(spec).items()}


def _cost(cost: dict[str, str]) -> dict[str, str]:
    parts = {
        "multiply-accumulates of a clip": f"{float(cost['gmacs']):.3f} · 10⁹",
        "multiply-accumulates of a frame": cost["macs_per_frame_m"]
        and f"{float(cost['macs_per_frame_m']):.1f} · 10⁶, with a transformer head over its window",
        "parameters": cost["parameters"],
        "weights": f"{_megabytes(cost['weights_bytes'])} MB",
        "states of a stream": cost["state_bytes"] and f"{_megabytes(cost['state_bytes'])} MB",
        "peak of a clip's activations": f"{_megabytes(cost['peak_activation_bytes'])} MB",
        "peak of a frame's activations": cost["step_peak_activation_bytes"]
        and f"{_megabytes(cost['step_peak_activation_bytes'])} MB",
        "published top-1 on Kinetics-600": cost["top1_k600"],
    }
    return {name: value for name, value in parts.items() if value}


def _megabytes(count: str) -> str:
    return f"{int(count) / 1e6:.1f}" if count else ""


def _pairs(pairs: dict[str, str]) -> Iterable[str]:
    width = max(map(len, pairs))
    return [f"  {name.ljust(width)}  {value}" for name, value in pairs.items()]
