"""The report of one agent: a self-contained HTML page without network access or scripts.

Its template is `report.html`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple, TypedDict

import jinja2

from mpn_rl.analysis.pages.standard_pages import PARTS, Page, Row

HEADINGS = {
    "learning": "Learning",
    "behaviour": "Behaviour",
    "state": "State",
    "memory": "Memory",
    "dynamics": "Dynamics",
    "tests": "Probes of the network",
    "weights": "Weights",
}
assert tuple(HEADINGS) == PARTS


class SavedPage(NamedTuple):
    """A page and its figure as PNG bytes, None where there is no figure."""

    page: Page
    png: bytes | None


class Picture(TypedDict):
    """The attributes of an <img>: source as a data URL, alternative text, width and height in CSS pixels."""

    source: str
    alt: str
    width: int
    height: int


def render(
    saved: Sequence[SavedPage],
    *,
    title: str,
    lead: str,
    settings: Mapping[str, Mapping[str, object]],
    notes: Sequence[str] = (),
) -> str:
    """The report as HTML with embedded pictures.

    Args:
        saved: the pages in any order; the report sorts them by part.
        title, lead: the heading and the sentence below it.
        settings: tables for the end, {"Configuration": {"core.name": "mpn", ...}, "Versions": {...}}.
        notes: sentences for the overview.
    """
    parts: list[dict[str, object]] = []
    # A page that has only a reason is a line at the end.
    there = [(page, png) for page, png in saved if not page.missing or png is not None or page.table]
    absent = [(page.title, page.missing.removeprefix("not available: "))
              for page, png in saved if (page, png) not in there]  # fmt: skip
    for part, heading in HEADINGS.items():
        own = [(page, _picture(page, png), list(map(_row, page.table))) for page, png in there if page.part == part]
        if own:
            parts.append({"name": part, "heading": heading, "pages": own})
    overview = [_row(line) for page, _ in saved for line in page.headline]
    source = resources.files("mpn_rl.analysis").joinpath("report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(
        title=title,
        lead=lead,
        parts=parts,
        overview=overview,
        notes=list(notes),
        absent=absent,
        settings=settings,
    )


def _picture(page: Page, png: bytes | None) -> Picture | None:
    """The page's figure; its alternative text is the title, the first sentence of the caption and three numbers."""
    if png is None:
        return None
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # of the IHDR chunk
    values = "; ".join(f"{line.what} {number(line.value)}" for line in page.table[:3])
    first = page.caption.partition(". ")[0].rstrip(".")
    return {
        "source": "data:image/png;base64," + base64.b64encode(png).decode("ascii"),
        "alt": f"{page.title}. {first}." + (f" {values}." if values else ""),
        "width": round(width / 1.6),  # saved at 160 dots per inch, shown at 100
        "height": round(height / 1.6),
    }


def _row(line: Row) -> dict[str, str]:
    """The cells of a table's line as text."""
    at_least = math.isinf(line.high) and line.low == line.value
    ends = f"[{number(line.low)}, {number(line.high)}]" if math.isfinite(line.low) and not math.isnan(line.high) else ""
    n = f"{line.n:,.0f}" if math.isfinite(line.n) else ""
    value = ("≥ " if at_least else "") + number(line.value)
    return {"what": line.what, "value": value, "interval": "" if at_least else ends, "n": n}


def number(value: float) -> str:
    """A number with four digits; a dash for nan."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
