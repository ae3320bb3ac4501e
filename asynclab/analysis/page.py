"""Parts of a page and the page itself: tables, figures of matplotlib in its colours, numbers as text.

jinja2 and matplotlib are imported where they are used: training imports this module, and must not pay for them.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any, NamedTuple

from asynclab.analysis import plots

NONE = "-"  # where there is no number
SHORT = 20  # characters of a name that stay on one line
DARK = ["#56B4E9", "#E69F00", "#2FC79A", "#E39BC3", "currentColor", "#F2824B", "#A6DAF7"]  # COLOURS on a dark page
DASHES = ["none", "7 3.5", "7 3 1.8 3", "2 2.5"]  # LINES as SVG has them


class Cell(NamedTuple):
    """An estimate as text, with the ends of its interval if there is one; ``width`` of these in digits."""

    text: str
    low: str = ""
    high: str = ""
    width: float = 0


class Bar(NamedTuple):
    """Where an estimate and its interval are between the lowest (0) and the highest (1) of a table."""

    low: float
    middle: float
    high: float


class Badge(NamedTuple):
    """How a run ended."""

    status: str


class Column(NamedTuple):
    """The head of a column.

    Attributes:
        title: Its name.
        kind: ``number``, ``text`` (on one line), ``prose`` or ``bar``.
        group: What stands before a setting's last name.
    """

    title: str
    kind: str = "number"
    group: str = ""


class Table(NamedTuple):
    """Rows below heads.  The first column that is text names the rows; ``notes`` say how to read them."""

    caption: str
    columns: list[Column]
    rows: list[list[Any]]
    notes: Sequence[str] = ()


class Line(NamedTuple):
    """An entry of a legend; ``number`` is that of its colour and dashes, but with dots it is dotted."""

    number: int
    label: str
    has_dots: bool = False


class Figure(NamedTuple):
    """Drawings beside each other that have the same lines."""

    drawings: list[str]
    lines: list[Line]
    caption: str


def render(template: str, **context: Any) -> str:
    """Return a page made of a template of the package; whatever is not Markup is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("asynclab.analysis", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"type": lambda value: type(value).__name__, "breakable": _breakable}
    palette = list(zip(plots.COLOURS, DARK, strict=True))
    return environment.get_template(template).render(palette=palette, dashes=DASHES, **context)


def _breakable(text: str) -> Any:
    """Return text that a browser may break within settings and paths, too, unless it is short."""
    from markupsafe import Markup, escape

    if len(text) <= SHORT:
        return Markup('<span class="short">{}</span>').format(text)
    return Markup(re.sub(r"([=/,_]|\.(?=[a-z_]))(?!$)", r"\1<wbr>", str(escape(text))))


def keep(table: Table, is_needed: Callable[[int], bool]) -> Table:
    """Return a table without the columns that are not needed, by number."""
    kept = [i for i in range(len(table.columns)) if is_needed(i)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return table._replace(columns=[table.columns[i] for i in kept], rows=rows)


def without_empty(table: Table) -> Table:
    """Return a table without the columns that have nothing in any row."""
    return keep(table, lambda i: any(row[i] not in ("", NONE) for row in table.rows))


def cells(values: Sequence[tuple[float, float, float]]) -> list[Cell]:
    """Return a column of estimates (value, low, high), all with as many decimals."""
    size = max((abs(v) for value in values for v in value if math.isfinite(v)), default=0.0)
    decimals = 0 if size >= 10_000 else 1 if size >= 100 else 2 if size >= 1 else 3

    def text(value: float) -> str:
        return f"{value:,.{decimals}f}" if math.isfinite(value) else ""

    texts = [[text(v) for v in value] for value in values]
    ends = [end for _, *both in texts for end in both]
    width = max((sum(1.0 if c.isdigit() else 0.5 for c in end) for end in ends), default=0.0)
    return [Cell(middle or NONE, low, high, width) for middle, low, high in texts]


def numbers(values: Sequence[float]) -> list[str]:
    """Return a column of numbers, all with as many decimals."""
    return [cell.text for cell in cells([(value, math.nan, math.nan) for value in values])]


def count(value: float | None) -> str:
    """Return a whole number."""
    return NONE if value is None else f"{value:,.0f}"


def setting(value: Any) -> str:
    """Return the value of a setting."""
    return NONE if value is None else json.dumps(value) if isinstance(value, (bool, list, dict)) else str(value)


_numbers = itertools.count()  # of drawings: what one refers to must not be found in another


def svg(figure: Any, label: str, legend: bool = False) -> Any:
    """Return a figure as SVG for a page: in its colours and font, and without what only a file needs.

    Args:
        figure: Of matplotlib; changed.
        label: What a screen reader says.
        legend: Keep it, and the figure's size.
    """
    import matplotlib
    from markupsafe import Markup, escape

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    if not legend:
        figure.set_size_inches(6, 4)
        for axes in figure.axes:
            axes.set_title("")
        for found in list(figure.legends):
            found.remove()
    text = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", drawing))
    prefix = f"d{next(_numbers)}-"
    drawing = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", drawing)
    drawing = re.sub(r'(href="|url\()#', rf"\1#{prefix}", drawing)
    drawing = re.sub(r' d="[^"]+"', lambda m: re.sub(r"\.(\d)\d+", r".\1", m[0]), drawing)  # a tenth of a point
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", drawing)
    for i, colour in enumerate(plots.COLOURS):
        drawing = re.sub(colour, "currentColor" if colour == "#000000" else f"var(--line-{i})", drawing, flags=re.I)
    drawing = re.sub("#b0b0b0", "var(--grid)", drawing)
    (size,) = re.findall(r'viewBox="([\d. ]+)"', drawing)
    head = f'<svg viewBox="{size}" role="img" aria-label="{escape(label)}">'
    return Markup(head + re.sub(r"\n\s*", "\n", drawing[drawing.index(">") + 1 :]))
