"""MkDocs hooks: the site shows files that lie outside docs/, where the pages link to them."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures of benchmarks/results/ as images, and CONTRIBUTING.md as a page."""
    for path in sorted(ROOT.glob("benchmarks/results/*.png")):
        picture = File.generated(config, f"../benchmarks/results/{path.name}", abs_src_path=str(path))
        picture.inclusion = InclusionLevel.INCLUDED  # a path that begins with a dot is left out otherwise
        picture.dest_uri = f"images/{path.name}"
        files.append(picture)
    files.append(File.generated(config, "contributing.md", abs_src_path=str(ROOT / "CONTRIBUTING.md")))
    return files
