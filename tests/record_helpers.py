"""Small videos whose frames are known by construction, and records of them."""

import av
import numpy as np

from grw_keras.data.clips import Clip, ClipSet

LABELS = ("bow", "wave")
FPS = 10  # of the videos


def colour(video: int, frame: int) -> np.ndarray:
    """The colour of all pixels of a frame of a video: no two are alike, nor is BGR like RGB."""
    return np.array([20 + 30 * video, 15 + 9 * frame, 230 - 6 * (video + frame)])


def write_video(path, frames) -> None:
    """A lossless video of RGB frames at 10 fps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.pix_fmt = "bgr0"
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame.astype(np.uint8), "rgb24"))
            )
        container.mux(stream.encode())


def plain_frames(video: int, count: int) -> list[np.ndarray]:
    return [np.tile(colour(video, i), (24, 32, 1)) for i in range(count)]


def clip_set(folder, lengths=(20, 14, 9, 20, 12, 7)) -> ClipSet:
    """Videos of so many frames; two of three are for training, the rest for tests."""
    clips = []
    for video, length in enumerate(lengths):
        path = folder / f"{video}.mkv"
        if not path.exists():
            write_video(path, plain_frames(video, length))
        split = "test" if video % 3 == 2 else "train"
        label = LABELS[video % 2]
        clips.append(Clip(str(path), label, split=split, group=f"g{video}", name=f"v{video}"))
    return ClipSet(tuple(clips), LABELS)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
