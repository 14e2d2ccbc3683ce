"""One self-contained HTML page of everything that was measured on one agent: no network, no script.

The page's template is `report.html`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2

from mpn_rl.analysis.pages.standard_pages import PARTS, Page, Row

HEADINGS = {
    "learning": "Learning",
    "behaviour": "Behaviour",
    "state": "State",
    "memory": "Memory",
    "dynamics": "Dynamics",
    "tests": "Tests on the network",
    "weights": "Weights",
}
assert tuple(HEADINGS) == PARTS


class Drawn(NamedTuple):
    """A page whose picture is already a PNG; None where there is no picture."""

    page: Page
    png: bytes | None


def render(
    drawn: Sequence[Drawn],
    *,
    title: str,
    lead: str,
    settings: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> str:
    """The report as one HTML text, pictures embedded.

    Args:
        drawn: the pages in any order; they are sorted by part.
        title, lead: the heading and the sentence below it.
        settings: tables for the end, {"Configuration": {"core.name": "mpn", ...}, "Versions": {...}}.
        notes: sentences for the overview.
    """
    shown = [_shown(page, png) for page, png in drawn]
    parts = [
        {"name": part, "heading": heading, "pages": [page for page in shown if page["part"] == part]}
        for part, heading in HEADINGS.items()
    ]
    overview = [_row(line) for page, _ in drawn for line in page.headline]
    source = resources.files("mpn_rl.analysis").joinpath("report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(
        title=title,
        lead=lead,
        parts=[part for part in parts if part["pages"]],
        overview=overview,
        notes=list(notes),
        settings=settings,
    )


def _shown(page: Page, png: bytes | None) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(page, name) for name in ("name", "part", "title", "caption", "missing")}
    fields |= {"rows": [_row(line) for line in page.table], "source": None}
    if png is not None:
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # of the IHDR chunk
        values = "; ".join(f"{line.what} {number(line.value)}" for line in page.table[:3])
        first = page.caption.partition(". ")[0].rstrip(".")
        fields |= {
            "source": "data:image/png;base64," + base64.b64encode(png).decode("ascii"),
            "alt": f"{page.title}. {first}." + (f" {values}." if values else ""),
            "width": round(width / 1.6),  # drawn at 160 dots per inch, shown at a hundred
            "height": round(height / 1.6),
        }
    return fields


def _row(line: Row) -> dict[str, str]:
    ends = f"[{number(line.low)}, {number(line.high)}]" if math.isfinite(line.low) and math.isfinite(line.high) else ""
    n = f"{line.n:,.0f}" if math.isfinite(line.n) else ""
    return {"what": line.what, "value": number(line.value), "interval": ends, "n": n}


def number(value: float) -> str:
    """Four digits, a dash for nan."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
