"""One self-contained HTML page of everything that was measured on one agent: no network, no script."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
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

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; --ink: #222; --soft: #595959; --line: #ddd; --accent: #0072b2; }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink); background: #fff;
       font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.6rem 0 0.2rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 0.4rem; border-bottom: 2px solid var(--ink); }
h3 { font-size: 1.08rem; margin: 1.8rem 0 0.4rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { position: static; }
.lead, .missing, figcaption, .n { color: var(--soft); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; }
nav a { display: inline-block; padding: 0.3rem 0; }
figure { margin: 0; }
.wide { overflow-x: auto; }
.wide img { display: block; height: auto; min-width: min(36rem, 180vw); max-width: 100%; }
@media (min-width: 40rem) { .wide img { min-width: 0; } }
figcaption { font-size: 0.92rem; max-width: 46rem; margin-top: 0.4rem; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; padding: 0.35rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0.2rem 0; color: var(--soft); }
th, td { text-align: left; vertical-align: top; padding: 0.22rem 0.9rem 0.22rem 0;
         border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
td.number { text-align: right; white-space: nowrap; }
.missing { border-left: 4px solid #e69f00; padding-left: 0.7rem; }
@media print { nav, .skip { display: none; } details > * { display: block; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<a class="skip" href="#main">To the results</a>
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
</header>
<nav aria-label="Parts of the report">
<ul>
{%- for part in parts %}
<li><a href="#{{ part.name }}">{{ part.heading }}</a></li>
{%- endfor %}
<li><a href="#made">How it was made</a></li>
</ul>
</nav>
<main id="main">
{%- macro rows_table(rows, caption) %}
<div class="wide" tabindex="0" role="region" aria-label="{{ caption }}">
<table>
<caption>{{ caption }}</caption>
<thead><tr><th scope="col">what</th><th scope="col">value</th><th scope="col">95 % interval</th>
<th scope="col">n</th></tr></thead>
<tbody>
{%- for row in rows %}
<tr><td>{{ row.what }}</td><td class="number">{{ row.value }}</td><td class="number">{{ row.interval }}</td>
<td class="number">{{ row.n }}</td></tr>
{%- endfor %}
</tbody>
</table>
</div>
{%- endmacro %}
<section aria-labelledby="overview">
<h2 id="overview">Overview</h2>
{%- if overview %}
{{ rows_table(overview, "The main numbers") }}
{%- else %}
<p class="missing">Nothing could be measured; each page below says why.</p>
{%- endif %}
{%- if notes %}
<ul>
{%- for note in notes %}
<li>{{ note }}</li>
{%- endfor %}
</ul>
{%- endif %}
</section>
{%- for part in parts %}
<section aria-labelledby="{{ part.name }}">
<h2 id="{{ part.name }}">{{ part.heading }}</h2>
{%- for page in part.pages %}
<section aria-labelledby="page-{{ page.name }}">
<h3 id="page-{{ page.name }}">{{ page.title }}</h3>
{%- if page.source %}
<figure>
<div class="wide" tabindex="0" role="region" aria-label="Picture: {{ page.title }}">
<img src="{{ page.source }}" alt="{{ page.alt }}" width="{{ page.width }}" height="{{ page.height }}">
</div>
<figcaption>{{ page.caption }}</figcaption>
</figure>
{%- endif %}
{%- if page.missing %}
<p class="missing">{{ page.missing }}</p>
{%- endif %}
{%- if page.rows %}
<details>
<summary>Numbers: {{ page.title }}</summary>
{{ rows_table(page.rows, page.title) }}
</details>
{%- endif %}
</section>
{%- endfor %}
</section>
{%- endfor %}
<section aria-labelledby="made">
<h2 id="made">How it was made</h2>
<p>Definitions of every measure, with sources: docs/analysis.md. The numbers of each page stand beside its picture as
JSON and NPZ in the folder of this file.</p>
{%- for group, entries in settings.items() %}
<details{% if loop.first %} open{% endif %}>
<summary>{{ group }}</summary>
<div class="wide" tabindex="0" role="region" aria-label="{{ group }}">
<table>
<thead><tr><th scope="col">setting</th><th scope="col">value</th></tr></thead>
<tbody>
{%- for name, value in entries.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{%- endfor %}
</tbody>
</table>
</div>
</details>
{%- endfor %}
</section>
</main>
</body>
</html>
"""


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
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE)
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
