"""One device, all GPUs of a machine, or many machines: the strategy and what follows from it.

The batch size is that of a step, over all replicas of all workers: each replica takes
batch / replicas clips, and losses are averaged over the whole batch. The same batch on more
replicas is therefore the same step, and its learning rate stays as it is; who adds replicas to
take a larger batch chooses a learning rate for that batch.
"""

import contextlib
import dataclasses
import functools
import hashlib
import operator
import signal
import threading
from collections.abc import Iterator, Sequence

import tensorflow as tf

from grw_keras.training.cluster import Cluster


@dataclasses.dataclass(frozen=True)
class Share:
    """What part of each step is this worker's.

    tf_keras divides by the number of replicas both the compiled loss and what `add_loss` adds:
    it takes the mean of the replicas' means. That is the mean over the global batch where all
    replicas have equally many clips, which `per_replica` makes sure of; a mean over a number
    that differs between them, such as valid windows, must divide by the mean of that number
    over the replicas (`synchronized=True` of `GRWRegularizer`).

    Args:
        worker: index of this process, in [0, workers).
        workers: number of processes.
        replicas: devices that train together, over all workers.
        local_replicas: of them, those of this worker; every worker has as many.
    """

    worker: int = 0
    workers: int = 1
    replicas: int = 1
    local_replicas: int = 1

    def per_replica(self, batch_size: int) -> int:
        """Clips that each replica takes of a step's `batch_size`.

        Raises:
            ValueError: `batch_size` is no positive multiple of the number of replicas.
        """
        size = operator.index(batch_size)
        if size < 1 or size % self.replicas:
            below = size // self.replicas * self.replicas
            close = [str(n) for n in (below, below + self.replicas) if n > 0]
            raise ValueError(
                "`batch_size` is that of all replicas together and must be a positive multiple "
                f"of their number, {self.replicas} ({self.workers} workers of "
                f"{self.local_replicas}): use {' or '.join(close)}. Received: {batch_size}"
            )
        return size // self.replicas


