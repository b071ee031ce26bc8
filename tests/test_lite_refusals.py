"""What StreamSession refuses: files that are none, or whose description does not fit them."""

import re
import sys
from pathlib import Path

import pytest

from grw_keras import lite
from grw_keras.lite import StreamSession
from tests import lite_files, tflite_edits


def edited(tiny_files, path, change) -> Path:
    tflite_edits.write_edited(tiny_files / "tiny_stream.tflite", path, change)
    return lite_files.write(path, path.read_bytes(), lite_files.description("stream"))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("classify", {}, "the head of a split export: open the embed file"),
        ("stream", {"kind": "clip"}, "whole clips: export the model without whole_clip=True"),
        ("stream", {"kind": "film"}, "kind must be one of"),
        ("stream", {"format_version": 2}, "format_version must be 1"),
        ("stream", {"fps": 0}, "fps must be > 0. Received: 0"),
        ("stream", {"fps": "5"}, "grw_keras.json of"),
        ("stream", {"crop_px": 11}, "crop_px must be in [1, resize_px]. Received: 11"),
        ("stream", {"crop_px": 7}, "input 'image' must be float32 [1, 1, 7, 7, 3]"),
        ("stream", {"value_range": [-1, 1]}, "value_range must be [0, 1]"),
        ("stream", {"labels": ["one"]}, "labels must be 3 names or null. Received: 1"),
        ("stream", {"labels": None, "num_classes": 4}, "output 'logits' must be float32 [1, 4]"),
        ("embed", {"embed_dim": 6}, "input 'window' must be float32 [1, 4, 6]"),
        ("embed", {"window_frames": 5}, "input 'window' must be float32 [1, 5, 5]"),
        ("embed", {"labels": list("abc")}, "have its labels"),
        ("embed", {"classify_file": "tiny_embed.tflite"}, "must be of kind 'classify'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tiny_changed, kind, changes, message):
    tiny_changed("classify")
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamSession(tiny_changed(kind, **changes))


def test_a_missing_classify_file_is_named(tiny_changed):
    with pytest.raises(FileNotFoundError, match=r"tiny_classify\.tflite"):
        StreamSession(tiny_changed("embed"))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda model, tail: model, "which was cut off or is another program's"),
        (lambda model, tail: model[:100], "a whole file of grw_keras.export"),
        (lambda model, tail: model + tail[: len(tail) // 2], "a whole file of grw_keras.export"),
        (lambda model, tail: b"GIF89a" + model + tail, "must be a TFLite file"),
        (lambda model, tail: b"", "must be a TFLite file"),
    ],
)
def test_cut_files_and_others_are_refused(tiny_changed, tiny_models, cut, message):
    path = tiny_changed()
    whole = path.read_bytes()
    size = len(tiny_models["stream"])
    path.write_bytes(cut(whole[:size], whole[size:]))
    with pytest.raises(ValueError, match=message):
        StreamSession(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "grw_keras.json of"),
        ("[]", "format_version must be 1"),
        ('{"format_version": 1}', "the contract's keys. Received: none for ['kind', "),
    ],
)
def test_a_description_that_is_none_is_refused(tiny_models, tmp_path, text, message):
    path = lite_files.write(tmp_path / "a.tflite", tiny_models["stream"], text)
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamSession(path)


def test_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.tflite"):
        with pytest.raises(FileNotFoundError, match="which is no file"):
            StreamSession(path)


def test_other_peoples_files_are_refused(shared, tiny_models, tmp_path):
    with pytest.raises(ValueError, match="cut off or is another program's"):
        StreamSession(shared / "weights/movinet_a0_stream_k600_int8.tflite")
    path = lite_files.write(tmp_path / "a.tflite", tiny_models["stream"], "{}")
    path.write_bytes(path.read_bytes().replace(b"grw_keras.json", b"labels_txt.txt"))
    with pytest.raises(ValueError, match=r"of grw_keras\.export\. .*, without grw_keras\.json"):
        StreamSession(path)


def drop_state(model):
    outputs = model.signatureDefs[0].outputs
    model.signatureDefs[0].outputs = [o for o in outputs if o.name != b"state_last"]


def exchange_outputs(model):
    logits, state = (
        next(o for o in model.signatureDefs[0].outputs if o.name == name)
        for name in (b"logits", b"state_last")
    )
    logits.tensorIndex, state.tensorIndex = state.tensorIndex, logits.tensorIndex


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_state, "output 'state_last' must be float32 [1, 5]; export it again. Received: None"),
        (exchange_outputs, "output 'logits' must be float32 [1, 3]"),
    ],
)
def test_states_that_come_out_otherwise_than_in_are_refused(tiny_files, tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamSession(edited(tiny_files, tmp_path / "a.tflite", change))


def test_an_operator_that_the_runtime_lacks_is_named_with_the_runtime(tiny_files, tmp_path):
    def to_the_future(model):
        for code in model.operatorCodes:
            code.version = 99

    path = edited(tiny_files, tmp_path / "a.tflite", to_the_future)
    with pytest.raises(RuntimeError, match=r"(?s)ai-edge-litert \d.* can't run .*a newer.*99"):
        StreamSession(path)


def test_without_a_runtime_both_packages_are_named(tiny_files, monkeypatch):
    for package in lite._RUNTIMES.values():
        monkeypatch.setitem(sys.modules, f"{package}.interpreter", None)
    with pytest.raises(ImportError, match="ai-edge-litert and tflite-runtime: pip install"):
        StreamSession(tiny_files / "tiny_stream.tflite")
