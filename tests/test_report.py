"""The report: one page with all that was given, nothing that was not, and no way out of it."""

import base64
import html.parser
import io

import numpy as np
import pytest
from PIL import Image

from grw_keras import figures
from grw_keras.data.scan import BadVideo
from grw_keras.evaluation.results import Evaluation, summarize
from grw_keras.report import Embeddings, Report, WorstClip, write_report

HOSTILE = "<script>alert('&amp;\"')</script>"
SECTIONS = {
    "How it was made",
    "Training",
    "Which classes are taken for which",
    "Classes",
    "How embeddings move",
    "Worst clips",
    "Confidence and frames seen",
    "Bad videos: 1",
}


class Page(html.parser.HTMLParser):
    """Headings, texts, elements and images of a page; unclosed elements raise."""

    VOID = ("meta", "img", "br")

    def __init__(self, path):
        super().__init__()
        self.open, self.headings, self.texts, self.elements, self.images = [], [], [], [], {}
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "img":
            self.images[attributes["alt"]] = attributes["src"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.texts.append(data.strip())
            if self.open[-1] == "h2":
                self.headings.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


def evaluation(names=("a", "b", "c"), **changes):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((30, len(names))), rng.integers(len(names), size=30)
    settings = {
        "model": "movinet_a0_stream_grw",
        "weights": "runs/mine",
        "data": "my_videos",
        "split": "test",
        "frames": 10,
        "fps": 5.0,
        "resolution_px": 172,
        "gmacs": 0.531,
        "params": 4_100_000,
        "accuracy_by_frames": ((1, 0.25), (10, 0.5)),
        "bad_videos": (BadVideo(path="x.mp4", reason="no video stream"),),
        "command": "grw-keras evaluate runs/mine",
        "versions": {"numpy": "2.4"},
    }
    return Evaluation(**{**settings, **summarize(logits, labels, list(names)), **changes})


def full_report(name="a", **changes):
    rng = np.random.default_rng(1)
    frames = np.stack([np.full((20, 30, 3), 20 * index, np.uint8) for index in range(10)])
    parts = {
        "title": name,
        "evaluation": evaluation(
            [name, "b", "c"], model=name, data=name, command=name, versions={name: name}
        ),
        "recipe": name,
        "hardware": name,
        "history": [{"loss": 2.0}, {"loss": 1.0}],
        "embeddings": Embeddings(rng.standard_normal((6, 5, 4)), np.array([0, 1, 2] * 2)),
        "worst": [
            WorstClip(
                name=name,
                label=name,
                predicted=name,
                probability=0.9,
                label_probability=0.05,
                frames=frames,
            )
        ],
    }
    return Report(**{**parts, **changes})


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return write_report(folder / "report.html", full_report())


def test_a_full_report_has_every_section(page_path):
    page = Page(page_path)
    assert set(page.headings) == SECTIONS
    found = evaluation()
    for text in (f"{100 * found.top1:.1f} %", "0.53", "4.10 M", "x.mp4", "no video stream"):
        assert text in page.texts
    assert "top-5 accuracy" not in page.texts  # of three classes
    for c in found.per_class:
        assert f"{100 * c.f1:.1f} %" in page.texts
    assert "(90.0 %)" in page.text
    assert "(5.0 %)" in page.text


def test_the_pictures_are_inside_and_also_beside_the_page(page_path):
    page = Page(page_path)
    names = {path.name for path in (page_path.parent / "images").iterdir()}
    expected = {"curves", "confusion", "trajectories", "calibration", "accuracy_over_frames"}
    assert names == {f"{name}.png" for name in expected}
    inside = {base64.b64decode(src.partition(",")[2]) for src in page.images.values()}
    beside = {path.read_bytes() for path in (page_path.parent / "images").iterdir()}
    assert beside < inside
    curves = figures.png(figures.curves([{"loss": 2.0}, {"loss": 1.0}]))
    assert curves == (page_path.parent / "images" / "curves.png").read_bytes()


def test_pages_of_one_folder_have_pictures_of_their_own(tmp_path):
    for name, loss in (("report", 2.0), ("report_train", 3.0)):
        history = [{"loss": loss}, {"loss": 1.0}]
        write_report(tmp_path / f"{name}.html", Report(title=name, history=history))
    test, train = (tmp_path / name / "curves.png" for name in ("images", "report_train_images"))
    assert test.read_bytes() == figures.png(figures.curves([{"loss": 2.0}, {"loss": 1.0}]))
    assert train.read_bytes() == figures.png(figures.curves([{"loss": 3.0}, {"loss": 1.0}]))


def test_the_strip_shows_eight_frames_from_first_to_last(page_path):
    src = Page(page_path).images["frames of a"]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))))
    assert strip.shape == (120, 8 * 180 + 7 * 2, 3)
    middles = strip[60, 90::182, 0].astype(int)
    np.testing.assert_allclose(middles, 20 * np.array([0, 1, 3, 4, 5, 6, 8, 9]), atol=6)


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(page_path):
    page = Page(page_path)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "form", "base"}
    for _, attributes in page.elements:
        assert not {"href", "srcset", "onload", "onclick"} & set(attributes)
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert "url(" not in page_path.read_text()
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


