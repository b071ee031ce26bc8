"""Clips from Kinetics' annotations. The files are empty: none is opened."""

import logging
import os

import pytest

from grw_keras.data.sources import from_kinetics, read
from tests.source_files import by_name, make, written

KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n"

ROWS = (
    "riding a bike,-ab_c1,3,13,train,0\nyoga,zz=9,120,130,validate,1\nabseiling,gone,0,10,test,0\n"
)


@pytest.mark.parametrize(
    ("bike", "yoga"),
    [
        ("-ab_c1_000003_000013.mp4", "zz=9_000120_000130.webm"),
        ("riding a bike/-ab_c1_000003_000013.mkv", "yoga/zz=9_000120_000130.mp4"),
        ("train/riding_a_bike/-ab_c1_000003_000013.mp4", "val/yoga/zz=9_000120_000130.mp4"),
        ("-ab_c1.mp4", "zz=9.mp4"),
    ],
)
def test_kinetics_layouts(tmp_path, caplog, bike, yoga):
    root = make(tmp_path / "clips", bike, yoga, "unknown_000000_000010.mp4")
    annotations = written(tmp_path / "k.csv", KINETICS + ROWS)
    with caplog.at_level(logging.WARNING, "grw_keras"):
        clip_set = read(root, annotations=annotations)
    assert clip_set.labels == ("abseiling", "riding a bike", "yoga")
    assert by_name(clip_set) == {bike: ("train", "riding a bike"), yoga: ("validation", "yoga")}
    assert all(os.path.exists(clip.path) for clip in clip_set.clips)
    assert clip_set.missing == ("gone_000000_000010",)
    assert "1 of 3 annotated clips are not in" in caplog.text


def test_kinetics_files_without_a_split_column_are_told_by_their_names(tmp_path):
    root = make(tmp_path / "clips", "a_000000_000010.mp4", "b_000000_000010.mp4")
    header = "label,youtube_id,time_start,time_end\n"
    files = [
        written(tmp_path / "train.csv", header + '"x",a,0.0,10.0\n"x",a,0,10\n'),
        written(tmp_path / "val.csv", header + "y,b,0,10\n"),
    ]
    clip_set = from_kinetics(root, files, labels=["y", "x"])
    assert [(clip.split, clip.label) for clip in clip_set.clips] == [
        ("train", "x"),
        ("validation", "y"),
    ]
    assert clip_set.labels == ("y", "x")
    other = written(tmp_path / "other.csv", header + "x,a,0,10\n")
    with pytest.raises(ValueError, match=r"other.csv, line 2: `split` must be one of"):
        from_kinetics(root, other)


def test_kinetics_takes_the_file_in_the_folder_of_the_class(tmp_path):
    names = [
        f"{split}/{label}/v_000000_000010.mp4"
        for split in ("test", "train")
        for label in ("x_1", "y")
    ]
    root = make(tmp_path / "clips", *names)
    rows = "y,v,0,10,train\nx_1,v,0,10,train\ny,v,0,10,test\n"
    clip_set = from_kinetics(root, written(tmp_path / "k.csv", KINETICS[:-7] + "\n" + rows))
    assert by_name(clip_set) == {
        "train/y/v_000000_000010.mp4": ("train", "y"),
        "train/x_1/v_000000_000010.mp4": ("train", "x_1"),
        "test/y/v_000000_000010.mp4": ("test", "y"),
    }


def test_a_file_without_times_is_not_taken_for_two_stretches_of_its_video(tmp_path):
    root = make(tmp_path / "clips", "v.mp4", "w.mp4")
    rows = "x,v,0,10,train,0\ny,v,20,30,train,0\nx,w,0,10,train,0\nx,w,0,10,train,0\n"
    clip_set = from_kinetics(root, written(tmp_path / "k.csv", KINETICS + rows))
    assert by_name(clip_set) == {"w.mp4": ("train", "x")}
    assert clip_set.missing == ("v_000000_000010", "v_000020_000030")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ("x,b,0,10,train,0\n", "named like b_000000_000010.mp4.*none of 1 clips among its 1 vid"),
        ("x,a,0,10,train,0\ny,a,0,10,train,0\n", "one label.*'y'.*line 3 and 'x'.*line 2"),
        ("x,a,0,10,train,0\nx,a,0,10,test,0\n", "one split.*line 3.*line 2"),
        ("x,a,soon,10,train,0\n", "k.csv, line 2: .*soon"),
        ("x,a,0,inf,train,0\n", "k.csv, line 2: .*infinity"),
        (",a,0,10,train,0\n", "line 2: .*label"),
        ("", "must have a clip"),
    ],
)
def test_bad_kinetics(tmp_path, rows, match):
    root = make(tmp_path / "clips", "a_000000_000010.mp4")
    with pytest.raises(ValueError, match=match):
        read(root, annotations=[written(tmp_path / "k.csv", KINETICS + rows)])


def test_kinetics_needs_its_columns_and_a_folder(tmp_path):
    path = written(tmp_path / "k.csv", "path,label\n")
    with pytest.raises(ValueError, match="must have the column 'youtube_id'"):
        read(tmp_path, annotations=path)
    with pytest.raises(NotADirectoryError, match="must be the folder of clips"):
        read(path, annotations=path)