def strategy(
    devices: Sequence[str] | None = None, cluster: Cluster | None = None
) -> tf.distribute.Strategy:
    """The strategy for these devices, or for all workers of a cluster.

    With a cluster, MultiWorkerMirroredStrategy over the GPUs of each worker (NCCL) or over the
    CPUs (ring). It waits for the other workers, and it must be made before anything in the
    process makes a tensor; importing, seeds, determinism and precision policies may come first.
    SIGTERM does nothing while it waits, and after that what it did before.
    Otherwise MirroredStrategy over `devices` or over all GPUs, or TensorFlow's default
    strategy where that is one device.

    Args:
        devices: names such as `"GPU:0"`; default all GPUs, or the CPU without one.
        cluster: as `cluster_from_environment` gives it. Not together with `devices`.

    Raises:
        ValueError: a device that doesn't exist or is named twice, or fewer GPUs than workers.
        RuntimeError: a cluster, but TensorFlow has started already.
    """
    if cluster is not None and len(cluster.workers) > 1:
        if devices is not None:
            raise ValueError(
                "`devices` can't be chosen in a cluster, where each worker takes its GPUs: set "
                f"CUDA_VISIBLE_DEVICES instead. Received: devices={list(devices)}"
            )
        return _multi_worker(cluster)
    if devices is None:
        gpus = tf.config.list_logical_devices("GPU")
        return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
    names = _check_devices(devices)
    first = (tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU"))[0]
    if names == [_short(first.name)]:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(names)


def share(strategy: tf.distribute.Strategy) -> Share:
    """What part of each step is this worker's under `strategy`."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return Share()
    local = len(strategy.extended.worker_devices)
    if local == replicas:
        return Share(replicas=replicas, local_replicas=local)
    resolver = strategy.cluster_resolver
    chiefs = len(resolver.cluster_spec().as_dict().get("chief", ()))
    worker = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
    return Share(worker, replicas // local, replicas, local)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this worker is the first, who alone writes what all would write alike.

    Batch-norm statistics and metrics are reduced over the workers as they are read: all workers
    must read them, in the same order, or the one that reads waits for the others.
    """
    return share(strategy).worker == 0


def agree(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """True on every worker if `flag` is True on any of them.

    All workers must call it at the same point. So all of them stop at the same step when a
    signal reaches one of them first. It costs a round trip between the workers.

    Raises:
        tf.errors.UnavailableError: another worker has died, some ten seconds ago.
    """
    if share(strategy).workers == 1:
        return bool(flag)
    return float(_sum_over_replicas(strategy)(tf.constant(float(bool(flag))))) > 0


def barrier(strategy: tf.distribute.Strategy) -> None:
    """Wait until every worker has come here, at the latest before the first of them ends.

    Raises:
        tf.errors.UnavailableError: another worker has died, some ten seconds ago.
    """
    agree(strategy, False)


def same_everywhere(strategy: tf.distribute.Strategy, text: str) -> bool:
    """True on every worker if all have the same `text`; False on every worker otherwise.

    All workers must call it at the same point. Checksums are compared by their sum over the
    replicas, for sums are what all strategies can do, in float32, which holds integers of 24 bits.
    So a checksum has 20 bits, whose sum is exact for up to 16 replicas, and a bit less for each
    doubling beyond; one difference in a million goes unseen, and none is seen where none is.

    Raises:
        tf.errors.UnavailableError: another worker has died, some ten seconds ago.
    """
    own = share(strategy)
    if own.workers == 1:
        return True
    bits = min(20, 24 - (own.replicas - 1).bit_length())
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> (32 - bits)
    total = float(_sum_over_replicas(strategy)(tf.constant(float(number))))
    # Those that have the mean of others' numbers see no difference themselves: the others tell.
    return not agree(strategy, total != own.replicas * number)


@functools.cache
def _sum_over_replicas(strategy: tf.distribute.Strategy):
    """A compiled sum: workers pair their collectives by the order in which they are traced."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
    def total(value):
        return strategy.reduce("SUM", strategy.run(tf.identity, args=(value,)), axis=None)

    return total


def _multi_worker(cluster: Cluster) -> tf.distribute.Strategy:
    try:
        gpus = _own_gpus(cluster)
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(cluster.workers)}),
            task_type="worker",
            task_id=cluster.index,
            num_accelerators={"GPU": gpus},
            rpc_layer="grpc",
        )
        kinds = tf.distribute.experimental.CommunicationImplementation
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=kinds.NCCL if gpus else kinds.RING
        )
        with _kept_sigterm():
            return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow has started already: a cluster's strategy must be made before anything "
            "in the process makes a tensor, a variable or a model, or lists logical devices"
        ) from error


@contextlib.contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Put back what SIGTERM does: TensorFlow's cluster takes the signal and ignores it."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _own_gpus(cluster: Cluster) -> int:
    """Hide the GPUs of the node's other workers; the number of those left."""
    gpus = tf.config.list_physical_devices("GPU")
    count = len(gpus) // cluster.gpu_parts
    if gpus and not count:
        raise ValueError(
            f"{cluster.gpu_parts} workers share {len(gpus)} GPUs: start at most as many workers "
            "as GPUs, or set CUDA_VISIBLE_DEVICES= to train on CPUs"
        )
    if cluster.gpu_parts > 1 and gpus:
        start = cluster.gpu_part * count
        tf.config.set_visible_devices(gpus[start : start + count], "GPU")
    return count


def _check_devices(devices: Sequence[str]) -> list[str]:
    names = [_short(device) for device in devices]
    known = [_short(device.name) for device in tf.config.list_logical_devices()]
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise ValueError(
            f"`devices` must be some of {', '.join(known)}, each once. Received: {list(devices)}"
        )
    return names


def _short(device: str) -> str:
    return device.upper().removeprefix("/DEVICE:").removeprefix("/")
