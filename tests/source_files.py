"""Empty files in folders, and lists of them, for the reading of sources."""

from pathlib import Path

from grw_keras.data.clips import ClipSet


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def written(path: Path, text: str, encoding="utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def by_name(clip_set: ClipSet) -> dict[str, tuple[str, str]]:
    return {clip.name: (clip.split, clip.label) for clip in clip_set.clips}
