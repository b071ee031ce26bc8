"""grw-keras benchmark: what its numbers mean, on tiny files."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from grw_keras import cli
from grw_keras.export import benchmark, measurement, operations
from tests import lite_files

K600 = "weights/movinet_a0_stream_k600_int8.tflite"
_MEGABYTES = 16


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with tiny_stream, tiny_embed, tiny_classify, and plain, without a description."""
    folder, models = tmp_path_factory.mktemp("files"), lite_files.models()
    for kind, model in models.items():
        lite_files.write(folder / f"tiny_{kind}.tflite", model, lite_files.description(kind))
    lite_files.write(folder / "plain.tflite", models["stream"], None)
    return folder


@pytest.fixture(scope="module")
def measured(files):
    """All files, and two numbers of threads: the `classify` file comes with the `embed` file."""
    names = ("tiny_stream", "plain", "tiny_embed")
    return benchmark.benchmark(
        [files / f"{name}.tflite" for name in names], [1, 2], frames=12, warmup=1
    )


def own_operations(path: Path) -> int:
    """The number of operations that the flatbuffer itself lists."""
    return schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0).OperatorsLength()


def unclustered(path: Path) -> int:
    """Operations that XNNPACK takes, told otherwise: each is made a part of its own."""
    parts = Interpreter(str(path), experimental_disable_delegate_node_fusion=True)
    parts.allocate_tensors()
    return len(parts._get_ops_details()) - own_operations(path)


@pytest.mark.slow
def test_every_file_is_measured_with_every_number_of_threads(measured):
    rows = [(m.file, m.kind, m.threads) for m in measured]
    assert rows == [
        (f"{name}.tflite", kind, threads)
        for name, kind in (
            ("tiny_stream", "stream"),
            ("plain", ""),
            ("tiny_embed", "embed"),
            ("tiny_classify", "classify"),
        )
        for threads in (1, 2)
    ]


def test_numbers_are_those_of_the_file(files, measured):
    for m in measured:
        path = files / m.file
        assert 0 < m.median_ms <= m.p90_ms <= m.p99_ms <= m.max_ms
        assert 0 < m.mean_ms <= m.max_ms
        assert (m.size_bytes, m.frames) == (path.stat().st_size, 12)
        assert m.operations == own_operations(path)
        assert m.delegated == unclustered(path) > 0
        assert 1 <= m.partitions <= m.delegated
        assert m.memory_mb > 0
        assert m.model == ("" if m.file == "plain.tflite" else "tiny")


def test_the_distribution_is_that_of_the_times(files):
    m = benchmark._measurement(files / "tiny_stream.tflite", 1, np.arange(1.0, 101.0))
    assert (m.median_ms, m.mean_ms, m.max_ms) == (50.5, 50.5, 100)
    assert (m.p90_ms, m.p99_ms) == pytest.approx((90.1, 99.01))


@pytest.mark.parametrize("name", ["tiny_stream", "plain"])
def test_states_are_fed_back(files, name):
    image = np.random.default_rng(0).random((1, 1, 8, 8, 3)).astype(np.float32)
    states = dict.fromkeys(lite_files.STATES, tf.zeros([1, lite_files.WIDTH]))
    running = benchmark.RunningFile(files / f"{name}.tflite", 1)
    answers = []
    for _ in range(5):
        running.run()
        states = lite_files.stream(image, **states)
        logits = states.pop("logits")
        np.testing.assert_allclose(running.output("logits"), logits, atol=1e-5)
        answers.append(logits.numpy())
    assert not np.allclose(answers[-1], answers[0], atol=0.1)


def test_a_head_classifies_a_full_window(files):
    running = benchmark.RunningFile(files / "tiny_classify.tflite", 1)
    running.run()
    shape = (1, lite_files.WINDOW, lite_files.WIDTH)
    window = np.random.default_rng(0).random(shape).astype(np.float32)
    expected = lite_files.classify(window, tf.constant([float(lite_files.WINDOW)]))
    np.testing.assert_allclose(running.output("logits"), expected["logits"], atol=1e-5)


def test_frames_of_files_are_interleaved_in_blocks():
    order = []

    class File:
        def __init__(self, name):
            self.run = lambda: order.append(name)

    times_ms = benchmark._interleaved([File("a"), File("b")], 25, 2)
    # After the warm-up, each block has a frame more, which is not measured.
    assert "".join(order) == "aabb" + 2 * ("a" * 11 + "b" * 11) + "a" * 6 + "b" * 6
    assert [len(own_ms) for own_ms in times_ms] == [25, 25]


