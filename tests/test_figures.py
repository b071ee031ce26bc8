"""Pictures: what they show of the data, for few and for many classes, always the same bytes."""

import io
import logging

import matplotlib
import numpy as np
import pytest
from matplotlib.lines import Line2D
from PIL import Image
from sklearn.decomposition import PCA

from grw_keras import figures, trajectories
from grw_keras.evaluation.results import ReliabilityBin

HISTORY = [
    {"epoch": epoch, "cross_entropy": 1 / epoch, "grw_ordering": 2 / epoch, "top1": 0.3 * epoch}
    for epoch in (1, 2, 3)
]
BINS = [
    ReliabilityBin(count=0, confidence=None, accuracy=None),
    ReliabilityBin(count=3, confidence=0.8, accuracy=2 / 3),
]
STRANGE = ["$a^2$ and $", "日本", "_hidden", "two\nlines", "<b>&\"'", "x" * 200, "$\\foo$"]


def clips(classes=3, per_class=6, frames=8, width=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    steps = rng.standard_normal((len(labels), frames, width))
    return np.cumsum(steps, axis=1), labels


def texts(axes):
    return [text.get_text() for text in axes.texts]


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(figures.png(figure))).convert("RGB")).astype(int)


def test_curves_show_the_history_in_a_panel_per_kind():
    loss, accuracy = figures.curves(HISTORY).axes
    assert [line.get_label() for line in loss.lines] == ["cross-entropy", "ordering"]
    np.testing.assert_allclose(loss.lines[1].get_xydata(), [(1, 2), (2, 1), (3, 2 / 3)])
    assert [line.get_label() for line in accuracy.lines] == ["training"]


def test_legends_cover_no_curve():
    figure = figures.curves([{"loss": 2.0, "cross_entropy": 1.0, "val_cross_entropy": 9.0}])
    figures.png(figure)  # lays it out
    (axes,) = figure.axes
    below = axes.get_legend().get_window_extent()
    assert below.y1 < axes.get_window_extent().y0
    assert below.y0 > 0


def test_a_value_that_only_some_epochs_have_is_drawn_where_it_is():
    (axes,) = figures.curves([{"loss": 3.0}, {"loss": 2.0, "val_cross_entropy": 2.5}]).axes
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [(2, 2.5)])


def test_curves_name_the_split_that_epochs_were_judged_on():
    history = [{"loss": 3.0, "val_cross_entropy": 2.5, "top1": 0.5, "val_top1": 0.4}]
    loss, accuracy = figures.curves(history, "test").axes
    assert loss.lines[1].get_label() == "cross-entropy, test"
    assert [line.get_label() for line in accuracy.lines] == ["training", "test"]


@pytest.mark.parametrize(("first", "last"), [(1e-4, 1e-6), (1e-4, 2e-5), (3e-4, 1.5e-4)])
def test_learning_rates_have_several_ticks(first, last):
    figure = figures.curves([{"backbone_rate": first}, {"backbone_rate": last}])
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 2


@pytest.mark.parametrize("history", [[], [{"epoch": 1, "los": 2.0}]])
def test_a_history_without_known_keys_is_refused(history):
    with pytest.raises(ValueError, match=r"must have some of these keys: loss,.*Received: (no|ep)"):
        figures.curves(history)


@pytest.mark.parametrize("classes", [2, 12, 13, 40])
def test_a_confusion_matrix_names_its_classes_and_numbers_few_cells(classes):
    rng = np.random.default_rng(classes)
    matrix = rng.integers(1, 9, size=(classes, classes))
    names = [f"class {index}" for index in range(classes)]
    axes, bar = figures.confusion(matrix, names).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    expected = [str(count) for count in matrix.ravel()] if classes <= 12 else []
    assert texts(axes) == expected
    np.testing.assert_allclose(axes.images[0].get_array().sum(axis=1), 1)
    assert bar.get_ylabel() == "share of the true class"


