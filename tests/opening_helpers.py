"""Numbered videos in class folders, and what opening them gives."""

import numpy as np

from grw_keras.data.opening import Choice, open_data
from tests import video_files


def write_videos(folder, names) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = [video_files.numbered(10 * number + i) for i in range(6)]
        video_files.write(path, "mjpeg", pictures, fps=10, pix_fmt="yuvj420p")


def write_tree(folder):
    """Class folders: four training videos, two test videos."""
    training = ("train/bow/a.avi", "train/bow/b.avi", "train/wave/c.avi", "train/wave/d.avi")
    write_videos(folder, [*training, "test/bow/e.avi", "test/wave/f.avi"])
    return folder


def opened(data, folder, choice=None, **options):
    choice = choice or Choice(workers=0, cache="none", max_bad_share=0.5)
    return open_data(data, choice, **{"fps": 5, "size": 16, "folder": folder, **options})


def names(store) -> list[str]:
    return [clip.name.rpartition("/")[2] for clip in store.clips.clips]


def numbers(store) -> list[int]:
    """What the clips' first frames show."""
    return [video_files.number_of(store.read(i, np.array([0]))[0]) for i in range(len(store.clips))]
