"""Files damaged one at a time, and what a reader makes of each."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.faults.mutations import mutated
from harness.faults.readers import Reader
from harness.faults.targets import readers

SECONDS = 10.0
"""A read that takes longer hangs."""

GIBIBYTES = 3
"""Address space beyond what is in use at the start; a read that needs more fails with MemoryError."""


class Hung(BaseException):
    """A read took too long; no `except Exception` swallows it."""


def fuzzed(examples: int, seed: int = 0, names: Sequence[str] = (), *, progress: bool = False) -> dict[str, Any]:
    """Damage files and read them.

    Args:
        examples: about how many over all readers.
        seed: of the damage.
        names: only these readers; none means all.
        progress: show a bar.

    Returns:
        counts by reader, and every finding: reader, seed of the example, and the end of the traceback.
    """
    from tqdm.auto import tqdm

    chosen = [reader for reader in readers() if not names or reader.name in names]
    each = examples / sum(reader.share for reader in chosen)
    counts: dict[str, dict[str, int]] = {}
    findings: list[dict[str, Any]] = []
    started = time.perf_counter()
    root = Path(tempfile.mkdtemp(prefix="fuzz.", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    bar = tqdm(total=sum(round(each * r.share) for r in chosen), unit="file", disable=not progress)
    try:
        with bar, warnings.catch_warnings(), limited_memory():
            warnings.simplefilter("ignore")
            for reader in chosen:
                counts[reader.name] = {"examples": 0, "refused": 0, "read": 0, "findings": 0}
                with Damaged(reader, root / reader.name.replace(" ", "-")) as damaged:
                    for number in range(max(1, round(each * reader.share))):
                        outcome, finding = damaged.example(f"{seed}/{reader.name}/{number}")
                        counts[reader.name]["examples"] += 1
                        counts[reader.name][outcome] += 1
                        if finding is not None:
                            findings.append(finding)
                        bar.update()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {
        "examples": sum(count["examples"] for count in counts.values()),
        "refused": sum(count["refused"] for count in counts.values()),
        "read": sum(count["read"] for count in counts.values()),
        "findings": len(findings),
        "seconds": round(time.perf_counter() - started, 1),
        "seed": seed,
        "readers": counts,
        "first_findings": _distinct(findings),
        "passed": not findings,
    }


class Damaged:
    """A folder with a reader's files, of which one is damaged at a time."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader, self.folder = reader, folder

    def __enter__(self) -> Damaged:
        self.folder.mkdir(parents=True)
        self.reader.write(self.folder)
        self.whole = self._content()
        self.reader.read(self.folder)  # what is whole must be readable, or nothing is shown
        self.names = sorted(set(self.whole) - set(self.reader.fixed))
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def example(self, key: str) -> tuple[str, dict[str, Any] | None]:
        """(read, refused or findings; the finding) of one damaged file."""
        from culnig_fast.errors import CulnigError

        source = random.Random(key)
        name = source.choice(self.names)
        content = mutated(self.whole[name], name, source)
        (self.folder / name).write_bytes(content)
        outcome, report = "read", ""
        try:
            with time_limit():
                self.reader.read(self.folder)
        except CulnigError as error:
            outcome = "refused"
            if len(str(error)) > 4000:
                report = f"a message of {len(str(error))} characters: {str(error)[:200]}"
        except (Exception, Hung):
            report = "".join(traceback.format_exc().splitlines(keepends=True)[-6:])
        if self._content() != {**self.whole, name: content}:
            report += "\nfiles were changed by reading"
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            for other, whole in self.whole.items():
                (self.folder / other).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / other).write_bytes(whole)
        (self.folder / name).write_bytes(self.whole[name])
        if not report:
            return outcome, None
        return "findings", {"reader": self.reader.name, "example": key, "file": name, "report": report}

    def _content(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


@contextlib.contextmanager
def time_limit(seconds: float | None = None) -> Iterator[None]:
    """Raise Hung in a block that takes longer; main thread only."""

    def expired(number: int, frame: Any) -> None:
        raise Hung

    earlier = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, SECONDS if seconds is None else seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Address space capped inside the block, where the system can."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        yield
        return
    earlier = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (GIBIBYTES << 30), earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, earlier)


def _distinct(findings: Sequence[dict[str, Any]], shown: int = 40) -> list[dict[str, Any]]:
    """One of each kind: findings that end alike in one reader are one."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for finding in findings:
        seen.setdefault((finding["reader"], finding["report"].strip().splitlines()[-1][:60]), finding)
    return list(seen.values())[:shown]