@pytest.mark.slow
def test_memory_counts_the_weights(files, tmp_path):
    weights = np.random.default_rng(0).normal(size=(lite_files.WIDTH, _MEGABYTES * 50_000))

    def large(x):
        return {"y": tf.matmul(x, weights.astype(np.float32))}

    x = tf.TensorSpec([1, lite_files.WIDTH], tf.float32, "x")
    path = lite_files.write(tmp_path / "large.tflite", lite_files.converted(large, x=x), None)
    added = benchmark.memory_bytes(path, 1) - benchmark.memory_bytes(files / "plain.tflite", 1)
    assert added > _MEGABYTES * 1e6


def test_what_xnnpack_takes_of_googles_file(shared):
    found = operations.coverage(shared / K600)
    taken = {index for part in found.partitions for index in part}
    left = [kind for i, (kind, _) in enumerate(found.operations) if i not in taken]
    assert sorted(left) == ["ADD", *["AVERAGE_POOL_2D"] * 4, "CAST"]
    assert found.delegated == len(taken) == unclustered(shared / K600)


def test_a_profile_tells_the_time_of_all_operations(shared):
    found = operations.profile(shared / K600, 1, frames=20)
    assert 0 < sum(operation.ms for operation in found.operations) < found.frame_ms
    pools = [operation for operation in found.operations if operation.kind == "AVERAGE_POOL_2D"]
    assert len(pools) == 4
    assert all("skip_pool" in operation.name for operation in pools)
    listed = operations.coverage(shared / K600).operations
    depthwise = [name for kind, name in listed if kind == "DEPTHWISE_CONV_2D"]
    assert [o.name for o in found.operations if "DWConv" in o.kind] == depthwise
    kinds, slowest = measurement.profile_table(found, 3).split("\n\n")[1:]
    assert "AVERAGE_POOL_2D" in kinds
    assert len(slowest.splitlines()) == 4


def test_rows_are_appended_to_the_csv(files, tmp_path, capsys):
    table = tmp_path / "new" / "latency.csv"
    command = ["benchmark", str(files / "plain.tflite"), "--frames", "3", "--csv", str(table)]
    assert cli.main(command) == 0
    table.write_text(table.read_text().rstrip("\n"))  # as an editor may leave it
    assert cli.main([*command, "--threads", "1", "2", "--profile", "2"]) == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == measurement.COLUMNS
    assert [row["threads"] for row in rows] == ["1", "1", "2"]
    assert all(float(row["median_ms"]) > 0 and row["cpu"] for row in rows)
    assert capsys.readouterr().out.count("the slowest") == 2


def test_a_table_of_other_columns_is_left_alone(files, tmp_path, capsys, monkeypatch):
    table = tmp_path / "other.csv"
    table.write_text("date,model\n")
    monkeypatch.setattr(benchmark, "benchmark", None)  # refused before any work
    command = ["benchmark", str(files / "plain.tflite"), "--csv", str(table)]
    assert cli.main(command) == 1
    assert "Received: " in (told := capsys.readouterr().err)
    assert told.endswith("date,model\n")
    with pytest.raises(ValueError, match="Received: date,model"):
        measurement.append_rows(table, [])
    assert table.read_text() == "date,model\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([__file__], "must be a whole TFLite file"),
        (["nothing.tflite"], "No such file. Did you mean 'plain.tflite'? Received: nothing.tflite"),
        (["plain.tflite", "--threads", "1", "0"], "threads must be at least 1. Received: 0"),
        (["plain.tflite", "--frames", "0"], "frames must be at least 1. Received: 0"),
        (["plain.tflite", "--warmup", "-1"], "warmup must be at least 0. Received: -1"),
        (["plain.tflite", "--profile", "-1"], "--profile must be at least 0. Received: -1"),
    ],
)
def test_errors_are_one_line(files, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert cli.main(["benchmark", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_measuring_needs_no_tensorflow(files):
    code = (
        "import sys\nfrom grw_keras.cli import main\n"
        f"main(['benchmark', {str(files / 'plain.tflite')!r}, '--frames', '3'])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "plain.tflite" in run.stdout
    assert not {"tensorflow", "keras", "tf_keras"} & set(run.stderr.split())


def test_files_of_one_name_are_told_apart_by_their_folders(files, tmp_path):
    again = tmp_path / "plain.tflite"
    again.write_bytes((files / "plain.tflite").read_bytes())
    measured = benchmark.benchmark([files / "plain.tflite", again], [1], frames=2, warmup=0)
    assert [m.file for m in measured] == [str(files / "plain.tflite"), str(again)]
