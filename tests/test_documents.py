"""Every code block of README and documentation is run, on the embedded model and a part of its data.

Python blocks of a page share one namespace and one folder, top to bottom, as a reader would type them; `culnig-fast`
lines go through the command line in this process. A block that cannot be run says why in a comment above it, and its
commands must parse all the same.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import documents
import pytest
import typer
from command_line import invoke
from documents import ROOT, SHELL, Block

from culnig_fast import cli, models
from culnig_fast.demo import embedded

BLOCKS = {path.relative_to(ROOT).as_posix(): list(documents.blocks(path)) for path in documents.pages()}
ALL = [block for found in BLOCKS.values() for block in found]
SHOWN = ("text", "yaml", "json")
"""Languages of blocks that show something and are no code of ours."""

LONG = {
    "culnig-fast run ": "minutes, or a config of the reader's; tests/pipeline runs the same on a few questions",
    "culnig-fast report runs/": "needs a finished run; tests/report has one",
    "culnig-fast finetune ": "minutes; tests/finetuning trains for a few steps",
    "torchrun ": "several processes; tests/running/test_distributed.py starts them",
}
"""Beginnings of lines that are not run although their block is, and why; they must parse all the same."""

OURS = re.compile(r"(?:^|-m )culnig[-_]fast(?:\.cli)?\s(.*)")


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and a twelfth of the embedded data in place of all of it."""
    whole, part = models.embedded_folder("data"), tmp_path / "embedded"
    part.mkdir()
    rows = [json.loads(line) for line in (whole / "blend.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = list(dict.fromkeys(row["ID"] for row in rows))[::6]
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in rows:
        seen[row["country"], row["ID"]] += 1
        if row["ID"] in ids and seen[row["country"], row["ID"]] <= 2:
            kept.append(json.dumps(row))
    (part / "blend.jsonl").write_text("\n".join(kept), encoding="utf-8")
    templates = json.loads((whole / "country_rc.json").read_text(encoding="utf-8"))
    (part / "country_rc.json").write_text(json.dumps(templates[:3] + templates[-3:]), encoding="utf-8")
    (part / "questions.csv").write_bytes((whole / "questions.csv").read_bytes())
    folder = models.embedded_folder
    for module in (models, embedded):
        monkeypatch.setattr(module, "embedded_folder", lambda name: part if name == "data" else folder(name))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize("page", [page for page, found in BLOCKS.items() if any(not b.not_run for b in found)])
def test_every_block_of_a_page_runs(page: str, small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in BLOCKS[page]:
        if block.not_run is None and block.language not in SHOWN:
            run_block(block, namespace)
    capsys.readouterr()


@pytest.mark.parametrize("path", documents.notebooks(), ids=lambda path: path.stem)
def test_every_cell_of_a_notebook_runs(path: Path, small_world: Path) -> None:
    """Plain Python cell by cell, without Jupyter; a cell of magics would not compile."""
    from matplotlib import pyplot

    namespace: dict[str, Any] = {"__name__": "notebook"}
    before = set(pyplot.get_fignums())
    found = documents.cells(path)
    for block in found:
        run_block(block, namespace)
    drawn = set(pyplot.get_fignums()) - before
    assert drawn, "a notebook that draws nothing is a page"
    for number in drawn:
        pyplot.close(number)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert (written["nbformat"], written["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in written["cells"]]
    assert len(set(ids)) == len(ids) > len(found) > 3
    assert not [cell for cell in written["cells"] if cell.get("outputs") or cell.get("execution_count")]


def run_block(block: Block, namespace: dict[str, Any]) -> None:
    """Run one block; fails, naming its place, for one that cannot be."""
    if block.language == "python":
        # Empty lines in front make tracebacks name the page's own lines.
        exec(compile("\n" * block.line + block.text, block.page, "exec"), namespace)
    elif block.language in SHELL:
        for command in block.commands():
            run_command(command, block)
    else:
        pytest.fail(f"{block.where}: a block of {block.language} is neither run nor marked `<!-- not run: why -->`")


def run_command(command: str, block: Block) -> None:
    """Run a line of a shell block in this process; of make only the target is looked up."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{block.where}: the Makefile has no target of `{command}`"
    elif not " ".join(words).startswith(tuple(LONG)):
        assert words[0] == "culnig-fast", f"{block.where}: `{command}` is not run; mark its block"
        code = invoke(*words[1:])
        assert code == 0, f"{block.where}: `{command}` ended with exit code {code}"


def test_every_command_parses_also_where_it_is_not_run() -> None:
    """Names of commands, options and the number of arguments; nothing is executed."""
    seen = 0
    for block in ALL:
        if block.language in SHELL:
            for command in block.commands():
                found = OURS.search(" ".join(shlex.split(command, comments=True)))
                if found:
                    parse(shlex.split(found[1]), block)
                    seen += 1
    assert seen > 20


def parse(words: list[str], block: Block) -> None:
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{block.where}: no command {words[:1]}"
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(command.name, list(words))
    except Exception as error:  # of click, which typer may bring along under another name
        pytest.fail(f"{block.where}: `culnig-fast … {command.name} {' '.join(words)}` does not parse: {error}")


def test_blocks_are_found_and_marks_have_reasons() -> None:
    assert sum(block.language == "python" for block in ALL) > 20
    assert sum(block.language in SHELL for block in ALL) > 8
    marks = [line for path in documents.pages() for line in path.read_text("utf-8").splitlines() if "not run" in line]
    written = [line for line in marks if line.lstrip().startswith("<!--")]
    assert all(documents.MARK.fullmatch(line.strip()) for line in written)
    assert len(written) == sum(block.not_run is not None for block in ALL), "a mark stands above no block"


def test_the_parser_of_pages(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n```python\na = 1\n```\n\n<!-- not run: slow -->\n```sh\nx \\\n  y # z\n\n# only\n```\n```\nb\n```\n"
    )
    first, second, third = documents.blocks(page)
    assert (first.language, first.text, first.line, first.not_run) == ("python", "a = 1", 3, None)
    assert (second.language, second.not_run, second.commands()) == ("sh", "slow", ["x y # z"])
    assert (third.language, third.text, third.not_run) == ("", "b", None)


def test_a_broken_block_is_reported_with_its_place() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        run_block(Block("page.md", 7, "python", "\n1 / 0", None), {})
    assert error.traceback[-1].lineno == 8  # counted from 0
    for language, text in (("sh", "ls"), ("rust", "x"), ("", "make nothing"), ("sh", "culnig-fast info nowhere")):
        with pytest.raises((AssertionError, pytest.fail.Exception), match="page.md:7"):
            run_block(Block("page.md", 7, language, text, None), {})
    with pytest.raises(pytest.fail.Exception, match="does not parse"):
        parse(["info", "demo", "--no-such-option"], Block("page.md", 7, "sh", "", None))
