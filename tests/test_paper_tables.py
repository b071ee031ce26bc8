"""The page of the paper's tables: that it is up to date, and the numbers that it alone has."""

from pathlib import Path

import pytest

from grw_keras.evaluation.published import ROWS
from tests.helpers import script

ZOO = Path(__file__).parents[1] / "zoo"


@pytest.fixture(scope="module")
def tables():
    return script(ZOO / "paper_tables.py")


def test_the_page_is_what_the_script_writes_now(tables):
    assert (ZOO / "results" / "paper_tables.md").read_text(encoding="utf-8") == tables.page()


def test_every_published_row_is_on_the_page_once(tables):
    page = tables.page()
    for number, title in tables.TITLES.items():
        rows = [row for row in ROWS if row.table == number]
        block = page.split(f"## {title}")[1].split("## ")[0]
        lines = block.strip().splitlines()[2:]
        assert [line.split(" | ")[0] for line in lines] == [f"| {row.printed}" for row in rows]


def test_ablations_stand_in_the_papers_table_5(tables, shared):
    text = (shared / "paper" / "smooth-regularization.md").read_text()
    block = text.split("(a) Window")[1].split("**Table 5:**")[0]
    lines = block.replace("<b>", "").replace("</b>", "").splitlines()[2:]
    printed = [line.split("\t") for line in lines if line]
    expected = {
        (what, cells[2 * place + 1], float(cells[2 * place]))
        for cells in printed
        for place, what in enumerate(("window T", "α", "λ"))
        if cells[2 * place + 1] != "no smoothing"
    }
    assert set(tables.ABLATIONS) == expected | {("any", "no smoothing", 72.0)}
    assert {cells[0] for cells in printed if cells[1] == "no smoothing"} == {"72.0"}


def test_figure_one_shows_each_model_of_tables_1_and_2(tables):
    panels = tables.figure_one().axes
    for axes, number in zip(panels, (1, 2), strict=True):
        points = sum(len(line.get_xdata()) for line in axes.lines)
        assert points == sum(row.table == number for row in ROWS)
