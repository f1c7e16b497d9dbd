"""The page itself: templates filled, styles and script put in, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources

import jinja2
from markupsafe import Markup

from culnig_fast.report.about import key_figures, model_name, run_facts, tasks, times
from culnig_fast.report.downloads import downloads
from culnig_fast.report.figures import Described, figures
from culnig_fast.report.inert import script_json
from culnig_fast.report.neurons import neuron_data
from culnig_fast.report.reading import RunFiles
from culnig_fast.tables.table import Table
from culnig_fast.version import __version__

SCRIPTS = ("dom", "theme", "tabs", "links", "neurons", "samples")
"""The script's parts, in order; they share one scope."""

_TABS = {
    "enhanced": "Doubled",
    "ablation": "MLP and attention",
    "baselines": "Other methods",
    "published": "Published figures",
}


def render(run: RunFiles, plots: Mapping[str, Described]) -> str:
    """The page of a run; the same files give the same text.

    Args:
        run: what is in the folder.
        plots: titles, captions and descriptions of the figures, by name.

    Raises:
        CulnigError: a file of the run is damaged.
    """
    style, script = _read("page.css"), script_text()
    neurons = neuron_data(run)
    by_path = {download.path: download for download in downloads(run)}
    main = next((table for table in run.tables if table.name == "main"), None)
    text = environment().get_template("page.html").render(
        run=run,
        version=__version__,
        policy=policy(style, script),
        style=Markup(style),  # ours, not data
        script=Markup(script),
        data=Markup(script_json(neurons)),
        notes=neurons["notes"],
        sampled=len(neurons["samples"]),
        model=model_name(run),
        facts=run_facts(run),
        tasks=tasks(run),
        times=times(run),
        key_figures=key_figures(run),
        main=main,
        suppressed=main.rows[1][1] if main is not None and len(main.rows) > 1 else None,
        further=[(tab_name(table), table) for table in run.tables if table is not main],
        figures=figures(run, plots),
        downloads=by_path,
        has_countries=any(entry["country"] for entry in neurons["sets"]),
    )  # fmt: skip
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
    return text.encode("utf-8", "replace").decode("utf-8")


def environment() -> jinja2.Environment:
    """The templates: every text is escaped on its way in, a name that is not given is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("culnig_fast.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"points": lambda value: f"{value:.2f}".replace("-", "−"), "p": p_value, "duration": duration,
                     "size": file_size, "slug": slug}  # fmt: skip
    return made


def script_text() -> str:
    """The page's script: all parts in one scope that nothing outside reaches."""
    parts = "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


def policy(style: str, script: str) -> str:
    """A content security policy under which only this style and this script work, and nothing is fetched."""
    return (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def tab_name(table: Table) -> str:
    """A further table's short name."""
    if table.name.startswith("countries-"):
        return f"{table.name.removeprefix('countries-')} by country"
    return _TABS.get(table.name, table.name)


def slug(name: str) -> str:
    """A name as part of an id: what is not a letter or digit of ASCII becomes its number."""
    return re.sub("[^A-Za-z0-9-]", lambda found: f"_{ord(found[0]):x}", name)


def p_value(value: float) -> str:
    """A p-value as it is printed: `p < 0.001` or three decimals."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def file_size(size: int) -> str:
    """Bytes as people say them."""
    return f"{size:,} bytes" if size < 10_000 else f"{size / 1000:,.0f} kB"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (resources.files("culnig_fast.report") / "static" / name).read_text(encoding="utf-8")
