"""Checkpoints on disk: what comes back, what is kept, and damage."""

import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from grw_keras.training import checkpoint_files
from grw_keras.training.checkpoint_files import CorruptCheckpointError, latest, write
from tests.checkpoint_helpers import is_of_step, names, save, small

BITS = np.random.default_rng(0).integers(0, 2**16, (3, 5), np.uint16)
ARRAYS = {
    "bfloat16": BITS.view(ml_dtypes.bfloat16),
    "float16": BITS.view(np.float16),
    "float32 with NaN": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    "float64": np.pi * np.ones((2, 0, 3)),
    "int64": np.array(-(2**63)),
    "int8": np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 2),
    "uint32": np.array([2**32 - 1], np.uint32),
    "bool": np.array([[True], [False]]),
    "0-d bool": np.array(True),
    "0-d bfloat16": np.array(1.5, ml_dtypes.bfloat16),
    "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
    "every second": np.arange(9, dtype=np.int32)[::2],
    "big end first": np.arange(3, dtype=">f4"),
}


def test_arrays_come_back_bit_by_bit(tmp_path):
    write(tmp_path / "run" / "checkpoints", 5, ARRAYS, {})
    arrays = latest(tmp_path / "run" / "checkpoints").arrays
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype.newbyteorder("=")
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()
        with pytest.raises(ValueError, match="read-only"):
            arrays[name].flat[...] = 0


def test_state_comes_back_as_json_has_it(tmp_path):
    big = 2**127 + 1
    state = {"rng": {"state": big}, "best": float("-inf"), "π": [0.1, None, True], 10: 1, 2: (1,)}
    assert write(tmp_path, 12, {}, state) == tmp_path / "step-00000012"
    read = latest(tmp_path).state
    assert read == {
        "rng": {"state": big},
        "best": float("-inf"),
        "π": [0.1, None, True],
        "10": 1,
        "2": [1],
    }
    assert names(tmp_path / "step-00000012") == ["arrays.safetensors", "state.json"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"step": -1}, ValueError, "`step` must be an integer >= 0. Received: -1"),
        ({"step": 1.0}, ValueError, "`step` must be an integer"),
        ({"keep": 0}, ValueError, "`keep` must be an integer >= 1. Received: 0"),
        ({"arrays": {"labels": np.array(["a"])}}, TypeError, "Received: 'labels' of <U1"),
        ({"arrays": {"x": np.array([None])}}, TypeError, "Received: 'x' of object"),
        ({"state": {"x": np.float32(1)}}, TypeError, "float32"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(tmp_path, arguments, error, match):
    with pytest.raises(error, match=match):
        write(**{"folder": tmp_path, "step": 1, "arrays": {}, "state": {}, **arguments})
    assert names(tmp_path) == []


def test_the_last_ones_are_kept(tmp_path):
    for step in range(0, 60, 10):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000040", "step-00000050"]
    save(tmp_path, 10**8, keep=1)
    assert names(tmp_path) == ["step-100000000"]


def test_there_may_be_no_checkpoint(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None


def test_a_step_written_again_supersedes_its_first_form(tmp_path):
    save(tmp_path, 1)
    for value in (1, 2, 3):
        write(tmp_path, 2, small(2), {"value": value})
        assert latest(tmp_path).state == {"value": value}
    assert names(tmp_path) == ["step-00000001", "step-00000002.3"]


def test_steps_never_fall_behind_a_good_checkpoint(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(ValueError, match=r"`step` must not be below .*step-00000005.*step=4"):
        save(tmp_path, 4)
    assert names(tmp_path) == ["step-00000005"]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def _edit_state(path):
    path.write_text(re.sub(r'"step": \d', '"step": 9', path.read_text(), count=1))


DAMAGE = {
    "arrays cut": ("arrays.safetensors", _cut, "has .* bytes instead of"),
    "arrays changed": ("arrays.safetensors", _flip, "does not have the checksum"),
    "arrays missing": ("arrays.safetensors", Path.unlink, "is missing"),
    "arrays empty": ("arrays.safetensors", lambda p: p.write_bytes(b""), "has 0 bytes"),
    "state cut": ("state.json", lambda p: p.write_text(p.read_text()[:-9]), "is cut or no JSON"),
    "state empty": ("state.json", lambda p: p.write_bytes(b""), "is cut or no JSON"),
    "state no mapping": ("state.json", lambda p: p.write_text("[]"), "is cut or no JSON"),
    "state binary": ("state.json", lambda p: p.write_bytes(b"\xff\xfe\xff"), "is cut or no JSON"),
    "state changed": ("state.json", _edit_state, "does not have the checksum"),
    "state missing": ("state.json", Path.unlink, "is missing"),
    "all missing": (".", shutil.rmtree, None),
    "a file in its place": (".", lambda p: (shutil.rmtree(p), p.write_text("")), "is missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, case):
    file, damage, problem = DAMAGE[case]
    for step in (1, 2):
        save(tmp_path, step)
    damage(tmp_path / "step-00000002" / file)
    assert is_of_step(latest(tmp_path), 1)
    if problem is None:
        assert not caplog.records
        return
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(f"step-00000002.*{problem}.*before, step-00000001", record.message)
    caplog.clear()
    damage(tmp_path / "step-00000001" / file)
    with pytest.raises(CorruptCheckpointError, match=f"(?s){tmp_path} is whole: .*{problem}"):
        latest(tmp_path)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "FORMAT_VERSION", 2)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CorruptCheckpointError, match=r"is of the format 2.*upgrade"):
        latest(tmp_path)


def test_a_run_goes_on_from_before_a_damaged_checkpoint(tmp_path):
    """The damaged ones neither come back nor push out good ones."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step in (2, 3):
        _flip(tmp_path / f"step-0000000{step}" / "arrays.safetensors")
    save(tmp_path, 2, keep=2)
    assert names(tmp_path) == ["step-00000001", "step-00000002.2"]
    assert is_of_step(latest(tmp_path), 2)


def test_what_killed_writes_left_is_swept(tmp_path):
    save(tmp_path, 1)
    for name in (".writing-step-00000001", ".writing-step-00000002", ".removing-step-00000000"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / "notes.txt").write_text("kept")
    assert is_of_step(latest(tmp_path), 1)
    save(tmp_path, 2)
    assert names(tmp_path) == ["notes.txt", "step-00000001", "step-00000002"]
