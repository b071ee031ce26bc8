"""A small training for the tests, and a process that forks children which run it.

    python -m tests.training_programs

reads commands, a JSON object a line, from its input: {"start": options of `run`, "log": path}
forks a child and answers {"pid": …}; {"wait": pid} answers {"exit": code}, negative for a signal.
It has imported TensorFlow but run nothing, so that forking is safe and children start at once.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.pipeline import training_batches
from grw_keras.data.samples import Plan, Sampling
from grw_keras.data.transforms import Augmentation
from grw_keras.models.classifier import VideoClassifier, _regularizer
from grw_keras.models.head import leaves
from grw_keras.models.randomness import Drop, Randomness
from grw_keras.training import checkpoint_files, objective, trainer
from grw_keras.training.listening import HistoryFile
from grw_keras.training.recipe import TrainingPart
from grw_keras.training.stopping import stop_signals
from grw_keras.training.trainer import Feed, Trainer
from grw_keras.zoo import registry

CLASSES, FRAMES, SIZE, WINDOW = 3, 6, 8, 3
CLIPS = 22
SPEC = registry.get("mobilenet_v3_small_grw").replace(
    {"num_classes": CLASSES, "frames": FRAMES, "window": WINDOW, "grw_weight": 0.5}
)
SETTINGS = {
    "epochs": 3,
    "batch_size": 4,
    "backbone_rate": [3e-3, 3e-5],
    "head_rate": [3e-2, 3e-4],
    "frozen_batch_norm": False,
    "deterministic": True,
}
EPOCH = ("_end_of_epoch", "_note_best", "_kept", "on_epoch", "_write", "validate")
# What kills are aimed at: lines of these files, or of these functions.
GROUPS = {
    "write": lambda code: code.co_filename == checkpoint_files.__file__,
    "epoch": lambda code: code.co_name in EPOCH,
    "step": lambda code: code.co_filename == trainer.__file__,
}


class Backbone(tf_keras.layers.Layer):
    """One convolution and a batch norm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = tf_keras.layers.Conv2D(4, 3, strides=2, use_bias=False)
        self.norm = tf_keras.layers.BatchNormalization(momentum=0.8, fused=False)
        self(tf.zeros([1, FRAMES, SIZE, SIZE, 3]))  # eager: quicker than an Input

    def call(self, video, training=None):
        frames = tf.reshape(video, [-1, *video.shape[2:]])
        x = tf.nn.relu(self.norm(self.conv(frames), training=training))
        return {"features": tf.reshape(tf.reduce_mean(x, [1, 2]), [-1, video.shape[1], 4])}

    def named_weights(self):
        return leaves("backbone/conv", self.conv) | leaves("backbone/norm", self.norm)


class Head(tf_keras.layers.Layer):
    """Z, smoothed; its mean over the frames that count; dropout; logits."""

    def __init__(self, rate, randomness, regularizer, **kwargs):
        super().__init__(**kwargs)
        self.affine = tf_keras.layers.Dense(5)
        self.drop = Drop(rate, randomness, 0)
        self.logits = tf_keras.layers.Dense(CLASSES)
        self.regularizer = regularizer
        self(tf.zeros([1, FRAMES, 4]))

    def call(self, features, mask=None, training=None):
        z = self.regularizer(self.affine(features), mask=mask, training=training)
        seen = tf.ones_like(z[..., :1]) if mask is None else tf.cast(mask, z.dtype)[..., None]
        mean = tf.reduce_sum(z * seen, axis=1) / tf.reduce_sum(seen, axis=1)
        return self.logits(self.drop(mean, training=training))

    def named_weights(self):
        return leaves("head/affine", self.affine) | leaves("head/logits", self.logits)


class Tiny(VideoClassifier):
    """A `VideoClassifier` in all but its layers."""

    def __init__(self, dropout=0.3, seed=0):
        super(VideoClassifier, self).__init__(name="tiny")
        tf_keras.utils.set_random_seed(seed)
        self.spec = SPEC
        self.labels = None
        self.accumulate = 1
        self.randomness = Randomness(seed, name="randomness")
        self.backbone = Backbone(name="backbone")
        self.regularizer = _regularizer(SPEC)
        self.head = Head(dropout, self.randomness, self.regularizer, name="head")
        self.built = True


class ArrayStore:
    """Clips of random frames whose mean colour tells their class."""

    fps, size = 5.0, SIZE + 2

    def __init__(self, count=CLIPS):
        rng = np.random.default_rng(5)
        labels = rng.integers(0, CLASSES, count)
        names = tuple("abc"[:CLASSES])
        clips = [Clip(f"clip{i}.mp4", names[label]) for i, label in enumerate(labels)]
        self.clips = ClipSet(tuple(clips), names)
        self.frames = [
            rng.integers(0, 120, (rng.integers(4, 12), self.size, self.size, 3)).astype(np.uint8)
            + np.uint8(40 * label)
            for label in labels
        ]

    def available(self, index):
        return len(self.frames[index])

    def read(self, index, frames):
        return self.frames[index][frames]


