"""The folder of a run: what is where in it."""

import contextlib
import csv
import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from grw_keras import atomic
from grw_keras.data.clips import ClipSet
from grw_keras.models import pretrained
from grw_keras.models.spec import ModelSpec
from grw_keras.training import recipe
from grw_keras.training.recipe import Recipe
from grw_keras.zoo import registry

log = logging.getLogger("grw_keras")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths in a run's folder.

    `recipe.yaml`, all that the run was told; `command.txt`, that began it; `clips.csv`, every clip
    with its split; `bad_videos.csv`; `scan.json`, what is known of the videos; `frames/`, with
    `cache: disk`, or `records/`, of a TFDS data set; `checkpoints/`; `history.csv`, a row for each
    epoch; `tensorboard/`; `best/`, with early stopping; `model/`, what `zoo.load` reads;
    `results_SPLIT.json`; `report.html` with `images/`, of evaluations of another split
    `report_SPLIT.html` with `report_SPLIT_images/`, and in `evaluation/` what was opened for them.
    """

    path: Path

    @classmethod
    def at(cls, path: str | os.PathLike) -> "RunFolder":
        """The run's folder at a path."""
        return cls(Path(path))

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def clips(self) -> Path:
        return self.path / "clips.csv"

    @property
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def results(self, split: str) -> Path:
        return self.path / f"results_{split}.json"

    def started(self) -> bool:
        """Whether a run began here."""
        return self.recipe.is_file()

    def read_recipe(self) -> Recipe:
        """The run's recipe.

        Raises:
            FileNotFoundError: no run began here.
        """
        if not self.started():
            raise FileNotFoundError(
                f"A run's folder has a {self.recipe.name}. Received: {self.path}"
            )
        return recipe.read(self.recipe)

    @property
    def command(self) -> Path:
        return self.path / "command.txt"

    def read_splits(self) -> dict[str, str]:
        """The split that each clip of the run has, by name."""
        with self.clips.open(newline="", encoding="utf-8") as file:
            return {row["name"]: row["split"] for row in csv.DictReader(file)}


@contextlib.contextmanager
def claimed(folder: RunFolder) -> Iterator[None]:
    """Meanwhile no other process may train in this folder; it is made, and goes if it stays empty.

    Raises:
        FileExistsError: another one does.
    """
    fresh = not folder.path.exists()
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.path / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise FileExistsError(f"Another process is training in {folder.path}") from error
    try:
        yield
    finally:
        lock.release()
        if fresh and [path.name for path in folder.path.iterdir()] == [Path(lock.lock_file).name]:
            shutil.rmtree(folder.path)


def find_model(path: str | os.PathLike) -> tuple[str | os.PathLike, ModelSpec]:
    """The model of a run's folder, of a folder of `save_pretrained`, or of a name: what `zoo.load`
    takes, and its spec. Reads no weights, and needs no TensorFlow.

    Raises:
        FileNotFoundError: a run that has not ended; no such folder.
        ValueError: no such model.
    """
    folder = RunFolder.at(path)
    if folder.started():
        if not folder.model.is_dir():
            raise FileNotFoundError(
                f"The run in {path} has not ended: go on with it by grw-keras train … --resume"
            )
        return folder.model, pretrained.read_spec(folder.model)
    if folder.path.is_dir() and os.fspath(path) not in registry.specs():
        return path, pretrained.read_spec(path)
    return path, registry.find(path)


def check(folder: RunFolder, wanted: Recipe, *, resume: bool) -> None:
    """Sees that a run can begin, or go on, in a folder.

    Raises:
        FileExistsError: a run is there, and it isn't asked to go on.
        ValueError: to go on, with a recipe that would end elsewhere; says what differs.
    """
    if not folder.started():
        if resume:
            log.info("There is no run in %s to go on with: one begins", folder.path)
        return
    if not resume:
        raise FileExistsError(
            f"There is a run in {folder.path} already: go on with it by --resume, or choose "
            "another folder"
        )
    changed = recipe.differences(
        recipe.to_dict(folder.read_recipe()), recipe.to_dict(wanted), ignore=recipe.HARMLESS
    )
    if changed:
        raise ValueError(
            "To resume, the recipe must be the run's own. To train its model on, start another "
            f"run from its weights, {folder.model}. "
            f"Received: {'; '.join(changed)}"
        )


def keep(folder: RunFolder, wanted: Recipe, clips: ClipSet, command: str = "") -> None:
    """Writes what the run is made of, from where on it has begun: its clips, then its recipe.

    The command is that of the beginning: resumed runs end as if they had never stopped.

    Raises:
        ValueError: a run that goes on, with other clips or splits.
    """
    fresh = folder.clips.with_suffix(".new")
    clips.to_csv(fresh)
    if folder.started() and folder.clips.read_bytes() != fresh.read_bytes():
        raise ValueError(
            "To resume, the clips and their splits must be the run's own. "
            f"Received: others than in {folder.clips}; compare it with {fresh}"
        )
    os.replace(fresh, folder.clips)
    if not folder.command.exists():
        atomic.write_text(folder.command, command)
    recipe.write(wanted, folder.recipe)


def monitored(splits: Collection[str]) -> str | None:
    """The split that epochs are judged by: validation or else test clips, of those there are."""
    return next((split for split in ("validation", "test") if split in splits), None)


def identity(wanted: Recipe, clips: Sequence[str]) -> dict[str, Any]:
    """What a run can be resumed with: its recipe but for `recipe.HARMLESS`, and its clips.

    Args:
        wanted: the recipe.
        clips: names of the training clips, in order; they count by their checksum, for checkpoints
            hold this.
    """
    data = recipe.to_dict(wanted)
    for key in recipe.HARMLESS:
        part, _, name = key.rpartition(".")
        (data[part] if part else data).pop(name, None)
    text = "\n".join(clips).encode()
    return {
        "recipe": data,
        "clips": {"count": len(clips), "sha256": hashlib.sha256(text).hexdigest()},
    }
