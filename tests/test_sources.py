"""Clips from folders and CSV lists. The files are empty: none is opened."""

import logging
import os
import unicodedata
from pathlib import Path

import pytest

from grw_keras.data.clips import COLUMNS, Clip, ClipSet, split_name
from grw_keras.data.sources import from_csv, from_folder, read
from tests.source_files import by_name, make, written

# Folders


def test_class_folders(tmp_path):
    make(tmp_path, "wave/b.mp4", "wave/a.avi", "hop/sub/deeper/c.MKV", "hop/d.webm")
    clip_set = read(tmp_path)
    assert clip_set.labels == ("hop", "wave")
    assert by_name(clip_set) == {
        "hop/d.webm": ("", "hop"),
        "hop/sub/deeper/c.MKV": ("", "hop"),
        "wave/a.avi": ("", "wave"),
        "wave/b.mp4": ("", "wave"),
    }
    assert [clip.name for clip in clip_set.clips] == sorted(by_name(clip_set))
    assert all(clip.path == str(tmp_path / clip.name) for clip in clip_set.clips)


@pytest.mark.parametrize("validation", ["val", "Validation", "validate"])
def test_split_folders_share_one_list_of_labels(tmp_path, validation):
    make(tmp_path, "train/wave/a.mp4", "train/hop/b.mp4", "TEST/wave/c.mp4", "notes/readme.txt")
    make(tmp_path, f"{validation}/skip/d.mp4")
    clip_set = read(tmp_path)
    assert clip_set.labels == ("hop", "skip", "wave")
    assert by_name(clip_set) == {
        "train/wave/a.mp4": ("train", "wave"),
        "train/hop/b.mp4": ("train", "hop"),
        "TEST/wave/c.mp4": ("test", "wave"),
        f"{validation}/skip/d.mp4": ("validation", "skip"),
    }
    assert clip_set.splits() == {"train": 2, "validation": 1, "test": 1}


def test_a_folder_of_test_videos_alone(tmp_path):
    assert read(make(tmp_path, "test/hop/a.mp4")).splits() == {"test": 1}


EXTENSIONS = (
    *("mp4", "avi", "mkv", "webm", "gif", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "ts"),
    *("3gp", "ogv"),
)


def test_files_that_are_no_videos_do_not_count(tmp_path):
    videos = [f"hop/{extension}.{extension}" for extension in EXTENSIONS]
    others = ["hop/a.txt", "hop/b.jpg", "hop/mp4", "hop/.hidden.mp4", "hop/._a.mp4", ".git/c.mp4"]
    make(tmp_path, *videos, *others, "hop/folder.mp4/d.gif")
    assert set(by_name(read(tmp_path))) == {*videos, "hop/folder.mp4/d.gif"}


def test_links_are_followed_and_circles_end(tmp_path):
    make(tmp_path / "elsewhere", "a.mp4", "sub/b.mp4")
    root = make(tmp_path / "data", "hop/c.mp4")
    (root / "wave").symlink_to(tmp_path / "elsewhere")
    (root / "hop" / "linked.mp4").symlink_to(tmp_path / "elsewhere" / "a.mp4")
    (root / "hop" / "circle").symlink_to(root)
    (root / "hop" / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    names = set(by_name(from_folder(root)))
    assert {
        "wave/a.mp4",
        "wave/sub/b.mp4",
        "hop/c.mp4",
        "hop/linked.mp4",
        "hop/broken.mp4",
    } <= names
    assert len(names) < 12


def test_labels_are_composed_whatever_the_file_system_made_of_them(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Fußball – köpfen 日本")
    clip_set = read(make(tmp_path, f"{decomposed}/ü.mp4", "hop/a.mp4"), labels=["hop", decomposed])
    assert clip_set.labels == ("hop", "Fußball – köpfen 日本")
    assert clip_set.class_counts() == {"hop": 1, "Fußball – köpfen 日本": 1}
    assert all(os.path.exists(clip.path) for clip in clip_set.clips)


def test_a_class_folder_without_videos_keeps_its_label(tmp_path, caplog):
    make(tmp_path, "hop/a.mp4", "wave/a.txt", "loose.MP4")
    with caplog.at_level(logging.WARNING, "grw_keras"):
        assert read(tmp_path).class_counts() == {"hop": 1, "wave": 0}
    assert f"{tmp_path / 'wave'} has no videos" in caplog.text
    assert "1 videos" in caplog.text
    assert "loose.MP4" in caplog.text


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a.mp4", "b.mp4"], "folder of class folders.*no file named like a video.*mp4"),
        (["hop/a.txt"], "no file named like a video"),
        (["train/hop/a.mp4", "bus/b.mp4"], "not both.*train beside bus"),
        (["train/a.mp4"], "no file named like a video"),
        ([], "no file named like a video"),
    ],
)
def test_other_layouts_are_errors(tmp_path, names, match):
    with pytest.raises(ValueError, match=match):
        read(make(tmp_path, *names))