def make_trainer(folder, settings=None, *, store=None, strategy=None, dropout=0.3, **kwargs):
    """A `Trainer` of a `Tiny` on an `ArrayStore`, with random offsets, crops and flips."""
    settings = TrainingPart(**{**SETTINGS, **(settings or {})})
    store = store or ArrayStore()
    strategy = strategy or tf.distribute.get_strategy()
    sampling = Sampling(
        frames=FRAMES,
        resolution=SIZE,
        short="pad",
        training=True,
        augmentation=Augmentation(flip=True, scale=(0.5, 1.0)),
        seed=settings.seed,
    )

    def batches(start_step):
        return strategy.distribute_datasets_from_function(
            lambda context: training_batches(
                store,
                sampling,
                settings.batch_size,
                start_step=start_step,
                replicas=strategy.num_replicas_in_sync,
                processes=0,
            )
        )

    plan = Plan(clips=len(store.clips), batch_size=settings.batch_size, seed=settings.seed)
    feed = Feed(batches=batches, plan=plan, names=[clip.name for clip in store.clips.clips])
    with objective.precision(settings.precision), strategy.scope():
        model = Tiny(dropout)
        model.set_batch_norm_frozen(bool(settings.frozen_batch_norm))
        objective.compile_model(model, settings, plan.steps(settings.epochs))
    kwargs.setdefault("identity", {"clips": list(feed.names)})
    return Trainer(model, feed, settings, folder, strategy=strategy, **kwargs)


def everything(model, average=None):
    """All that a training changes, found without the help of what is tested."""
    optimizer = model.optimizer
    groups = {
        "weights": model.named_weights().values(),
        "counter": [model.randomness.step],
        "optimizer": getattr(optimizer, "inner_optimizer", optimizer).variables,
        "metrics": [v for metric in model.metrics for v in metric.variables],
        "average": [] if average is None else average.variables,
    }
    if hasattr(optimizer, "loss_scale"):
        groups["scale"] = [tf.convert_to_tensor(optimizer.loss_scale), optimizer.dynamic_counter]
    return {
        f"{group}/{place}": value.numpy()
        for group, values in groups.items()
        for place, value in enumerate(values)
    }


class Notes:
    """A listener that writes all down."""

    def __init__(self, at_step=lambda step: None):
        self.steps, self.losses, self.rows = [], [], []
        self.at_step = at_step

    def on_step(self, step, waited_s):
        self.steps.append(step)
        assert 0 <= waited_s < 60
        self.at_step(step)

    def on_loss(self, step, loss):
        self.losses.append((step, loss))

    def on_epoch(self, row):
        self.rows.append(row)


def checkpoint_steps(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


class Pause:
    """Tells when a step is done, and waits there to be sent a signal."""

    def __init__(self, path, step):
        self.path, self.step = Path(path), step

    def on_step(self, step, waited_s):
        if step == self.step:
            self.path.write_text(str(step))
            time.sleep(0.5)

    def on_loss(self, step, loss):
        pass

    def on_epoch(self, row):
        pass


def kill_at(group, moment, place):
    """Sends SIGKILL to this process, and says where it was.

    Args:
        group: of `GROUPS`, or "time".
        moment: so many lines of the group are executed first, or so many seconds pass.
        place: of the file that says where.
    """

    def end(where):
        Path(place).write_text(where)
        os.kill(os.getpid(), signal.SIGKILL)

    if group == "time":
        threading.Timer(moment, end, [f"after {moment:.3f} s"]).start()
        return
    wanted, done = GROUPS[group], 0

    def on_line(frame, event, argument):
        nonlocal done
        done += event == "line"
        if done == moment:
            end(f"{group}: {frame.f_code.co_name}, line {frame.f_lineno}")
        return on_line

    sys.settrace(lambda frame, event, argument: on_line if wanted(frame.f_code) else None)


def run(folder, *, resume=False, settings=None, kill=None, pause_at=None):
    """Trains in a folder as `grw_keras.training.run` does; leaves all that came of it there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tf.config.experimental.enable_op_determinism()
    listeners = []
    with stop_signals() as stop:
        training = make_trainer(folder, settings, listeners=listeners, stop=stop)

        def validate():
            store = ArrayStore()
            clips = np.stack([frames[[0, 1, 2, 3, 3, 3], :SIZE, :SIZE] for frames in store.frames])
            labels = [store.clips.labels.index(clip.label) for clip in store.clips.clips]
            logits = training.model(tf.constant(clips / 255, tf.float32), training=False)
            return {"val_top1": float(np.mean(np.argmax(logits, axis=1) == labels))}

        training.validate = validate
        if resume:
            training.resume()
        listeners.append(HistoryFile(folder / "history.csv", training.outcome.history))
        if pause_at is not None:
            listeners.append(Pause(folder / "paused", pause_at))
        if kill is not None:
            kill_at(*kill, place=folder / "killed")
        outcome = training.run()
    sys.settrace(None)
    if outcome.finished:
        state = {"history": outcome.history, "step": outcome.step, "best": outcome.best_epoch}
        (folder / "outcome.json").write_text(json.dumps(state))
        np.savez(folder / "end.npz", **everything(training.model, training.average))


class Zygote:
    """The process that forks, seen from the tests."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training_programs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder, **options):
        """The process id of a child that runs; what it prints goes to `log` beside the folder."""
        log = f"{folder}.log"
        return self.ask(start={"folder": str(folder), **options}, log=log)["pid"]

    def wait(self, pid):
        """The exit code of a child."""
        return self.ask(wait=pid)["exit"]

    def train(self, folder, **options):
        """`run` in a child; its exit code."""
        return self.wait(self.start(folder, **options))

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def _child(options, log):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        logging.basicConfig(level=logging.INFO, force=True)
        run(**options)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve():
    for line in sys.stdin:
        command = json.loads(line)
        if "start" in command:
            pid = os.fork()
            if pid == 0:
                signal.alarm(120)
                _child(command["start"], command["log"])
            answer = {"pid": pid}
        else:
            _, status = os.waitpid(command["wait"], 0)
            answer = {"exit": os.waitstatus_to_exitcode(status)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