def test_of_600_classes_the_largest_confusions_are_named_and_none_vanishes():
    matrix = 20 * np.eye(600, dtype=int)
    matrix[7, 301] = 9
    matrix[500, 2] = 1
    figure = figures.confusion(matrix, [f"class {index}" for index in range(600)])
    axes, listing, _ = figure.axes
    assert texts(listing) == [
        *("class 7", "→ class 301  (31% of 29)"),
        *("class 500", "→ class 2  (5% of 21)"),
    ]
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (300, 300)
    assert shown[3, 150] == pytest.approx(9 / 29)
    assert shown[250, 1] == pytest.approx(1 / 21)


def test_a_class_without_clips_is_an_empty_row():
    figure = figures.confusion(np.array([[3, 1], [0, 0]]), ["a", "b"])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.75, 0.25], [0, 0]])


def test_a_matrix_that_does_not_fit_its_labels_is_refused():
    with pytest.raises(ValueError, match=r"per label, 3. Received: \(2, 2\)"):
        figures.confusion(np.eye(2), ["a", "b", "c"])


def test_calibration_shows_accuracy_and_confidence_of_the_bins_with_clips():
    top, bottom = figures.calibration(BINS, 0.133).axes
    (bar,) = top.patches
    assert (bar.get_x(), bar.get_height()) == (0.5, pytest.approx(2 / 3))
    (segment,) = top.collections[0].get_segments()
    np.testing.assert_allclose(segment, [(0.5, 0.8), (1.0, 0.8)])
    assert [patch.get_height() for patch in bottom.patches] == [0, 3]
    assert top.get_title() == "Calibration error 13.3%"


def test_accuracy_over_frames_ends_with_its_number():
    axes = figures.accuracy_over_frames([(1, 0.25), (5, 0.5)], fps=5.0, chance=0.1).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(1, 0.25), (5, 0.5)])
    assert texts(axes) == ["50.0%"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["chance, 10.0%"]
    assert len(axes.child_axes) == 1


@pytest.mark.parametrize(
    "draw",
    [lambda: figures.calibration([], 0.1), lambda: figures.accuracy_over_frames([])],
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ValueError, match=r"must hold at least one.*Received: none"):
        draw()


def test_trajectories_are_paths_on_the_components_with_their_shares():
    z, labels = clips()
    axes = trajectories.trajectories(z, labels, ["yaw", "pitch", "roll"], shown=1).axes[0]
    pca = PCA(2).fit(z.reshape(-1, 5))
    points = pca.transform(z.reshape(-1, 5)).reshape(18, 8, 2)
    paths = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "-"]
    assert len(paths) == 3
    for label, path in enumerate(paths):
        # One of the class's own clips, up to the signs of the axes.
        distances = np.abs(np.abs(points[labels == label]) - np.abs(path)).max(axis=(1, 2))
        assert distances.min() < 1e-9
    shares = pca.explained_variance_ratio_
    assert axes.get_xlabel() == f"component 1 ({shares[0]:.0%} of the variance)"
    assert axes.get_ylabel() == f"component 2 ({shares[1]:.0%})"
    assert texts(axes) == [str(frame) for frame in range(8)] * 3
    colors = [line.get_color() for line in axes.lines if line.get_linestyle() == "-"]
    assert colors == ["#009E73", "#0072B2", "#D55E00"]  # green, blue, red
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["yaw", "pitch", "roll"]


def test_the_numbers_stand_at_their_frames():
    z, labels = clips(classes=1, per_class=1)
    axes = trajectories.trajectories(z, labels, ["a"]).axes[0]
    path = next(line.get_xydata() for line in axes.lines if line.get_linestyle() == "-")
    np.testing.assert_allclose([text.xy for text in axes.texts], path)


