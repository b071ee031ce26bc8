"""The wheel and the source archive: what is in them, and that the wheel works by itself."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMOKE = """
import grw_keras, numpy as np
from grw_keras import page, zoo
from grw_keras.evaluation.published import ROWS
assert "site" in grw_keras.__file__, grw_keras.__file__
model = zoo.load("mobilenet_v3_small_grw", None, num_classes=3, resolution=32, frames=6)
assert model(np.zeros((1, 6, 32, 32, 3), "float32")).shape == (1, 3)
assert zoo.list_models() and ROWS
page.write("page.html", "title", ["<p>text</p>"])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with both, made from what would be committed: no ignored file gets in."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(lambda name: (ROOT / name).is_file(), names.stdout.splitlines()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    # With the setuptools at hand: the one that pyproject.toml asks for would be fetched.
    offline = ["--no-isolation", "--skip-dependency-check"]
    command = [sys.executable, "-m", "build", *offline, "--outdir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def package_files(folder: Path) -> set[str]:
    found = (path for path in (folder / "grw_keras").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found if path.suffix != ".pyc"}


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_works_outside_the_tree(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", site, wheel], check=True)
    assert package_files(site) == package_files(built / "source")
    run = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{SMOKE}"]
    subprocess.run(run, check=True, cwd=tmp_path)
    assert "<p>text</p>" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_the_source_archive_holds_the_package_and_not_a_part_of_the_tests(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert package_files(built / "source") <= names
    assert {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= names
    assert not any(name.startswith("tests") for name in names)
