"""Reference pages: one a room, holding every public name that lives there, from its docstring."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

import culnig_fast

ROOMS: dict[str, tuple[str, ...]] = {
    "Questions and scores": (
        "questions",
        "attribution",
        "chosen_positions",
        "scores",
        "instances",
        "streaming",
        "planning",
    ),
    "The engine": ("attributor", "architecture", "neurons", "neuron_sets", "modules"),
    "Selection": ("selection",),
    "Interventions and evaluation": ("masking", "evaluation", "statistics"),
    "Baselines": ("baselines",),
    "Modules and fine-tuning": ("analysis", "finetuning"),
    "Other programs": ("interop",),
    "Processes, reports, errors": ("running", "report", "errors"),
}
"""Title of each page, and the modules and packages of `culnig_fast` whose public names stand there."""

REST = "Further names"


def pages() -> dict[str, str]:
    """Title → Markdown of each page; a public name of a room that no page lists stands on the last one."""
    room_of = {module: title for title, modules in ROOMS.items() for module in modules}
    found: dict[str, list[str]] = {title: [] for title in [*ROOMS, REST]}
    for name, home in culnig_fast._HOMES.items():
        whole = room_of.get(home)
        title = whole or room_of.get(home.split(".")[0], REST)
        found[title].append(f"::: culnig_fast.{home}.{name}\n")
    return {title: "\n".join([f"# {title}\n", *entries]) for title, entries in found.items() if entries}


def file_name(title: str) -> str:
    """Where a page lies below the documentation's folder."""
    return f"reference/{title.lower().replace(',', '').replace(' ', '-')}.md"


def on_config(config: Any) -> Any:
    """Put the pages into the navigation, in the order of `ROOMS`."""
    for entry in config["nav"]:
        if isinstance(entry, dict) and "Reference" in entry:
            entry["Reference"] = [{title: file_name(title)} for title in pages()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to what is built."""
    for title, text in pages().items():
        files.append(File.generated(config, file_name(title), content=text))
    return files
