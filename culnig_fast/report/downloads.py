"""Every csv of the run inside the page, as links that work without a network and without scripts."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from culnig_fast.errors import CulnigError
from culnig_fast.report.limits import CSV_BYTES
from culnig_fast.report.reading import RunFiles


@dataclass(frozen=True)
class Download:
    """One csv; `link` is None where it is too large for the page.

    Attributes:
        path: within the run's folder.
        anchor: its id in the page.
        name: under which it is saved.
        size: in bytes.
        link: its bytes as an address of their own.
    """

    path: str
    anchor: str
    name: str
    size: int
    link: str | None


def downloads(run: RunFiles) -> list[Download]:
    """The csv files of the run, byte for byte, as long as they fit; smaller ones go first."""
    contents = {}
    for path, file in run.csvs.items():
        try:
            contents[path] = file.read_bytes()
        except OSError as error:
            raise CulnigError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    left = CSV_BYTES
    links: dict[str, str | None] = {}
    for path in sorted(contents, key=lambda path: (len(contents[path]), path)):
        fits = len(contents[path]) <= left
        left -= len(contents[path]) if fits else 0
        code = base64.b64encode(contents[path]).decode("ascii")
        links[path] = f"data:text/csv;charset=utf-8;base64,{code}" if fits else None
    return [
        Download(path, f"csv-{number}", run.csvs[path].name, len(content), links[path])
        for number, (path, content) in enumerate(contents.items())
    ]