@pytest.mark.slow
def test_every_text_is_escaped(tmp_path):
    report = full_report(HOSTILE)
    e = evaluation(
        [HOSTILE, "b", "c"],
        **dict.fromkeys(["model", "weights", "data", "split", "date"], HOSTILE),
        bad_videos=(BadVideo(path=HOSTILE, reason=HOSTILE),),
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    parts = {name: getattr(report, name) for name in report.__dataclass_fields__}
    page = Page(write_report(tmp_path / "r.html", Report(**{**parts, "evaluation": e})))
    assert "script" not in {tag for tag, _ in page.elements}
    # Title twice, data line, command, weights, hardware, versions, recipe, class, clip, bad.
    assert page.text.count(HOSTILE) == 1 + 1 + 4 + 1 + 1 + 1 + 2 + 1 + 1 + 3 + 2


def test_what_is_missing_has_no_place(tmp_path):
    bare = Page(write_report(tmp_path / "bare.html", Report(title="bare")))
    assert bare.texts == ["bare", "bare"]
    assert not (tmp_path / "images").exists()
    some = evaluation(
        gmacs=None, params=None, accuracy_by_frames=(), bad_videos=(), reliability=(), command=""
    )
    page = Page(write_report(tmp_path / "some.html", Report(title="some", evaluation=some)))
    assert set(page.headings) == {
        "How it was made",
        "Which classes are taken for which",
        "Classes",
    }
    assert not {"GMACs per clip", "parameters", "command", "hardware", "Recipe"} & set(page.texts)
    assert not [text for text in page.texts if text in ("None", "nan", "-")]


def test_many_classes_are_folded_below_the_worst(tmp_path):
    names = [f"class {index}" for index in range(41)]
    found = evaluation(names)
    page = Page(write_report(tmp_path / "r.html", Report(title="t", evaluation=found)))
    assert "All 41" in page.texts
    worst = min((c for c in found.per_class if c.support), key=lambda c: c.f1)
    first = page.texts.index("F1") + 1
    assert page.texts[first] == worst.label


def test_a_failure_leaves_the_old_page(tmp_path):
    path = write_report(tmp_path / "r.html", Report(title="old"))
    with pytest.raises(ValueError, match="`history` must have"):
        write_report(path, Report(title="new", history=[{"x": 1.0}]))
    assert Page(path).texts == ["old", "old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.html"]


def test_the_weights_before_training_are_told(tmp_path):
    path = write_report(tmp_path / "report.html", Report(title="t", started_from="k600 <file>"))
    assert "<dt>started from</dt><dd>k600 &lt;file&gt;</dd>" in path.read_text(encoding="utf-8")
