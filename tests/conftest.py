"""Fixtures that all tests share; sets up TensorFlow before anything imports it."""

import functools
import gc
import os
from pathlib import Path

import psutil
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

SHARED = Path(__file__).resolve().parents[2] / "shared"
MUCH_BYTES = 1 << 30


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the project; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data: {SHARED} does not exist")
    return SHARED


def pytest_configure():
    """Make two logical CPU devices, before any test module can start TensorFlow with one."""
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        return
    import tensorflow as tf

    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [device, device]
    )


def pytest_collection_finish():
    """Have Python look for cycles among what tests make alone, and when there is much of it: each
    full look through TensorFlow's modules and graphs takes a third of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


class _Resident:
    """Memory of this process after the last look for cycles."""

    kept = 0

    @classmethod
    def now(cls) -> int:
        return psutil.Process().memory_info().rss


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """Models hold on to themselves, so without a look for cycles memory would fill up."""
    if _Resident.now() > _Resident.kept + MUCH_BYTES:
        gc.collect()
        _Resident.kept = _Resident.now()


@pytest.fixture(scope="session")
def two_replicas():
    """One MirroredStrategy for all tests: TensorFlow mixes up the collectives of several."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def policy_restored():
    """For tests that set tf_keras's policy: float32 again afterwards."""
    yield
    import tf_keras

    tf_keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def official_models():
    """Models of the official builder with random weights, by the names of their cases."""
    from tests.official_movinets import CASES, build, randomize

    @functools.cache
    def model(name):
        built = build(CASES[name])
        randomize(built)
        return built

    return model


@pytest.fixture(scope="session")
def official_checkpoints(official_models, tmp_path_factory):
    """Folders with checkpoints of those models."""
    import tensorflow as tf

    @functools.cache
    def folder(name):
        path = tmp_path_factory.mktemp(name)
        tf.train.Checkpoint(model=official_models(name)).save(path / "ckpt")
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_models():
    """TFLite models, without their descriptions, of each kind that a session runs."""
    from tests import lite_files

    return lite_files.models()


@pytest.fixture(scope="session")
def tiny_files(tiny_models, tmp_path_factory):
    """A folder with tiny_stream.tflite, tiny_embed.tflite and tiny_classify.tflite."""
    from tests import lite_files

    folder = tmp_path_factory.mktemp("lite")
    for kind, model in tiny_models.items():
        lite_files.write(folder / f"tiny_{kind}.tflite", model, lite_files.description(kind))
    return folder


@pytest.fixture
def tiny_changed(tiny_models, tmp_path):
    """Writes the file of a kind with a changed description; gives its path."""
    from tests import lite_files

    def write(kind="stream", /, **changes):
        about = lite_files.description(kind, **changes)
        return lite_files.write(tmp_path / f"tiny_{kind}.tflite", tiny_models[kind], about)

    return write


@pytest.fixture
def server():
    """A loopback server that speaks like the hub."""
    from tests.hub_server import HubServer

    with HubServer() as running:
        yield running


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """No variable of whoever runs the tests has a say, and nothing lands in a home folder."""
    for name in ("GRW_KERAS_OFFLINE", "GRW_KERAS_MIRROR", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(own_cache, server, monkeypatch):
    """The server as the hub, with one file in LFS."""
    from tests.hub_server import BODY, REPO_PATH, File

    monkeypatch.setenv("HF_ENDPOINT", server.url())
    server.files[REPO_PATH] = File(BODY, linked=True)
    return server
