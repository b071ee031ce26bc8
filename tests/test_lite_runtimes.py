"""The client in environments that hold NumPy and a runtime alone, installed from the registry."""

import json
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from grw_keras import export
from grw_keras.export import quantize
from grw_keras.lite import StreamSession
from grw_keras.models.classifier import VideoClassifier
from grw_keras.zoo import registry
from tests import lite_files
from tests.zoo_helpers import random_clips, randomize

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
FRAMES = np.random.default_rng(3).integers(0, 256, (6, 31, 20, 3), np.uint8)
ENVIRONMENTS = {
    "ai-edge-litert": ["ai-edge-litert", "numpy"],
    "tflite-runtime": ["tflite-runtime==2.14.0", "numpy<2"],
}
ROADS = {
    "hard_swish": ("movinet_a0_stream_grw", "dynamic"),
    "relu6": ("movinet_a0_stream_relu6", "int8"),
}
NO_REGISTRY = ("connection broken by", "NewConnectionError", "NameResolutionError")
STEPS = """
import json, sys
import numpy as np
from grw_keras.lite import StreamSession
for path in sys.argv[2:]:
    session = StreamSession(path)
    print(json.dumps([session.step(frame).tolist() for frame in np.load(sys.argv[1])]))
assert not {"tensorflow", "keras", "tf_keras"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "frames.npy", FRAMES)
    for kind, model in lite_files.models().items():
        lite_files.write(folder / f"tiny_{kind}.tflite", model, lite_files.description(kind))
    for road, (name, quantization) in ROADS.items():
        changes = {"resolution": 32, "num_classes": 6, "head_window": 4}
        model = randomize(VideoClassifier(registry.get(name).replace(changes)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quantize, "_each_alone", lambda *_: {})  # the report, the dear part
            export.to_tflite(
                model,
                folder / f"{road}.tflite",
                quantization=quantization,
                calibration=random_clips(2, 6),
                force=True,
            )
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the package is built from: building writes into the folder."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "grw_keras", folder / "grw_keras")
    return folder


def install(python: Path, *what: str | Path) -> None:
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--retries", "1"]
    run = subprocess.run(
        [*pip, "install", "-q", *map(str, what)], capture_output=True, text=True, check=False
    )
    if any(sign in run.stderr for sign in NO_REGISTRY):
        pytest.skip(f"pip reaches no registry: {run.stderr[:300]}")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("runtime", ENVIRONMENTS)
def test_a_bare_environment_gives_the_same_answers(runtime, source, files, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    install(python, *ENVIRONMENTS[runtime])
    install(python, "--no-deps", source)
    exact = [files / "tiny_stream.tflite", files / "tiny_embed.tflite"]
    models = [*exact, *(files / f"{road}.tflite" for road in ROADS)]
    run = subprocess.run(
        [python, "-I", "-c", STEPS, files / "frames.npy", *models], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for path, line in zip(models, run.stdout.splitlines(), strict=True):
        session = StreamSession(path)
        expected = [session.step(frame) for frame in FRAMES]
        # int8 kernels of the runtimes round otherwise; nonsense would be off by tenths.
        np.testing.assert_allclose(json.loads(line), expected, atol=1e-5 if path in exact else 0.05)
