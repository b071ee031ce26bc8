"""The TFDS builder of prepared records: a folder that appears whole or not at all."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.splits import SplitDict

from grw_keras.data import record_files
from grw_keras.data.record_files import BAD_VIDEOS, Example, Prepared, Row, Settings, Shard
from grw_keras.data.scan import BadVideo, Scan, TooManyBadVideosError

Watch = Callable[[Iterable[Example | BadVideo]], Iterator[Example | BadVideo]]


class VideoRecords(FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder whose shards `write` puts into the folder that TFDS gives.

    Args:
        settings: of the records; become the data set's metadata.
        shards: all that `write` writes.
        write: called with the folder.
        check: called with all bad videos before the data set is finished.
        data_dir: folder below which TFDS makes its own.
    """

    name = record_files.NAME
    VERSION = tfds.core.Version(record_files.VERSION)
    # TFDS would look there for checksums of downloads, with a library (importlib_resources) that
    # it does not ask for: TFDS 4.9.10.
    code_path = None

    def __init__(
        self,
        settings: Settings,
        shards: Sequence[Shard],
        write: Callable[[Path], None],
        check: Callable[[Sequence[BadVideo]], None],
        data_dir: Path,
    ):
        self._settings, self._shards = settings, shards
        self._write, self._check = write, check
        super().__init__(file_format="array_record", data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._settings.size
        image = tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg")
        features: dict[str, Any] = {
            "frames": tfds.features.Sequence(image),
            "label": tfds.features.ClassLabel(names=self._settings.labels),
            **dict.fromkeys(("name", "group", "path"), tfds.features.Text()),
            **dict.fromkeys(("start_s", "end_s"), tfds.features.Scalar(np.float32)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Clips as {size} px JPEG frames, {self._settings.fps:g} a second.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(self._settings.to_dict()),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        folder = Path(self.data_dir)
        self._write(folder)
        rows: dict[str, list[Row]] = {}
        bad: list[BadVideo] = []
        lengths: dict[str, list[int]] = {}
        for shard in self._shards:
            written, unusable = dataclasses.replace(shard, folder=folder).take_notes()
            rows.setdefault(shard.split, []).extend(written)
            lengths.setdefault(shard.split, []).append(len(written))
            bad.extend(unusable)
        self._check(bad)
        record_files.write_tables(folder, rows, bad)
        for leftover in [*folder.glob("notes-*"), *folder.glob("plan-*"), *folder.glob("part-*")]:
            leftover.unlink()
        self.info.set_splits(SplitDict([self._split(*item) for item in lengths.items()]))

    def _split(self, split: str, lengths: list[int]) -> tfds.core.SplitInfo:
        shards = [shard for shard in self._shards if shard.split == split]
        folder = Path(self.data_dir)
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=sum((folder / shard.path.name).stat().st_size for shard in shards),
            filename_template=self._get_filename_template(split),
        )

    # TFDS would speak of a download, and of a folder that is moved afterwards.

    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def build(
    out: str | os.PathLike[str],
    settings: Settings,
    shards: Sequence[Shard],
    write: Callable[[Path, Watch], None],
    max_bad_share: float,
    progress: Callable[[int, int], Any] | None,
) -> Prepared:
    """Makes the folder `out`, or keeps it if it holds these very records.

    Args:
        out: the folder.
        settings: of the records.
        shards: all that `write` writes, each split's in order.
        write: called with a folder, and with what should see all examples go by, where they do.
        max_bad_share: in [0, 1].
        progress: called with (examples done, examples in all).

    Raises:
        TooManyBadVideosError: more are bad; `out` then holds their list alone.
        ValueError: `out` holds something else.
    """
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"`max_bad_share` must be in [0, 1]. Received: {max_bad_share}")
    out = Path(out).absolute()

    def check(bad: Sequence[BadVideo]) -> None:
        found = Scan({}, tuple(bad), settings.count)
        try:
            found.check_share(max_bad_share, out / BAD_VIDEOS)
            if len(bad) == settings.count:
                found.check_share(0.0, out / BAD_VIDEOS)  # a data set of nothing is none
        except TooManyBadVideosError:
            out.mkdir(exist_ok=True)
            found.write_report(out / BAD_VIDEOS)
            raise

    def watch(examples: Iterable[Example | BadVideo]) -> Iterator[Example | BadVideo]:
        bad: list[BadVideo] = []
        for done, example in enumerate(examples, 1):
            if isinstance(example, BadVideo):
                bad.append(example)
                check(bad)
            if progress:
                progress(done, settings.count)
            yield example

    with _making(out) as folder:
        if kept := _finished(out, settings):
            return kept
        builder = VideoRecords(settings, shards, lambda f: write(f, watch), check, folder)
        builder.download_and_prepare()
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(builder.data_dir, out)
    return _summary(out)


@contextlib.contextmanager
def _making(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in; gone afterwards, as is what a killed run has left."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.preparing")
    lock = filelock.FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RuntimeError(f"Another process is preparing {out}. Wait for it to end.") from error
    try:
        shutil.rmtree(folder, ignore_errors=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _finished(out: Path, settings: Settings) -> Prepared | None:
    """The records that `out` holds already; None where it holds none and can be made."""
    if not out.exists() or (out.is_dir() and not {f.name for f in out.iterdir()} - {BAD_VIDEOS}):
        return None
    try:
        differences = record_files.read_settings(out).differences(settings)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"`out` must be a new or empty folder, or one of finished records. Received: {out}, "
            "which holds something else"
        ) from error
    if differences:
        raise ValueError(
            f"{out} holds records with other settings: {'; '.join(differences)} as asked for now. "
            "Choose another folder, or delete this one."
        )
    return _summary(out, kept=True)


def _summary(out: Path, kept: bool = False) -> Prepared:
    shards = record_files.shards(out)
    counts = {split: sum(n for _, n in members) for split, members in shards.items()}
    return Prepared(out, counts, record_files.read_bad(out), kept)
