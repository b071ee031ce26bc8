"""What the processes of the distribution tests run: a small training, and a death after it.

    python -m tests.distributed_programs FOLDER

Each process gives up by itself after LIMIT_S, telling where it hung.
"""

import faulthandler
import os
import signal
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras import GRWRegularizer
from grw_keras.training import distribution
from grw_keras.training.cluster import cluster_from_environment
from grw_keras.training.distribution import agree, barrier, share

LIMIT_S = 120
STEPS, BATCH, FRAMES, WINDOW, CLASSES = 4, 8, 9, 3, 5
DECAY = 0.9


def clips() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Videos, masks and labels of all steps; the second half of a batch has fewer true frames."""
    rng = np.random.default_rng(7)
    videos = rng.normal(size=(STEPS, BATCH, FRAMES, 6, 6, 3)).astype("float32")
    lengths = np.r_[np.full(BATCH // 2, FRAMES), np.full(BATCH - BATCH // 2, 2 * WINDOW)]
    masks = np.broadcast_to(np.arange(FRAMES) < lengths[:, None], (STEPS, BATCH, FRAMES))
    return videos, masks, rng.integers(0, CLASSES, (STEPS, BATCH))


def small_model() -> tf_keras.Model:
    """Convolution, synchronised batch norm, GRW-smoothing and a head."""
    tf_keras.utils.set_random_seed(3)
    video = tf_keras.Input((FRAMES, 6, 6, 3), name="video")
    mask = tf_keras.Input((FRAMES,), dtype="bool", name="mask")
    x = tf_keras.layers.Conv3D(4, 3, padding="same", use_bias=False)(video)
    x = tf_keras.layers.BatchNormalization(synchronized=True)(x)
    x = tf_keras.layers.ReLU()(x)
    x = tf_keras.layers.TimeDistributed(tf_keras.layers.GlobalAveragePooling2D())(x)
    z = tf_keras.layers.Dense(8)(x)
    z = GRWRegularizer(WINDOW, weight=0.5, synchronized=True)(z, mask=mask)
    logits = tf_keras.layers.Dense(CLASSES)(tf_keras.layers.GlobalAveragePooling1D()(z))
    model = tf_keras.Model([video, mask], logits)
    model.compile(
        tf_keras.optimizers.SGD(0.1, momentum=0.9),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(strategy) -> dict[str, np.ndarray]:
    """Train STEPS steps of the same clips and labels under any strategy; all that came of it."""
    videos, masks, labels = clips()
    own = share(strategy)

    def batches(context):
        del context
        size = own.per_replica(BATCH)
        count = size * own.local_replicas
        rows = slice(own.worker * count, (own.worker + 1) * count)
        flat = [x[:, rows].reshape(-1, *x.shape[2:]) for x in (videos, masks, labels)]
        data = tf.data.Dataset.from_tensor_slices(((flat[0], flat[1]), flat[2]))
        return data.batch(size, drop_remainder=True).repeat()

    with strategy.scope():
        model = small_model()
        averages = [tf.Variable(v, trainable=False) for v in model.trainable_weights]
    start = [v.numpy() for v in model.trainable_weights]

    @tf.function
    def average():
        for mean, weight in zip(averages, model.trainable_weights, strict=True):
            mean.assign(DECAY * mean + (1 - DECAY) * weight)

    step = model.make_train_function()
    iterator = iter(strategy.distribute_datasets_from_function(batches))
    for _ in range(STEPS):
        step(iterator)
        average()
    state = {f"weight {i}": v for i, v in enumerate(model.weights)}
    state |= {f"average {i}": v for i, v in enumerate(averages)}
    state |= {f"optimizer {i}": v for i, v in enumerate(model.optimizer.variables)}
    state |= {f"metric {m.name}": m.result() for m in model.metrics}
    state |= {f"start {i}": v for i, v in enumerate(start)}
    values = {name: np.asarray(value) for name, value in state.items()}
    _assign_back(model.weights + averages + list(model.optimizer.variables))
    return values


def _assign_back(variables) -> None:
    for variable in variables:
        value = variable.numpy()
        variable.assign(value)
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.name)


def main(folder: Path) -> None:
    """Train, count steps until a signal that only the last worker gets, and outlive its death."""
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    strategy = distribution.strategy(cluster=cluster_from_environment())
    own = share(strategy)
    values = train(strategy)
    steps = 0
    while not agree(strategy, bool(stop)):
        steps += 1
        if steps == 3 and own.worker == own.workers - 1:
            os.kill(os.getpid(), signal.SIGTERM)
    same = [
        distribution.same_everywhere(strategy, text)
        for text in ("equal", f"worker {own.worker}", "equal " * 9, f"{own.worker == 0}")
    ]
    counts = [own.worker, own.workers, own.replicas, own.local_replicas]
    chief = distribution.is_chief(strategy)
    np.savez(
        folder / f"{own.worker}.npz", share=counts, chief=chief, steps=steps, same=same, **values
    )
    try:
        barrier(strategy)
        if own.worker == own.workers - 1:
            os._exit(3)
        barrier(strategy)  # its death may be noticed in the one before already
    except tf.errors.UnavailableError:
        (folder / "noticed").touch()
        os._exit(0)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    main(Path(sys.argv[1]))
