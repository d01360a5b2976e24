"""A report as one file of HTML: its template filled in, everything in it escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inlay.registry.printable import printable


def write_page(path: str | Path, template: str, *, package: str = "inlay.evals", **given: Any) -> Path:
    """Write `template`, one of `package`, filled in with what is `given`, to `path` (its folder is made) and
    return it. Control characters are made visible, what is no text is written with a backslash."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    page = environment.get_template(template).render(given)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path
