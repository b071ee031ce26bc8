"""The folder of a run: what is where in it."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grw_keras.training import recipe
from grw_keras.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths in a run's folder.

    `recipe.yaml`, all that the run was told; `clips.csv`, every clip with its split;
    `bad_videos.csv`; `checkpoints/`; `history.csv`, a row for each epoch; `tensorboard/`; `best/`,
    with early stopping; `model/`, what `zoo.load` reads; `results.json` and `report.html`.
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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

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


def begin(folder: RunFolder, wanted: Recipe, *, resume: bool) -> None:
    """Makes the folder of a new run, or sees that a run can go on in it.

    Raises:
        FileExistsError: a run is there, and it isn't asked to go on.
        ValueError: to go on, with a recipe that would end elsewhere; says what differs.
    """
    if folder.started() and not resume:
        raise FileExistsError(
            f"There is a run in {folder.path} already: go on with it by --resume, or choose "
            "another folder"
        )
    if folder.started():
        changed = recipe.differences(folder.read_recipe(), wanted, ignore=recipe.HARMLESS)
        if changed:
            raise ValueError(
                "To resume, the recipe must be the run's own; start a new run for another. "
                f"Received: {'; '.join(changed)}"
            )
    folder.path.mkdir(parents=True, exist_ok=True)
    recipe.write(wanted, folder.recipe)


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