def test_a_name_that_is_not_unicode_is_an_error(tmp_path):
    (tmp_path / "hop").mkdir()
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "hop") + b"/\xff.mp4")).touch()
    except OSError:
        pytest.skip("this file system has Unicode names only")
    with pytest.raises(ValueError, match=r"must be Unicode.*rename"):
        read(tmp_path)


def test_real_folder(shared):
    clip_set = read(shared / "videos" / "ut_interaction")
    classes = ["hand_shaking", "hugging", "kicking", "pointing", "punching", "pushing"]
    assert clip_set.class_counts() == dict.fromkeys(classes, 20)
    assert clip_set.clips[0].name == "hand_shaking/set1_seq01_004.avi"


# Labels given


def test_given_labels_keep_their_order(tmp_path):
    make(tmp_path, "hop/a.mp4", "wave/b.mp4", "empty/a.txt")
    assert read(tmp_path, labels=["wave", "skip", "hop"]).labels == ("wave", "skip", "hop")


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        (["hop", "waving"], ValueError, "lacks 'wave' .closest: 'waving'.*Received: 2 labels"),
        (["hop", "wave", "hop"], ValueError, "once.*more than once: 'hop'"),
        ("hop", TypeError, "list of names"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, error, match):
    with pytest.raises(error, match=match):
        ClipSet((Clip("a.mp4", "hop"), Clip("b.mp4", "wave")), labels)


# CSV


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_csv(tmp_path, encoding, line_end):
    make(tmp_path, "v/a.mp4", "v/b, or c.mp4", "ü.mp4")
    lines = [
        "path, label,start,end,split,group",
        "v/a.mp4,wave,,,train,g1",
        "",
        '"v/b, or c.mp4"," high ""five"" ",1.5,2.75,VAL, g2 ',
        "./v/b, or c.mp4,hop,3,,test,".replace("./v/b, or c.mp4", '"./v/b, or c.mp4"'),
        ",,,,,",
        f"{tmp_path}/ü.mp4,grüßen,0,1,,",
    ]
    path = written(tmp_path / "list.csv", line_end.join(lines), encoding)
    clip_set = read(path)
    assert clip_set.labels == ("grüßen", 'high "five"', "hop", "wave")
    b = str(tmp_path / "v" / "b, or c.mp4")
    u = str(tmp_path / "ü.mp4")
    assert clip_set.clips == (
        Clip(str(tmp_path / "v" / "a.mp4"), "wave", 0.0, None, "train", "g1", "v/a.mp4"),
        Clip(b, 'high "five"', 1.5, 2.75, "validation", "g2", "v/b, or c.mp4@1.5-2.75"),
        Clip(b, "hop", 3.0, None, "test", "", "v/b, or c.mp4@3-"),
        Clip(u, "grüßen", 0.0, 1.0, "", "", f"{u}@0-1"),
    )


HEADER = "path,label,start,end,split\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("path,lable\na.mp4,x\n", "Unknown column 'lable'. Did you mean 'label'"),
        ("path;label\na.mp4;x\n", "Unknown column 'path;label'.*commas between"),
        ("path,label,note\n", "Unknown column 'note'. The header"),
        ("path,start\n", "must have the column 'label'"),
        ("path,label,label\n", "each column once"),
        ("", "must begin with a header that has the columns path, label"),
        ("path,label\n", "must have a clip"),
        (HEADER + "a.mp4,x,,,\n\na.mp4,x,soon,,\n", r"list.csv, line 4: `start`.*'soon'"),
        (HEADER + "a.mp4,x,0,-1,\n", "line 2: `end` must be seconds, >= 0. Received: '-1'"),
        (HEADER + "a.mp4,x,nan,,\n", "line 2: `start`"),
        (HEADER + "a.mp4,x,0,inf,\n", "line 2: `end`"),
        (HEADER + "a.mp4,x,,,trian\n", "line 2: `split` must be.*mean 'train'.*'trian'"),
        (HEADER + "a.mp4,,,,\n", "line 2: `label` must be a class's name"),
        (HEADER + ",x,,,\n", "line 2: `path` must be a video's"),
        (HEADER + "a.mp4,x,,,\na.mp4,y,,,\n", "line 3: .*listed once, and is on line 2"),
        (HEADER + "a.mp4,x,,,\nb/../a.mp4,y,,,\n", "line 3: .*listed once, and is on line 2"),
        (HEADER + "a.mp4,x\n", "line 2: .*cell for each of the 5 columns.*Received: 2 cells"),
        (HEADER + "a.mp4,x, y,,,\n", "line 2: .*Received: 6 cells"),
        (HEADER + 'a.mp4,"x,,,\n', "line 2: not CSV"),
        ("label,youtube_id,time_start,time_end,split\n", "folder of clips.*`annotations`"),
    ],
)
def test_bad_csv(tmp_path, text, match):
    make(tmp_path, "a.mp4")
    with pytest.raises(ValueError, match=match):
        read(written(tmp_path / "list.csv", text))


