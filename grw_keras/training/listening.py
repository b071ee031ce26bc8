"""Who is told how a training goes: the terminal, a CSV file, TensorBoard."""

import csv
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from grw_keras import atomic, csv_table
from grw_keras.training.checkpoint_files import DISK_FULL

log = logging.getLogger("grw_keras")

Row = Mapping[str, float]
# Seconds between two lines of progress where the output is no terminal.
LINE_EVERY_S = 30.0


class Listener(Protocol):
    """Told of every step and every epoch."""

    def on_step(self, step: int, waited_s: float) -> None:
        """After step `step` (counted from 1), for whose batch training waited `waited_s`.

        GPUs may have been busy with the steps before meanwhile: for them it's an upper bound.
        """
        ...

    def on_loss(self, step: int, loss: float) -> None:
        """Every few steps, with the mean loss since the epoch began."""
        ...

    def on_epoch(self, row: Row) -> None:
        """After an epoch, with its numbers."""
        ...


class Listeners:
    """Several listeners as one; a disk too full for one of them is warned of, once for each.

    Args:
        members: told in this order; others may join them later.
    """

    def __init__(self, members: Sequence[Listener]):
        self._members = members
        self._warned: set[int] = set()

    def on_step(self, step: int, waited_s: float) -> None:
        self._tell(lambda member: member.on_step(step, waited_s))

    def on_loss(self, step: int, loss: float) -> None:
        self._tell(lambda member: member.on_loss(step, loss))

    def on_epoch(self, row: Row) -> None:
        self._tell(lambda member: member.on_epoch(row))

    def _tell(self, tell: Callable[[Listener], None]) -> None:
        for member in self._members:
            try:
                tell(member)
            except Exception as error:
                if not is_disk_full(error):
                    raise
                if id(member) not in self._warned:
                    self._warned.add(id(member))
                    name = type(member).__name__
                    log.warning("No room for what %s writes: %s. Training goes on", name, error)


def is_disk_full(error: Exception) -> bool:
    """Whether something could not be written for want of room.

    What TensorFlow and safetensors raise then is no `OSError` and has no number, but it quotes the
    system's text.
    """
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return any(os.strerror(number) in str(error) for number in DISK_FULL)


class Terminal:
    """A bar with clips a second, the share of time spent waiting for input, the loss and the time
    left; where the output is no terminal, a line now and then. A line for each epoch.

    Rates are those of the steps alone; the time left counts validations like those before.

    Args:
        steps: of the whole training.
        batch_size: clips of a step.
    """

    def __init__(self, steps: int, batch_size: int):
        self.console = Console(file=sys.stdout)
        self.steps, self.batch_size = steps, batch_size
        self._began_s = self._last_s = self._line_s = time.monotonic()
        self._done_before = 0
        self._stepping_s = self._waited_s = 0.0
        self._loss = ""
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=steps, rate="")

    def begin_at(self, step: int) -> None:
        """Says where a resumed run goes on."""
        self._done_before = step
        self._progress.update(self._task, completed=step)

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exception):
        self._progress.stop()

    def on_step(self, step: int, waited_s: float) -> None:
        now_s, last_s = time.monotonic(), self._last_s
        self._last_s = now_s
        done = step - self._done_before - 1
        if done < 1:  # traced in this one: no rate can be told from it
            self._began_s = now_s
            return
        self._stepping_s += max(now_s - last_s, 1e-9)
        self._waited_s += waited_s
        rate = (
            f"{self.batch_size * done / self._stepping_s:.1f} clips/s, "
            f"waiting for input {self._waited_s / self._stepping_s:.0%}{self._loss}"
        )
        self._progress.update(self._task, completed=step, rate=rate)
        if not self.console.is_terminal and now_s - self._line_s >= LINE_EVERY_S:
            self._line_s = now_s
            left_s = (self.steps - step) * (now_s - self._began_s) / done
            self._print(f"step {step}/{self.steps}, {rate}, {_duration(left_s)} left")

    def on_loss(self, step: int, loss: float) -> None:
        del step
        self._loss = f", loss {loss:.4g}"

    def on_epoch(self, row: Row) -> None:
        self._last_s = time.monotonic()
        numbers = (f"{name} {value:.4g}" for name, value in row.items() if name not in _QUIET)
        self._print(f"epoch {row['epoch']:.0f}: {', '.join(numbers)}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


_QUIET = {"epoch", "step", "backbone_rate", "head_rate"}


class HistoryFile:
    """Writes `history.csv`, one row for each epoch, whole at every epoch.

    Args:
        path: of the file.
        rows: of epochs before a resume; written at once, for the run may have been killed between
            a checkpoint and its row.
    """

    def __init__(self, path, rows: Sequence[Row] = ()):
        self.path = Path(path)
        self._rows = list(rows)
        if self._rows:
            try:
                self._write()
            except OSError as error:
                if not is_disk_full(error):
                    raise
                log.warning("No room for %s: %s. Training goes on", self.path, error)

    def on_step(self, step: int, waited_s: float) -> None:
        """Steps are not written."""

    def on_loss(self, step: int, loss: float) -> None:
        """Nor is their loss."""

    def on_epoch(self, row: Row) -> None:
        self._rows.append(row)
        self._write()

    def _write(self) -> None:
        fields = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        atomic.write_text(self.path, text.getvalue())


def read_history(path) -> list[dict[str, float]]:
    """The rows of a `HistoryFile`; none where there is no file."""
    return [
        {name: float(value) for name, value in row.items() if value}
        for row in csv_table.read(Path(path))
    ]


class TensorBoard:
    """For `tensorboard --logdir`: each epoch's numbers; the loss and the waits within epochs."""

    def __init__(self, folder):
        import tensorflow as tf

        self._summary = tf.summary
        self._writer = tf.summary.create_file_writer(str(folder))
        self._waited_s = 0.0

    def on_step(self, step: int, waited_s: float) -> None:
        del step
        self._waited_s += waited_s

    def on_loss(self, step: int, loss: float) -> None:
        # Here and not at each step, which would cost more than it tells.
        with self._writer.as_default(step=step):
            self._summary.scalar("steps/loss", loss)
            self._summary.scalar("steps/waited_s", self._waited_s)
        self._waited_s = 0.0

    def on_epoch(self, row: Row) -> None:
        with self._writer.as_default(step=int(row["step"])):
            for name, value in row.items():
                group = "validation" if name.startswith("val_") else "training"
                self._summary.scalar(f"{group}/{name}", value)
        self._writer.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
