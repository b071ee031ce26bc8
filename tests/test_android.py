"""The Android client: its mathematics by Debian's Kotlin compiler, its other files as text."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1] / "tflite" / "android"
APP = ROOT / "app"
MAIN = APP / "src" / "main"
JARS = [
    Path("/usr/share/java") / f"{name}.jar"
    for name in ("kotlin-stdlib", "junit4", "hamcrest", "com.android.json")
]
INSTALL = "apt-get install -y --no-install-recommends kotlin junit4 libandroid-json-java"
NOT_PLAIN = {"LiteRtModel.kt", "MainActivity.kt"}
ANDROID = "{http://schemas.android.com/apk/res/android}"


def run(*command, cwd=None) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_plain_kotlin_passes_its_unit_tests(tmp_path):
    if not shutil.which("kotlinc") or not all(jar.exists() for jar in JARS):
        pytest.skip(f"no Kotlin compiler with JUnit and org.json: {INSTALL}")
    tests = sorted(APP.glob("src/test/kotlin/*.kt"))
    sources = [path for path in MAIN.glob("kotlin/*.kt") if path.name not in NOT_PLAIN]
    libraries = ":".join(map(str, JARS))
    jar = tmp_path / "app.jar"
    run("kotlinc", "-nowarn", "-cp", libraries, "-d", jar, *sources, *tests)

    from grw_keras.export.description import write

    model = tmp_path / "model.tflite"
    description = {"format_version": 1, "kind": "stream", "name": "tiny", "fps": 5.0}
    description |= {"resize_px": 3, "crop_px": 2, "num_classes": 2, "labels": ["hugging", "käse"]}
    write(model, b"\x1c\0\0\0TFL3 weights", description)

    cases = {path.stem: path.read_text().count("@Test\n") for path in tests}
    printed = run(
        *("java", f"-Dexported.model={model}", "-cp", f"{jar}:{libraries}"),
        "org.junit.runner.JUnitCore",
        *(f"grwkeras.stream.{name}" for name, count in cases.items() if count),
        cwd=APP,  # where Gradle runs them, too
    )
    assert f"OK ({sum(cases.values())} tests)" in printed


def test_only_two_files_need_android_or_litert():
    foreign = re.compile(r"^import (android|androidx|org\.tensorflow)\.", re.MULTILINE)
    sources = MAIN.glob("kotlin/*.kt")
    assert {path.name for path in sources if foreign.search(path.read_text())} == NOT_PLAIN


def test_every_dependency_is_pinned_and_from_the_usual_repositories():
    catalog = tomllib.loads((ROOT / "gradle" / "libs.versions.toml").read_text())
    for version in catalog["versions"].values():
        assert re.fullmatch(r"\d+(\.\d+)*", version)
    entries = catalog["libraries"] | catalog["plugins"]
    assert {entry["version"]["ref"] for entry in entries.values()} == set(catalog["versions"])

    scripts = "\n".join(path.read_text() for path in ROOT.rglob("*.gradle.kts"))
    used = set(re.findall(r"\blibs\.((?:\w+\.)*\w+)", scripts))
    assert used == {
        *(name.replace("-", ".") for name in catalog["libraries"]),
        *("plugins." + name.replace("-", ".") for name in catalog["plugins"]),
    }
    for block in re.findall(r"repositories \{(.*?)\}", scripts, re.DOTALL):
        assert block.split() == ["google()", "mavenCentral()"]
    assert "://" not in scripts


def test_names_in_one_file_are_there_in_the_other():
    manifest = ElementTree.parse(MAIN / "AndroidManifest.xml").getroot()
    layout = ElementTree.parse(MAIN / "res" / "layout" / "activity_main.xml").getroot()
    strings = ElementTree.parse(MAIN / "res" / "values" / "strings.xml").getroot()
    activity = (MAIN / "kotlin" / "MainActivity.kt").read_text()

    (declared,) = manifest.iter("activity")
    assert f"class {declared.get(ANDROID + 'name').removeprefix('.')} " in activity
    (permission,) = manifest.iter("uses-permission")
    assert permission.get(ANDROID + "name") == "android.permission.CAMERA"

    named = {("string", string.get("name")) for string in strings}
    named |= {("layout", "activity_main")}
    for element in layout.iter():
        if identity := element.get(ANDROID + "id"):
            named.add(("id", identity.removeprefix("@+id/")))
    used = set(re.findall(r"\bR\.(\w+)\.(\w+)", activity))
    for tree in (manifest, layout):
        for element in tree.iter():
            for value in element.attrib.values():
                used |= set(re.findall(r"^@(string)/(\w+)", value))
    assert used == named