def test_csv_of_another_encoding(tmp_path):
    with pytest.raises(ValueError, match="must be a UTF-8 file"):
        read(written(tmp_path / "list.csv", "path,label\na.mp4,köpfen\n", "latin-1"))


def test_csv_that_names_videos_that_are_not_there(tmp_path):
    make(tmp_path, "a.mp4")
    path = written(tmp_path / "list.csv", "path,label\na.mp4,x\nb.mp4,x\nc.mp4,x\n")
    with pytest.raises(FileNotFoundError, match=r"line 3: .*b.mp4.*2 paths.*among 3 clips"):
        read(path)


def test_a_written_list_is_read_back_alike(tmp_path):
    make(tmp_path, "data/hop/a.mp4", "data/hop/ü, b.mp4", "runs/own.mp4")
    folder = from_folder(tmp_path / "data").clips
    part = Clip(folder[1].path, "hop", 1 / 7, 1 / 3, "train", "g")
    own = Clip(str(tmp_path / "runs" / "own.mp4"), "wave", name="own")
    clip_set = ClipSet((*folder, part, own), ("wave", "unused", "hop"), missing=("b",))
    path = tmp_path / "runs" / "clips.csv"
    clip_set.to_csv(path)
    assert from_csv(path, labels=clip_set.labels) == clip_set
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    assert header == ",".join(COLUMNS)
    assert rows[-1] == "own.mp4,wave,,,,,own"  # the folder of a run can be moved


# Kinetics


# What all have in common


def test_paths_that_are_no_data(tmp_path):
    make(tmp_path, "videos/hop/a.mp4", "clips.txt")
    with pytest.raises(FileNotFoundError, match=rf"Did you mean '{tmp_path}/videos'\? .*video$"):
        read(tmp_path / "video")
    with pytest.raises(FileNotFoundError, match=r"exists\. Received: .*jumping$"):
        read(tmp_path / "jumping")
    with pytest.raises(ValueError, match=r"folder or a .csv file. Received: .*clips.txt"):
        read(tmp_path / "clips.txt")
    with pytest.raises(NotADirectoryError, match="which is no folder"):
        from_folder(tmp_path / "clips.txt")


def test_parts_of_a_clip_set():
    clips = tuple(
        Clip(f"{number}.mp4", "ab"[number % 2], split=split)
        for number, split in enumerate(["train", "test", "train", ""])
    )
    clip_set = ClipSet(clips, ("b", "a", "c"), missing=("x",))
    assert len(clip_set) == 4
    assert clip_set.class_counts() == {"b": 2, "a": 2, "c": 0}
    assert clip_set.splits() == {"train": 2, "test": 1, "": 1}
    assert clip_set.split("train") == ClipSet((clips[0], clips[2]), ("b", "a", "c"))
    assert clip_set.split("train").missing == ("x",)
    assert clip_set.subset([3, 0]) == ClipSet((clips[3], clips[0]), ("b", "a", "c"))
    with pytest.raises(ValueError, match=r"mean 'test'.*'train' .2 clips.*Received: 'tset'"):
        clip_set.split("tset")
    with pytest.raises(ValueError, match="There are: 'train'"):
        clip_set.split("validation")
    with pytest.raises(ValueError, match=r"`clips` .*more than once: '0.mp4'"):
        ClipSet((clips[0], clips[0]), ("a", "b"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"label": " "}, "`label` must be a class's name"),
        ({"start_s": -1}, "`start_s` must be finite seconds"),
        ({"start_s": float("nan")}, "`start_s`"),
        ({"end_s": float("inf")}, "`end_s` must be None or"),
        ({"split": "val"}, "`split` must be '' or one of 'train'.*Received: 'val'"),
    ],
)
def test_bad_clips(arguments, match):
    with pytest.raises(ValueError, match=match):
        Clip(**{"path": "a.mp4", "label": "x"} | arguments)


@pytest.mark.parametrize(
    ("text", "name"),
    [("", ""), (" Train ", "train"), ("val", "validation"), ("validate", "validation")],
)
def test_split_names(text, name):
    assert split_name(text) == name
