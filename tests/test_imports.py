"""The direction of imports inside the package, and what importing it costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import grw_keras

PACKAGE = Path(grw_keras.__file__).parent
# Each module may import those to its left.
# fmt: off
ORDER = [
    "lite",  # first: it is copied to machines that have nothing else of the package
    "atomic", "csv_table", "checked", "hints",
    "lazy", "orderings", "backend", "losses", "normalization", "layer", "regularizer", "proof",
    "graph", "tracing",
    "attachment", "strict_yaml", "text_table", "models.names", "models.spec", "models.randomness",
    "models.pooling", "models.conv3d", "models.movinet", "models.mobilenet", "models.head",
    "models.causal_head", "models.optimizer",
    "models.streaming", "models.pretrained", "models.accumulation", "models.classifier",
    "zoo.cache", "zoo.transfer", "zoo.download", "zoo.manifest", "zoo.registry", "zoo.tables",
    "zoo.batch_norm", "zoo.importers", "zoo.importers.conv_forms", "zoo.importers.object_graph",
    "zoo.importers.tf_checkpoint", "zoo.importers.saved_model", "zoo.importers.tflite_graph",
    "zoo.importers.tflite_convolution", "zoo.importers.tflite_layers", "zoo.importers.tflite",
    "zoo.importers.torch_archive", "zoo.importers.torch_pickle", "zoo.importers.torch_names",
    "zoo.importers.torch_checkpoint", "zoo.importers.files", "zoo.matching", "zoo.loading",
    "evaluation.published", "evaluation.cost", "zoo",
    "data.video_file", "data.video", "data.airplanes", "data.airplanes_tfds",
    "data.sampling", "data.transforms", "data.clips",
    "data.csv_rows", "data.csv_source", "data.folder_source", "data.kinetics", "data.sources",
    "data.splits", "data.workers", "data.scan_cache", "data.scan", "data.tf_example",
    "data.record_files",
    "data.record_builder", "data.records", "data.record_store", "data.tfds_source",
    "data.stores", "data.samples", "data.pipeline", "data.opening",
    "evaluation.metrics", "evaluation.results", "evaluation.tables", "evaluation.predictions",
    "evaluation.evaluating", "evaluation.timeline",
    "figures", "trajectories", "page", "report", "labelled_video",
    "export.fake_quantization",  # without what makes files: training uses it
    "training.recipe_checks", "training.recipe", "training.runs", "training.checkpoint_files",
    "training.cluster", "training.distribution", "training.launch", "training.averaging",
    "training.state", "training.listening", "training.stopping", "training.objective",
    "training.determinism",
    "training.trainer", "training.assembly", "training.concluding", "training.run",
    "training.again",
    "export.layers", "export.folding", "export.lean_movinet", "export.lean_mobilenet",
    "export.lean_heads", "export.graphs", "export.conversion", "export.clips",
    "export.description", "export.verify", "export.running", "export.quantize", "export.rounding",
    "export.tflite", "export",
    "export.profiler", "export.operations", "export.measurement", "export.benchmark",
    "cli.flags", "cli.models", "cli.training", "cli.use", "cli.data", "cli.edge", "cli",
    "cli.__main__",
]
# fmt: on
MODULES = {f"grw_keras.{name}" for name in ORDER}
HEAVY = {"tensorflow", "tf_keras", "jax", "torch", "official"}
NEEDS_TENSORFLOW = {"data.pipeline", "data.record_builder", "data.airplanes_tfds"}
# fmt: off
NEEDS_NO_TENSORFLOW = [
    "__init__", "lite", "lazy", "orderings", "backend", "losses", "normalization", "layer",
    "keras3", "models.names", "models.spec", "zoo", "zoo.cache", "zoo.transfer", "zoo.download",
    "zoo.manifest", "zoo.registry", "zoo.tables", "zoo.importers", "zoo.importers.conv_forms",
    "zoo.importers.torch_archive", "zoo.importers.torch_pickle", "zoo.importers.torch_names",
    "zoo.importers.torch_checkpoint", "zoo.importers.files", "zoo.matching", "evaluation",
    "evaluation.published", "models", "models.pretrained",
    "atomic", "csv_table", "checked", "hints",
    "strict_yaml", "text_table",
    "evaluation.metrics", "evaluation.results",
    "evaluation.tables", "figures", "trajectories", "page", "report", "labelled_video",
    *(name for name in ORDER if name.startswith("data.") and name not in NEEDS_TENSORFLOW),
    "training.recipe_checks", "training.recipe", "training.runs", "training.checkpoint_files",
    "training.cluster", "training.launch", "training.stopping",
    "export.profiler", "export.operations", "export.measurement", "export.benchmark",
    *(name for name in ORDER if name.startswith("cli")),
]
# fmt: on


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Names of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES) or {node.module}
    return found


def file_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_every_module_is_in_the_order():
    bare = {
        "__init__",
        "models",
        "evaluation",
        "data",
        "training",
    }  # docstrings, and names imported when asked for
    ours = {*map(file_of, ORDER), *map(file_of, bare), file_of("keras3")}
    assert set(PACKAGE.rglob("*.py")) == ours


@pytest.mark.parametrize("module", ORDER)
def test_modules_import_only_what_stands_before_them(module):
    before = {f"grw_keras.{name}" for name in ORDER[: ORDER.index(module)]}
    own = {name for name in imports(file_of(module)) if name.startswith("grw_keras")}
    assert own <= before | {"grw_keras"}


def test_the_keras_3_layer_stands_on_the_shared_base_alone():
    own = {n for n in imports(PACKAGE / "keras3.py") if n.startswith("grw_keras")}
    assert own == {"grw_keras.layer"}


@pytest.mark.parametrize("module", NEEDS_NO_TENSORFLOW)
def test_a_module_needs_no_tensorflow(module):
    names = imports(file_of(module), top_level_only=True)
    assert not {name.partition(".")[0] for name in names} & HEAVY
    own = {name.removeprefix("grw_keras.") for name in names if name.startswith("grw_keras.")}
    assert own <= set(NEEDS_NO_TENSORFLOW)


def test_the_operations_of_keras_3_are_used_in_few_modules():
    users = {
        path.stem
        for path in PACKAGE.rglob("*.py")
        if re.search(r"from keras import .*ops|from keras\.ops|keras\.ops\.", path.read_text())
    }
    assert users == {"backend", "losses", "normalization", "layer", "keras3"}


def loaded_after(code: str, **env: str) -> set[str]:
    report = "import sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        env={"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_importing_the_package_imports_no_framework():
    assert not loaded_after("import grw_keras; dir(grw_keras)") & {*HEAVY, "keras"}


@pytest.mark.slow
def test_the_loss_and_the_keras_3_layer_run_on_jax_without_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['tf_keras'] = None\n"
        "import numpy as np, grw_keras, grw_keras.keras3\n"
        "z = np.arange(5.0, dtype='float32').reshape(1, 5, 1)\n"
        "layer = grw_keras.keras3.GRWRegularizer(weight=1.0); layer(z, training=True)\n"
        "assert abs(float(layer.losses[0]) - float(grw_keras.grw_loss(z))) < 1e-6\n"
        "sys.modules.pop('tensorflow'), sys.modules.pop('tf_keras')"
    )
    assert "tensorflow" not in loaded_after(code, KERAS_BACKEND="jax")


def test_public_names_resolve_and_unknown_ones_do_not():
    for name in grw_keras.__all__:
        assert callable(getattr(grw_keras, name))
        assert name in dir(grw_keras)
        assert getattr(grw_keras, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'grw'"):
        _ = grw_keras.grw
