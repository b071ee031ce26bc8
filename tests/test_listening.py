"""What listeners say of a course of steps that a false clock times."""

import errno
import functools
import resource
import types
from pathlib import Path

import pytest
import tensorflow as tf
from safetensors import SafetensorError

from grw_keras.training import listening
from grw_keras.training.listening import HistoryFile, TensorBoard, Terminal, read_history

ROWS = [
    {"epoch": 1, "step": 6, "loss": 1 / 3, "grw_ordering": float("nan"), "backbone_rate": 1e-4},
    {
        "epoch": 2,
        "step": 11,
        "loss": 0.1,
        "grw_ordering": 0.5,
        "backbone_rate": 1e-5,
        "val_top1": 0.75,
    },
]


@pytest.fixture
def clock(monkeypatch):
    """Its `now` is the time in seconds."""
    told = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(listening, "time", types.SimpleNamespace(monotonic=lambda: told.now))
    return told


def steps(terminal, clock, first, last, *, each_s, waited_s):
    for step in range(first, last + 1):
        clock.now += each_s
        terminal.on_step(step, waited_s)


def test_a_line_now_and_then_tells_rate_waits_loss_and_time_left(clock, capsys):
    terminal = Terminal(steps=100, batch_size=8)
    with terminal:
        clock.now += 25
        terminal.on_step(1, 20.0)  # traced meanwhile: it counts for nothing
        steps(terminal, clock, 2, 2, each_s=2, waited_s=0.5)
        assert capsys.readouterr().out == ""
        terminal.on_loss(2, 1.23456)
        steps(terminal, clock, 3, 3, each_s=4, waited_s=1.0)
        # Two steps in 6 s, 1.5 s of them waited; 97 to go at 3 s each. 31 s since the start.
        line = "step 3/100, 2.7 clips/s, waiting for input 25%, loss 1.235, 0:04:51 left\n"
        assert capsys.readouterr().out == line
        steps(terminal, clock, 4, 10, each_s=4, waited_s=1.0)
        assert capsys.readouterr().out == ""
        steps(terminal, clock, 11, 11, each_s=4, waited_s=1.0)
        assert capsys.readouterr().out.startswith("step 11/100, 2.1 clips/s, waiting for input 25%")


def test_validation_counts_for_the_time_left_and_not_for_the_rate(clock, capsys):
    terminal = Terminal(steps=21, batch_size=1)
    steps(terminal, clock, 1, 6, each_s=1, waited_s=0.1)
    clock.now += 45
    terminal.on_epoch(ROWS[0])
    capsys.readouterr()
    steps(terminal, clock, 7, 11, each_s=1, waited_s=0.1)
    # 6 steps since the first, in 6 s, and 51 s since then: 14 to go.
    left = "step 7/21, 1.0 clips/s, waiting for input 10%, 0:01:59 left\n"
    assert capsys.readouterr().out == left


def test_a_resumed_run_is_timed_from_where_it_goes_on(clock, capsys):
    terminal = Terminal(steps=100, batch_size=4)
    terminal.begin_at(50)
    clock.now += 500
    steps(terminal, clock, 51, 52, each_s=20, waited_s=0.0)
    line = "step 52/100, 0.2 clips/s, waiting for input 0%, 0:16:00 left\n"
    assert capsys.readouterr().out == line


def test_a_line_for_each_epoch(clock, capsys):
    terminal = Terminal(steps=100, batch_size=4)
    terminal.on_epoch(ROWS[1])
    said = capsys.readouterr().out
    assert said == "epoch 2: loss 0.1, grw_ordering 0.5, val_top1 0.75\n"


def test_a_terminal_shows_a_bar(monkeypatch, capsys, clock):
    console = functools.partial(listening.Console, force_terminal=True, width=150)
    monkeypatch.setattr(listening, "Console", console)
    with Terminal(steps=20, batch_size=8) as terminal:
        steps(terminal, clock, 1, 20, each_s=2, waited_s=0.2)
    said = capsys.readouterr().out
    assert "20/20" in said
    assert "4.0 clips/s, waiting for input 10%" in said
    assert " left" not in said


def test_the_history_file_is_whole_after_each_epoch(tmp_path):
    path = tmp_path / "history.csv"
    assert read_history(path) == []
    history = HistoryFile(path)
    history.on_step(1, 0.1)
    history.on_loss(1, 0.1)
    assert not path.exists()
    for count in (1, 2):
        history.on_epoch(ROWS[count - 1])
        found = read_history(path)
        for row, expected in zip(found, ROWS[:count], strict=True):
            assert row == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]


def test_a_resumed_history_is_the_uninterrupted_one(tmp_path):
    whole, resumed = HistoryFile(tmp_path / "a.csv"), HistoryFile(tmp_path / "b.csv", ROWS[:1])
    for row in ROWS:
        whole.on_epoch(row)
    resumed.on_epoch(ROWS[1])
    text = (tmp_path / "a.csv").read_text()
    assert text == (tmp_path / "b.csv").read_text()
    assert text.splitlines()[0] == "epoch,step,loss,grw_ordering,backbone_rate,val_top1"


def test_a_resumed_history_has_the_rows_of_the_checkpoint_at_once(tmp_path):
    """A kill between the last checkpoint and its row; nothing is left to train then."""
    path = tmp_path / "history.csv"
    HistoryFile(path, ROWS[1:])
    assert read_history(path) == [pytest.approx(ROWS[1])]


def test_a_full_disk_at_the_beginning_of_a_history_is_warned_of(tmp_path, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        history = HistoryFile(tmp_path / "history.csv", ROWS[:1])
        assert "No room for" in caplog.text
    history.on_epoch(ROWS[1])
    assert len(read_history(history.path)) == 2


@pytest.mark.parametrize(
    ("error", "full"),
    [
        *[(OSError(n, "x"), True) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)],
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (tf.errors.ResourceExhaustedError(None, None, "events; Disk quota exceeded"), True),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), False),
        (OSError(errno.EIO, "No space left on device"), False),
        (ValueError("no"), False),
    ],
)
def test_a_full_disk_is_known_by_number_or_text(error, full):
    assert listening.is_disk_full(error) == full


def test_tensorboard_without_room_is_warned_of(tmp_path, caplog):
    """What TensorFlow raises is no OSError; a limit on the size of files makes it."""
    board = TensorBoard(tmp_path)
    listeners = listening.Listeners([board])
    listeners.on_epoch(ROWS[0])
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, kept[1]))
    try:
        with pytest.raises(tf.errors.OutOfRangeError, match="File too large"):
            board.on_epoch(ROWS[1])
        listeners.on_epoch(ROWS[1])
        listeners.on_epoch(ROWS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    board.on_epoch(ROWS[1])
    assert caplog.text.count("No room for what TensorBoard writes") == 1


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    board = TensorBoard(tmp_path)
    for step in range(1, 12):
        board.on_step(step, 0.25)
        if step in (4, 8, 11):
            board.on_loss(step, 1 / step)
    for row in ROWS:
        board.on_epoch(row)
    events = EventAccumulator(str(tmp_path))
    events.Reload()

    def read(tag):
        return {e.step: float(make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)}

    assert read("steps/loss") == pytest.approx({4: 0.25, 8: 0.125, 11: 1 / 11})
    assert read("steps/waited_s") == {4: 1.0, 8: 1.0, 11: 0.75}
    assert read("training/loss") == pytest.approx({6: 1 / 3, 11: 0.1})
    assert read("training/grw_ordering") == pytest.approx({6: float("nan"), 11: 0.5}, nan_ok=True)
    assert read("validation/val_top1") == {11: 0.75}
