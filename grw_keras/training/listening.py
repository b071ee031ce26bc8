"""Who is told how a training goes: the terminal, a CSV file, TensorBoard."""

import csv
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Row = Mapping[str, float]
# Seconds between two lines of progress where the output is no terminal.
LINE_EVERY_S = 30.0


class Listener(Protocol):
    """Told of every step and every epoch."""

    def on_step(self, step: int, waited_s: float) -> None:
        """After step `step` (counted from 1), for whose batch training waited `waited_s`."""
        ...

    def on_epoch(self, row: Row) -> None:
        """After an epoch, with its numbers."""
        ...


class Terminal:
    """A bar with clips a second, the share of time spent waiting for input, and the time left;
    where the output is no terminal, a line now and then. A line for each epoch.

    Args:
        steps: of the whole training.
        batch_size: clips of a step.
    """

    def __init__(self, steps: int, batch_size: int):
        self.console = Console(file=sys.stdout)
        self.steps, self.batch_size = steps, batch_size
        self._began_s = self._line_s = time.monotonic()
        self._done_before, self._waited_s = 0, 0.0
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
        now_s = time.monotonic()
        if step == self._done_before + 1:  # traced in this one: no rate can be told from it
            self._began_s = now_s
            return
        self._waited_s += waited_s
        elapsed_s = now_s - self._began_s
        each_s = elapsed_s / (step - self._done_before - 1)
        rate = (
            f"{self.batch_size / each_s:.1f} clips/s, "
            f"waiting for input {self._waited_s / elapsed_s:.0%}"
        )
        self._progress.update(self._task, completed=step, rate=rate)
        if not self.console.is_terminal and now_s - self._line_s >= LINE_EVERY_S:
            self._line_s = now_s
            left_s = (self.steps - step) * each_s
            self.console.print(
                f"step {step}/{self.steps}, {rate}, {_duration(left_s)} left", highlight=False, soft_wrap=True
            )

    def on_epoch(self, row: Row) -> None:
        numbers = (f"{name} {value:.4g}" for name, value in row.items() if name not in _QUIET)
        self.console.print(f"epoch {row['epoch']:.0f}: {', '.join(numbers)}", highlight=False, soft_wrap=True)


_QUIET = {"epoch", "step", "backbone_rate", "head_rate"}


class HistoryFile:
    """Writes `history.csv`, one row for each epoch, whole at every epoch.

    Args:
        path: of the file.
        rows: of epochs before a resume.
    """

    def __init__(self, path, rows: Sequence[Row] = ()):
        self.path = Path(path)
        self._rows = list(rows)

    def on_step(self, step: int, waited_s: float) -> None:
        """Steps are not written."""

    def on_epoch(self, row: Row) -> None:
        self._rows.append(row)
        fields = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text.getvalue(), encoding="utf-8")
        os.replace(temporary, self.path)


def read_history(path) -> list[dict[str, float]]:
    """The rows of a `HistoryFile`; none where there is no file."""
    path = Path(path)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


class TensorBoard:
    """Writes each epoch's numbers, and the wait for input, for `tensorboard --logdir`."""

    def __init__(self, folder):
        import tensorflow as tf

        self._summary = tf.summary
        self._writer = tf.summary.create_file_writer(str(folder))

    def on_step(self, step: int, waited_s: float) -> None:
        with self._writer.as_default(step=step):
            self._summary.scalar("input/waited_s", waited_s)

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