def test_frames_that_only_pad_are_not_drawn():
    z, labels = clips(classes=1, per_class=1, frames=6)
    mask = np.arange(6)[None] < 4
    z[~mask] = np.nan
    axes = trajectories.trajectories(z, labels, ["a"], mask).axes[0]
    assert texts(axes) == ["0", "1", "2", "3"]
    cloud = next(artist for artist in axes.get_children() if isinstance(artist, Line2D))
    assert len(axes.lines[-1].get_xdata()) == 4
    assert np.isfinite(cloud.get_xydata()).all()


def test_long_clips_have_every_fifth_frame_numbered():
    z, labels = clips(classes=1, per_class=1, frames=50)
    axes = trajectories.trajectories(z, labels, ["a"]).axes[0]
    assert texts(axes) == [str(frame) for frame in range(0, 50, 5)]


def test_of_many_classes_the_six_with_the_most_clips_are_drawn():
    z, labels = clips(classes=9, per_class=4)
    labels[0], labels[5], labels[10] = 8, 8, 8  # now classes 0, 1 and 2 have fewest
    axes = trajectories.trajectories(z, labels, [f"class {i}" for i in range(9)]).axes[0]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == [f"class {i}" for i in range(3, 9)]
    assert axes.get_title() == "The 6 most frequent of 9 classes"
    assert sum(line.get_linestyle() == "-" for line in axes.lines) == 6


def test_typical_clips_move_at_the_median_pace_and_are_whole():
    t = np.arange(6.0)[None, :, None]
    pace = np.array([1.0, 9.0, 3.0, 2.9, 0.1, 3.1])[:, None, None]
    z = pace * np.concatenate([t, t**2 / 10], axis=-1)
    mask = np.ones((6, 6), bool)
    assert trajectories.typical_clips(z, mask, 2).tolist() in ([2, 3], [3, 2])
    mask[[2, 3], 3:] = False
    assert set(trajectories.typical_clips(z, mask, 4)) == {0, 1, 4, 5}
    assert trajectories.typical_clips(z, mask, 9).tolist()[4:] == [2, 3]


def test_labels_out_of_range_are_refused():
    z, labels = clips()
    with pytest.raises(ValueError, match=r"in \[0, 2\).*from 0 to 2"):
        trajectories.trajectories(z, labels, ["a", "b"])


def test_embeddings_that_do_not_move_can_be_drawn():
    picture = trajectories.trajectories(np.ones((2, 3, 4)), np.array([0, 1]), ["a", "b"])
    assert figures.png(picture).startswith(b"\x89PNG")


def figures_with(names):
    matrix = np.arange(len(names) ** 2).reshape(len(names), -1)
    z, labels = clips(classes=len(names), per_class=2)
    return [
        figures.confusion(matrix, names),
        figures.confusion(np.kron(np.eye(6, dtype=int), matrix), names * 6),
        trajectories.trajectories(z, labels, names),
    ]


@pytest.mark.slow
def test_strange_names_are_drawn_as_they_are_without_a_word(recwarn, caplog):
    with caplog.at_level(logging.INFO, "matplotlib"):
        for figure in figures_with(STRANGE):
            assert pixels(figure).min() < 128
    assert not [warning for warning in recwarn if "Glyph" not in str(warning.message)]
    assert not [record for record in caplog.records if "font" not in record.message]


def test_the_same_data_gives_the_same_bytes_whatever_the_settings(tmp_path):
    first = figures.png(figures.curves(HISTORY))
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9}):
        second = figures.png(figures.curves(HISTORY))
    assert first == second
    assert b"matplotlib" not in first.lower()
    figures.save_png(tmp_path / "images" / "x.png", figures.curves(HISTORY))
    assert (tmp_path / "images" / "x.png").read_bytes() == first


def test_drawing_leaves_no_settings_behind():
    before = dict(matplotlib.rcParams)
    figures.png(figures.curves(HISTORY))
    figures.confusion(np.eye(2), ["a", "b"])
    assert dict(matplotlib.rcParams) == before
