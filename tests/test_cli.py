"""The command line, and the tables that it prints."""

import logging
import re
import subprocess
import sys

import pytest

import grw_keras
from grw_keras import cli, zoo
from grw_keras.cli import flags, training
from grw_keras.training import recipe, runs
from grw_keras.zoo import registry


def test_help_imports_no_framework():
    code = (
        "import sys\nfrom grw_keras.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "convert" in run.stdout
    assert not {"tensorflow", "keras", "tf_keras", "numpy"} & set(run.stderr.split())


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"grw-keras {grw_keras.__version__}\n"


def test_defaults_in_the_help_of_train_are_the_recipes():
    found = recipe.to_dict(recipe.from_dict({"model": {"name": "movinet_a0_stream_grw"}}))
    compared = set()
    for key, _, text in {**training._KEYS, **flags.SPLITTING}.values():
        part, _, name = key.partition(".")
        told = re.search(r"\(([^() ]*)\)$", text)
        if told is not None and name in found[part]:
            assert told[1] == str(found[part][name]).lower(), key
            compared.add(name)
    assert {"weights", "epochs", "batch_size", "seed", "max_bad_share"} <= compared


def test_list_shows_what_a_user_chooses_by(capsys):
    assert cli.main(["list", "*_stream_grw"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    for column in ("name", "family", "px", "frames", "GMACs/clip", "published", "K600 top-1"):
        assert column in header
    assert [row.split()[0] for row in rows] == [f"movinet_a{i}_stream_grw" for i in range(3)]
    assert "78.4" in rows[0]  # table 1
    assert rows[0].split()[2:6] == ["172", "50", "5", "2.72"]
    assert rows[0].split()[-2:] == ["k600", "78.4"]


def test_list_models_gives_names_and_prints_a_table():
    names = zoo.list_models()
    assert tuple(names) == tuple(registry.specs())
    assert len(str(names).splitlines()) == len(names) + 1


def test_describe_shows_spec_cost_and_weights(capsys):
    assert cli.main(["describe", "movinet_a1_stream_grw"]) == 0
    page = capsys.readouterr().out
    assert "hf://DrGil/grw-smoothing-movinet/a1s_grw.pt" in page
    assert "published top-1: 81.9 (table 1)" in page
    assert "not stated" in page
    assert "Not seen by us" in page
    assert cli.main(["describe", "mobilenet_v3_small_grw"]) == 0
    assert "none published" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "movinet_a1"[:-1]], "closest: movinet_a"),
        (["describe", "."], "without spec.json"),
        (["list", "resnet*"], "No model's name fits"),
        (["convert", "nothing.pt", "--out", "x"], "No such file or folder of weights: nothing.pt"),
        (["convert", __file__, "--out", "x"], "Not a file of weights that can be read"),
        (["convert", "x.pt", "--out", "x", "--labels", sys.executable], "must be a text file"),
        (["train", "no.yaml", "--data", "x", "--out", "x"], "No such recipe. Received: no.yaml"),
        (["benchmark", "no.tflite"], "No such file. Received: no.tflite"),
        (["evaluate", "tests/mine", "--data", "x"], "no model has this name. Received: tests/mine"),
        (
            ["export", "movinet_a0_grw", "--tflite", "x"],
            "need AvgPool3D, which TFLite lacks",
        ),
    ],
)
def test_errors_are_one_line_and_exit_1(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


MISSPELT = {
    "evaluate runs/mine --data x": "Received: runs/mine",
    "evaluate movinet_a0_stream --data no_folder": "no_folder",
    "predict runs/mine x.mp4": "Received: runs/mine",
    "predict movinet_a0_stream no.mp4": "no such file",
    "export runs/mine --tflite x": "Received: runs/mine",
    "export movinet_a0_stream --tflite x --data no_folder": "no_folder",
    "train --model movinet_a0_stream --data no_folder --out x": "no_folder",
    "predict file.tflite x.mp4": "A TFLite file is run by grw_keras.lite.StreamSession",
    "predict begun x.mp4": "The run in begun has not ended",
    "train --model movinet_a0_stream --data . --out begun": "There is a run in begun already",
}


def test_misspelt_paths_are_told_before_tensorflow_is_imported(tmp_path):
    """For that takes long."""
    begun = runs.RunFolder.at(tmp_path / "begun").recipe
    begun.parent.mkdir(parents=True)
    begun.touch()
    (tmp_path / "file.tflite").touch()
    code = f"""
import sys
from grw_keras import cli
print([cli.main(command.split()) for command in {list(MISSPELT)!r}], "tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{[1] * len(MISSPELT)} False"
    for told, message in zip(done.stderr.splitlines(), MISSPELT.values(), strict=True):
        assert message in told


@pytest.mark.slow
def test_convert_makes_a_folder_that_load_reads(shared, tmp_path, capsys):
    out = tmp_path / "tiny"
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    snapshot = str(shared / "fixtures" / "tiny_ok.pt")
    assert cli.main(["convert", snapshot, "--out", str(out), "--labels", str(names)]) == 0
    assert "movinet_a0_stream_grw, 5 classes" in capsys.readouterr().out
    model = zoo.load(out)
    assert model.labels == ("a", "b", "c", "d", "e")
    assert (model.spec.embed_dim, model.spec.head_mlp, model.spec.window) == (16, 32, 5)
    assert cli.main(["describe", str(out)]) == 0
    assert "hard_sigmoid_keras2" in capsys.readouterr().out


def test_the_log_is_told_once_where_a_library_has_set_up_the_roots(capsys, caplog):
    log = logging.getLogger("grw_keras")
    before = log.level, log.propagate
    with cli._told():
        log.info("a word")
    assert capsys.readouterr().err == "a word\n"
    assert "a word" not in caplog.text  # whose handler is the root's
    assert (log.level, log.propagate) == before


def test_settings_that_stand_apart_all_count():
    words = ["train", "--data", "d", "--out", "o", "--set", "a=1", "b=2", "--set", "c=3"]
    assert cli._parser().parse_args(words).set == ["a=1", "b=2", "c=3"]
