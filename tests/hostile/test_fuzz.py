"""Every reader and command on a few damaged files; `bench/harness/faults/fuzz.py` runs a hundred thousand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from harness.faults.damaged import Damaged, fuzzed, limited_memory
from harness.faults.readers import Reader
from harness.faults.targets import readers

EXAMPLES = 30
READERS = readers()


@pytest.mark.parametrize("reader", READERS, ids=[reader.name for reader in READERS])
def test_a_damaged_file_is_read_or_refused_in_one_sentence(reader: Reader, tmp_path: Path) -> None:
    few = EXAMPLES if reader.share >= 0.5 else EXAMPLES // 3
    with Damaged(reader, tmp_path / "files") as damaged:
        outcomes = [damaged.example(f"test/{reader.name}/{number}") for number in range(few)]
    assert not [finding for _, finding in outcomes if finding is not None]
    assert "refused" in {outcome for outcome, _ in outcomes}, "nothing was damaged"


def _reader(read: Any) -> Reader:
    return Reader("bad", lambda folder: (folder / "x.json").write_text('{"a": [1, 2]}') and None, read)


def test_the_harness_sees_what_a_bad_reader_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = '{"a": [1, 2]}'

    def only_whole(then: Any) -> Any:
        """Reads the whole file, and does something bad on any other."""

        def read(folder: Path) -> None:
            if (folder / "x.json").read_bytes() != whole.encode():
                then(folder)

        return read

    def raises(folder: Path) -> None:
        raise KeyError("a")

    def hangs(folder: Path) -> None:
        try:
            while True:
                pass
        except Exception:
            return

    def writes(folder: Path) -> None:
        (folder / "x.json").write_text("gone")

    def allocates(folder: Path) -> None:
        bytearray(1 << 45)

    monkeypatch.setattr("harness.faults.damaged.SECONDS", 0.2)
    for number, (then, words) in enumerate(
        ((raises, "KeyError"), (hangs, "Hung"), (writes, "changed by reading"), (allocates, "MemoryError"))
    ):
        with limited_memory(), Damaged(_reader(only_whole(then)), tmp_path / str(number)) as damaged:
            outcome, finding = damaged.example("harness/0")
        assert outcome == "findings"
        assert finding is not None
        assert words in finding["report"]


def test_the_same_seed_gives_the_same_result() -> None:
    results = [fuzzed(40, seed=3, names=["neuron set"]) for _ in range(2)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    assert results[0]["examples"] == 40
    assert results[0]["passed"]
