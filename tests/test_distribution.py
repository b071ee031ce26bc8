"""Clusters read from environments, shares of a batch, and training that doesn't depend on them."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.training import cluster, distribution
from grw_keras.training.cluster import Cluster, cluster_from_environment
from grw_keras.training.distribution import Share, share
from grw_keras.training.launch import launch_local
from tests import distributed_programs

STEP = {
    "SLURM_JOB_ID": "100",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "gpu[09-10],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}


def tf_config(cluster: dict, kind: str, index) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"TF_CONFIG": ""}, None),
        (tf_config({"worker": ["a:1"]}, "worker", 0), None),
        (tf_config({"worker": ["a:1", "b:2"]}, "worker", 1), Cluster(("a:1", "b:2"), 1)),
        (tf_config({"worker": ["a:1", "b:2"]}, "worker", "1"), Cluster(("a:1", "b:2"), 1)),
        (
            tf_config({"worker": ["b:2", "c:3"], "chief": ["a:1"]}, "worker", 1),
            Cluster(("a:1", "b:2", "c:3"), 2),
        ),
        (
            tf_config({"worker": ["b:2"], "chief": ["a:1"]}, "chief", 0),
            Cluster(("a:1", "b:2"), 0),
        ),
        (
            {**STEP, **tf_config({"worker": ["a:1", "b:2"]}, "worker", 0)},
            Cluster(("a:1", "b:2"), 0),
        ),
    ],
)
def test_tf_config_gives_the_cluster(environ, expected):
    assert cluster_from_environment(environ) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "TF_CONFIG must be JSON"),
        ("[]", "lacks 'cluster'"),
        ('{"cluster": {}}', "lacks 'worker'"),
        ('{"cluster": {"worker": []}}', "lacks 'worker'"),
        ('{"cluster": {"worker": "a:1"}}', "'worker' is of the wrong type. Received: 'a:1'"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "lacks 'task'"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"index": 0}}', "lacks 'type'"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker"}}', "lacks 'index'"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}', "alone. Received: 'ps'"),
        (tf_config({"worker": ["a:1", "b:1"]}, "worker", 2)["TF_CONFIG"], "Received: 'worker' 2"),
        (tf_config({"worker": ["a:1", "b:1"]}, "chief", 0)["TF_CONFIG"], "Received: 'chief' 0"),
        (tf_config({"worker": ["a:1", "a:1"]}, "worker", 0)["TF_CONFIG"], "each worker once"),
        (tf_config({"worker": ["a:1", "b"]}, "worker", 0)["TF_CONFIG"], "Received: 'b'"),
    ],
)
def test_malformed_tf_config_is_refused(text, match):
    with pytest.raises(ValueError, match=match):
        cluster_from_environment({"TF_CONFIG": text})


def test_tf_config_is_read_back():
    written = Cluster(("a:1", "b:2", "c:3"), 2)
    assert cluster_from_environment({"TF_CONFIG": written.tf_config()}) == written


@pytest.mark.parametrize(
    ("index", "gpu_part", "gpu_parts"), [(0, 0, 2), (1, 1, 2), (2, 0, 2), (3, 1, 2), (4, 0, 1)]
)
def test_slurm_step_gives_the_cluster(index, gpu_part, gpu_parts):
    port = cluster.step_port(STEP)
    hosts = [("gpu09", 0), ("gpu09", 1), ("gpu10", 0), ("gpu10", 1), ("login", 0)]
    expected = tuple(f"{host}:{port + task}" for host, task in hosts)
    step = {**STEP, "SLURM_PROCID": str(index)}
    for shared in ({}, {"SLURM_TRES_PER_TASK": "cpu=8"}):
        got = cluster_from_environment({**step, **shared})
        assert got == Cluster(expected, index, gpu_part, gpu_parts)
    for own in ({"SLURM_GPUS_PER_TASK": "1"}, {"SLURM_TRES_PER_TASK": "cpu=8,gres/gpu=1"}):
        assert cluster_from_environment({**step, **own}) == Cluster(expected, index)


@pytest.mark.parametrize(
    "environ",
    [
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {k: v for k, v in STEP.items() if not k.startswith("SLURM_STEP")},
    ],
    ids=["step of one task", "batch script"],
)
def test_single_slurm_process_trains_alone(environ):
    assert cluster_from_environment(environ) is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "3 nodes, tasks on 3 nodes, 5 of them, and 4 tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "5"}, "3 nodes, tasks on 1 nodes"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2x2"}, r"like 2\(x3\),1. Received: '2x2'"),
        ({"SLURM_STEP_NODELIST": "gpu[09-"}, "A list of nodes must be like"),
        ({"SLURM_STEP_NODELIST": "gpu[3-1],login"}, "A range of nodes must be like"),
        ({"SLURM_STEP_TASKS_PER_NODE": None}, "SLURM_STEP_TASKS_PER_NODE must be set"),
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID must be set"),
        ({"SLURM_PROCID": "5"}, r"must be in \[0, 5\). Received: 5"),
        ({"SLURM_DISTRIBUTION": "cyclic"}, "--distribution=block"),
    ],
)
def test_contradictory_slurm_step_is_refused(changes, match):
    environ = {k: v for k, v in {**STEP, **changes}.items() if v is not None}
    with pytest.raises(ValueError, match=match):
        cluster_from_environment(environ)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", "a"),
        ("a,b", "a b"),
        ("node[01-03,7]", "node01 node02 node03 node7"),
        ("n[9-11].x,m", "n9.x n10.x n11.x m"),
        ("r[1-2]n[08,10]", "r1n08 r1n10 r2n08 r2n10"),
        ("b[2],a[1]", "b2 a1"),
    ],
)
def test_node_lists_expand_in_their_order(text, hosts):
    assert cluster.expand_hosts(text) == hosts.split()


def test_tasks_per_node_expand():
    assert cluster.expand_counts("2(x3),1,3(x1)") == [2, 2, 2, 1, 3]


def test_neighbouring_steps_take_other_ports():
    ports = {
        cluster.step_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        for job in range(1000, 1100)
        for step in range(5)
    }
    assert len(ports) == 500
    assert all(12000 <= port <= 32768 - 16 for port in ports)
    assert min(np.diff(sorted(ports))) >= 16


@pytest.mark.parametrize(
    ("part", "batch"),
    [(Share(), 3), (Share(0, 1, 2, 2), 8), (Share(1, 3, 3, 1), 12), (Share(1, 2, 8, 4), 16)],
)
def test_replicas_share_a_batch_evenly(part, batch):
    assert part.per_replica(batch) * part.replicas == batch


@pytest.mark.parametrize(
    ("batch", "match"),
    [(6, "use 4 or 8. Received: 6"), (3, "use 4. Received: 3"), (0, "use 4. Received: 0")],
)
def test_batch_that_no_share_divides_is_refused(batch, match):
    with pytest.raises(ValueError, match=rf"their number, 4 \(2 workers of 2\): {match}"):
        Share(0, 2, 4, 2).per_replica(batch)


def test_one_device_needs_no_strategy():
    default = tf.distribute.get_strategy()
    assert distribution.strategy() is default
    assert distribution.strategy(["/device:CPU:0"]) is default
    assert distribution.strategy(cluster=Cluster(("a:1",), 0)) is default
    assert share(default) == Share()
    assert distribution.is_chief(default)


def test_named_devices_are_mirrored(two_replicas):
    made = distribution.strategy(["CPU:0", "cpu:1"])
    assert isinstance(made, tf.distribute.MirroredStrategy)
    assert share(made) == share(two_replicas) == Share(0, 1, 2, 2)
    assert distribution.agree(two_replicas, True)
    assert not distribution.agree(two_replicas, False)
    assert distribution.same_everywhere(two_replicas, "any")


@pytest.mark.parametrize("devices", [["CPU:0", "CPU:7"], ["CPU:0", "cpu:0"], []])
def test_devices_that_do_not_exist_are_refused(devices):
    with pytest.raises(ValueError, match="must be some of CPU:0, CPU:1, each once"):
        distribution.strategy(devices)


def test_cluster_and_devices_exclude_each_other():
    with pytest.raises(ValueError, match="can't be chosen in a cluster"):
        distribution.strategy(["CPU:0"], Cluster(("a:1", "b:1"), 0))


@pytest.fixture(scope="module")
def alone():
    """What one process makes of the global batch."""
    return distributed_programs.train(tf.distribute.get_strategy())


def assert_same_training(got, alone):
    for name, value in alone.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_training_moves_every_weight(alone):
    starts = [value for name, value in alone.items() if name.startswith("start")]
    means = [value for name, value in alone.items() if name.startswith("average")]
    assert all(np.abs(mean - start).max() > 1e-4 for start, mean in zip(starts, means, strict=True))


@pytest.mark.slow
def test_two_replicas_train_to_the_weights_of_one(alone, two_replicas):
    assert_same_training(distributed_programs.train(two_replicas), alone)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder that two processes wrote, and what their launcher returned and said."""
    folder = tmp_path_factory.mktemp("together")
    environ = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "tests.distributed_programs", str(folder)]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = launch_local(2, command, environ=environ, log_folder=folder, grace_s=40)
    return folder, code, said.getvalue()


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(alone, together):
    for worker in (0, 1):
        got = np.load(together[0] / f"{worker}.npz")
        assert_same_training(got, alone)
        assert got["share"].tolist() == [worker, 2, 2, 1]
        assert got["chief"] == (worker == 0)


