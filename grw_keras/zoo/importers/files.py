"""Which importer reads a file: told by what is in it, not by its name."""

import zipfile
from pathlib import Path

from grw_keras.models import pretrained
from grw_keras.zoo.importers import Imported

KNOWN = (
    "a folder of `save_pretrained`, an authors' snapshot (.pt), an official checkpoint (folder, "
    "prefix or .index), an official SavedModel folder, a TFLite file of a streaming MoViNet"
)


def read_weights(path: Path, *, ema: bool | None = None) -> Imported:
    """The tensors of a file or folder of any known format.

    Args:
        path: the file or folder.
        ema: of an authors' snapshot; see `torch_checkpoint.read`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no known format, or a damaged file.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.with_name(f"{path.name}.index").is_file() or path.suffix == ".index":
        from grw_keras.zoo.importers import tf_checkpoint

        return tf_checkpoint.read(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such file or folder of weights: {path}")
    start = _first_bytes(path, 8)
    if start[4:8] == b"TFL3":
        from grw_keras.zoo.importers import tflite

        return tflite.read(path)
    if start[:2] == b"PK" or zipfile.is_zipfile(path) or path.suffix in (".pt", ".pth"):
        from grw_keras.zoo.importers import torch_checkpoint

        return torch_checkpoint.read(path, ema=ema)
    raise ValueError(f"Not a file of weights that can be read. Known: {KNOWN}. Received: {path}")


def _read_folder(path: Path) -> Imported:
    if pretrained.is_pretrained(path):
        found = pretrained.read(path)
        return Imported(tensors=found.tensors, spec=found.spec.to_dict(), labels=found.labels)
    if any(path.rglob("saved_model.pb")):
        from grw_keras.zoo.importers import saved_model

        return saved_model.read(path)
    tflite_files = list(path.rglob("*.tflite"))
    if len(tflite_files) == 1:
        return read_weights(tflite_files[0])
    from grw_keras.zoo.importers import tf_checkpoint

    holders = {index.parent for index in path.rglob("*.index")}
    return tf_checkpoint.read(holders.pop() if len(holders) == 1 else path)


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)
