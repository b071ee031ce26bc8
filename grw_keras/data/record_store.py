"""RecordStore: random access to the frames of prepared records. No TensorFlow.

It reads the shards and their tables itself: TFDS would do so only with TensorFlow, which takes
seconds to start and hundreds of megabytes in each worker process.
"""

import bisect
import collections
import functools
import itertools
import os
from pathlib import Path

import cv2
import numpy as np
from array_record.python import array_record_module

from grw_keras.data import record_files, tf_example
from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.record_files import Row, Shard

# Ours: far below the usual limit of 1,024 open files, while large sets have thousands of shards.
MAX_OPEN_SHARDS = 64
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # For random access, as its help says.
_AGAIN = "Delete the folder and prepare the records again."


class DamagedRecordsError(ValueError):
    """Files of prepared records are missing or damaged."""


class RecordStore:
    """One split of prepared records; a `FrameStore`.

    It can be sent to other processes, each of which opens the files itself.

    Args:
        folder: what `prepare` wrote.
        split: `"train"`, `"validation"` or `"test"`.

    Attributes:
        clips: ClipSet of the split: bad videos left out, all the labels.
        fps: frames a second of the grid.
        size: height and width of the frames, pixels.

    Raises:
        DamagedRecordsError: shards are missing.
        FileNotFoundError: the folder holds no finished records.
        ValueError: it has no such split; says which it has.

    Shapes:
        `read`: indices [n], below M → frames [n, size, size, 3].

    Example:
        >>> RecordStore("no/such/folder", "train")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder holds no finished records: it has no dataset_info.json. \
Write them with `grw-keras data prepare --data DIR --out RECORDS`.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str):
        self.folder, self.split = Path(folder), split
        settings = record_files.read_settings(self.folder)
        self.fps, self.size, self._labels = settings.fps, settings.size, settings.labels
        splits = record_files.shards(self.folder)
        if split not in splits:
            raise ValueError(
                f"`split` must be one of {', '.join(map(repr, splits))}: {self.folder} has no "
                f"others. Received: {split!r}"
            )
        self._shards = splits[split]
        self._ends = list(itertools.accumulate(length for _, length in self._shards))
        self._readers: collections.OrderedDict = collections.OrderedDict()
        self._pid = os.getpid()
        missing = [shard.path.name for shard, _ in self._shards if not shard.path.is_file()]
        if missing:
            raise DamagedRecordsError(
                f"{self.folder} lacks {len(missing)} of {len(self._shards)} shards of {split!r}: "
                f"{', '.join(missing[:5])}{' …' if missing[5:] else ''}. Copy them there, or: "
                f"{_AGAIN}"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self):
        kept = {key: value for key, value in vars(self).items() if key not in ("clips", "_rows")}
        # Counts travel, so that no worker has to go through the table for them.
        return kept | {"_readers": collections.OrderedDict(), "_counts": self._counts}

    @functools.cached_property
    def clips(self) -> ClipSet:
        return ClipSet(
            tuple(
                Clip(row.path, row.label, row.start_s, row.end_s, self.split, row.group, row.name)
                for row in self._rows
            ),
            self._labels,
        )

    def available(self, index: int) -> int:
        """M, the number of frames of clip `index`."""
        return int(self._counts[self._checked(index)])

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        """Frames of a clip; decodes each one that is asked for once.

        Args:
            index: of the clip, in [0, len).
            frames: integers in [0, M), in any order, [n].

        Returns:
            RGB frames, uint8 [n, size, size, 3].

        Raises:
            DamagedRecordsError: the shard is damaged; names it.
            IndexError: no such clip or frame.
        """
        number = bisect.bisect_right(self._ends, self._checked(index))
        shard, length = self._shards[number]
        position = index - (self._ends[number] - length)
        wanted, where = np.unique(np.asarray(frames, np.int64), return_inverse=True)
        jpegs = self._jpegs(number, position)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(jpegs):
            raise IndexError(
                f"`frames` must lie in [0, {len(jpegs)}) for clip {index}. "
                f"Received: {wanted[0]} to {wanted[-1]}"
            )
        found = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        for slot, frame in zip(found, wanted, strict=True):
            image = cv2.imdecode(np.frombuffer(jpegs[frame], np.uint8), cv2.IMREAD_COLOR)
            if image is None or image.shape != slot.shape:
                raise _damaged(shard, f"frame {frame} of record {position} is no JPEG of its size")
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=slot)
        return found[where]

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        return np.array([row.frames for row in self._rows], np.int32)

    @functools.cached_property
    def _rows(self) -> list[Row]:
        try:
            rows = record_files.read_clips(self.folder, self.split)
        except ValueError as error:
            raise DamagedRecordsError(str(error)) from error
        if len(rows) != len(self):
            raise DamagedRecordsError(
                f"{record_files.clips_table(self.folder, self.split)} has {len(rows)} clips, the "
                f"shards {len(self)}. {_AGAIN}"
            )
        return rows

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must lie in [0, {len(self)}). Received: {index}")
        return index

    def _jpegs(self, number: int, position: int) -> list[memoryview]:
        shard = self._shards[number][0]
        try:
            (record,) = self._reader(number).read([position])
            return tf_example.bytes_list(record, "frames")
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            raise _damaged(shard, f"record {position}: {error}") from error

    def _reader(self, number: int):
        """The open shard; the one longest out of use is closed for it."""
        if self._pid != os.getpid():  # Readers have threads, which no fork takes along.
            self._pid, self._readers = os.getpid(), collections.OrderedDict()
        if number in self._readers:
            self._readers.move_to_end(number)
            return self._readers[number]
        shard, length = self._shards[number]
        reader = array_record_module.ArrayRecordReader(
            os.fspath(shard.path), options=_OPTIONS, file_reader_buffer_size=32768
        )
        # A cut or missing file opens without a word, as an empty one.
        if reader.num_records() != length:
            found = reader.num_records()
            raise _damaged(shard, f"it holds {found} records, not {length}")
        self._readers[number] = reader
        if len(self._readers) > MAX_OPEN_SHARDS:
            self._readers.popitem(last=False)[1].close()
        return reader


def _damaged(shard: Shard, reason: str) -> DamagedRecordsError:
    return DamagedRecordsError(f"{shard.path} is damaged: {reason}. {_AGAIN}")