@pytest.mark.slow
def test_workers_stop_at_the_same_step_when_one_gets_a_signal(together):
    assert [int(np.load(together[0] / f"{worker}.npz")["steps"]) for worker in (0, 1)] == [3, 3]


@pytest.mark.slow
def test_workers_know_alike_whether_they_have_the_same(together):
    for worker in (0, 1):
        same = np.load(together[0] / f"{worker}.npz")["same"]
        assert same.tolist() == [True, False, True, False]


@pytest.mark.parametrize("workers", [2, 3, 16, 17, 100, 1000])
def test_texts_are_compared_without_false_alarm(workers, monkeypatch):
    """Of this many workers, by sums as exact as float32 makes them."""
    texts = [f"clips {number}" for number in range(200)]

    def found(others):
        def total(strategy):
            def add(value):
                rest = np.float32(0)
                for other in others(float(value)):
                    rest = np.float32(rest + np.float32(other))
                return rest

            return add

        monkeypatch.setattr(distribution, "share", lambda strategy: Share(0, workers, workers, 1))
        monkeypatch.setattr(distribution, "agree", lambda strategy, flag: flag)
        monkeypatch.setattr(distribution, "_sum_over_replicas", total)
        return [distribution.same_everywhere(None, text) for text in texts]

    assert all(found(lambda own: [own] * workers))
    assert not any(found(lambda own: [own] * (workers - 1) + [own + 1]))


@pytest.mark.slow
def test_death_of_a_worker_is_noticed_by_the_others(together):
    folder, code, said = together
    assert (folder / "noticed").exists()
    assert code == 3
    assert "Worker 1 of 2 ended with code 3" in said


def test_cluster_after_a_tensor_is_refused():
    tf.zeros(())
    with pytest.raises(RuntimeError, match="TensorFlow has started already"):
        distribution.strategy(cluster=Cluster(("127.0.0.1:1", "127.0.0.1:2"), 0))
