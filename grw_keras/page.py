"""The pages that are written: one HTML file with its pictures inside.

A page asks nothing of the network and runs no script; every text in it is escaped.
"""

import base64
import html
import io
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from grw_keras import atomic, figures

OPEN_ROWS = 30  # longer tables are folded

_TEMPLATE = Path(__file__).with_name("page_template.html")
STRIP_FRAMES, _STRIP_HEIGHT_PX, _GAP_PX = 8, 120, 2


def write(path: str | Path, title: str, parts: Iterable[str]) -> Path:
    """Writes a page, atomically.

    Args:
        path: its folder is made.
        title: as text.
        parts: HTML, from top to bottom; empty ones are left out.
    """
    path = Path(path)
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.substitute(title=escaped(title), body="\n".join(filter(None, parts)))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, text)
    return path


class Pictures:
    """Makes <img> elements; figures also become PNG files of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def figure(self, name: str, figure: Figure, alt: str) -> str:
        content = figures.png(figure)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.png").write_bytes(content)
        # Drawn with more pixels than it is shown with, for sharp screens.
        width = round(figure.get_figwidth() * 100)
        return f"<figure>{image(content, 'png', alt, width)}</figure>"

    def strip(self, frames: np.ndarray, alt: str) -> str:
        """Frames of a clip, RGB [n, H, W, 3], uint8, side by side: 8 of them, evenly spread."""
        chosen = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round()
        images = []
        for frame in np.asarray(frames)[chosen.astype(int)]:
            picture = Image.fromarray(frame)
            wide = max(1, round(picture.width * _STRIP_HEIGHT_PX / picture.height))
            small = np.asarray(picture.resize((wide, _STRIP_HEIGHT_PX), Image.Resampling.BOX))
            images += [small, np.full((_STRIP_HEIGHT_PX, _GAP_PX, 3), 255, np.uint8)]
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(images[:-1], axis=1)).save(buffer, "jpeg", quality=82)
        return image(buffer.getvalue(), "jpeg", alt)


def tiles(values: Mapping[str, str | None]) -> str:
    """Large numbers with their names below; None are left out."""
    cells = [
        f'<div class="tile"><b>{escaped(value)}</b><span>{escaped(name)}</span></div>'
        for name, value in values.items()
        if value is not None
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def facts(values: Mapping[str, str]) -> str:
    """A list of names and what they are, HTML; empty ones are left out."""
    rows = [f"<dt>{escaped(name)}</dt><dd>{value}</dd>" for name, value in values.items() if value]
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a card; the first column, and one of two, is text."""
    side = ' class="text"' if len(heading) == 2 else ""
    lines = ["".join(f"<th{side}>{escaped(cell)}</th>" for cell in heading)]
    lines += ["".join(f"<td{side}>{escaped(cell)}</td>" for cell in row) for row in rows]
    content = "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    if len(rows) > OPEN_ROWS:
        content = f"<details><summary>All {len(rows):,}</summary>{content}</details>"
    return f'<div class="card">{content}</div>'


def section(title: str, content: str) -> str:
    """A heading, and HTML below it."""
    return f"<section><h2>{escaped(title)}</h2>\n{content}</section>"


def image(content: bytes, kind: str, alt: str, width: int | None = None) -> str:
    """An <img> that holds a file of `image/kind`."""
    data = base64.b64encode(content).decode("ascii")
    size = f' width="{width}"' if width else ""
    return f'<img src="data:image/{kind};base64,{data}" alt="{escaped(alt)}"{size}>'


def escaped(text: str) -> str:
    """A text as HTML."""
    return html.escape(str(text))
