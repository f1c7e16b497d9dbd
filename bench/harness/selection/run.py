"""One run: check, time in interleaved rounds, print, write."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import culnig_fast as cf
from culnig_fast.errors import CulnigError
from culnig_fast.files import refuse_existing, write_json
from culnig_fast.selection import core
from culnig_fast.selection.rules import select_specific_all
from harness.environment import environment
from harness.selection import others
from harness.selection.tables import make_tables

DICTIONARY_SHARE = 100
"""Dictionaries are timed on this part of the neurons and scaled: of 3.2 million they would take 20 GB."""

QUOTED = 3_200_000
"""The size of a 27B model: files are tried at the size next to it, and the JSON's `read_once_seconds` is of it."""


def run(options: argparse.Namespace) -> int:
    """See `selection_speed`; 1 when an implementation chose wrong."""
    if min(options.neurons) < 1 or options.rounds < 1 or options.threads < 1:
        raise CulnigError("--neurons, --rounds and --threads take numbers of at least 1")
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    if core.implementation() != "C++":
        raise CulnigError("the C++ core is not built; install the package with a C++17 compiler first")
    torch.set_num_threads(options.threads)
    document: dict[str, Any] = {"environment": environment(torch.device("cpu")), "rows": []}
    for neurons in sorted(options.neurons):
        tables = make_tables(neurons)
        read = _read_once(tables, options.rounds)
        rows = _measure(tables, options)
        if neurons == min(options.neurons, key=lambda n: abs(n - QUOTED)):
            rows += _mapped(tables, options)
            document["read_once_seconds"] = read
        for row in rows:
            row |= {"read_once_seconds": read, "over_read_once": row["seconds"] / read}
        document["rows"] += rows
        print(f"\n{tables[0].layout.size:,} neurons × 16 + 16 + 8 groups of float64; read once: {1e3 * read:.1f} ms")
        for row in rows:
            over = f"{row['over_read_once']:7.2f} × read once" if row["job"] != "topk" else ""
            memory = f"  +{row['extra_bytes'] / 1e6:,.0f} MB" if row.get("extra_bytes") is not None else ""
            wrong = "" if row["exact"] else "  OTHER NEURONS"
            name = f"{row['implementation']} ({row['threads']})"
            print(f"{row['job']:9} {name:34} {1e3 * row['seconds']:10.1f} ms {over}{memory}{wrong}", flush=True)
    if options.json is not None:
        write_json(options.json, document, overwrite=options.overwrite)
    return int(not all(row["exact"] for row in document["rows"]))


def _measure(tables: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    pools = [(others.pool_index(tables, modules), share) for modules, share in others.POOLS]
    whole = np.sort(np.concatenate([index for index, _ in pools]))
    values = tables[0].totals[0]
    k = int(len(values) * 0.01)
    expected: dict[str, Any] = {
        "general": others.general(tables, pools, others.sorted_top),
        "specific": others.specific(tables, whole, others.sorted_top),
        "topk": others.sorted_top(values, k),
    }
    jobs: list[tuple[str, str, int, Callable[[], Any]]] = []
    for threads in sorted({1, options.threads}):
        jobs += [
            ("general", "culnig_fast", threads, lambda: cf.select_general(*tables)),
            ("specific", "culnig_fast", threads, lambda: select_specific_all(*tables)),
            ("topk", "culnig_fast", threads, lambda threads=threads: core.core().top_k(values, k, threads)),
        ]
    for name, top in (("NumPy argpartition", others.numpy_top), ("full stable sort", others.sorted_top)):
        jobs += [
            ("general", name, 1, lambda top=top: others.general(tables, pools, top)),
            ("specific", name, 1, lambda top=top: others.specific(tables, whole, top)),
            ("topk", name, 1, lambda top=top: top(values, k)),
        ]
    jobs.append(("topk", "torch.topk", options.threads, lambda: others.torch_top(values, k)))
    rows = []
    timings = _interleaved([(job[3], job[2], job[1]) for job in jobs], options.rounds)
    for (job, name, threads, work), seconds in zip(jobs, timings, strict=True):
        got, extra = _with_memory(lambda work=work, t=threads, n=name: _limited(work, t, n))
        rows.append(_row(job, name, threads, tables, seconds, _same(got, expected[job], tables), extra))
    if tables[0].layout.size >= 10 * DICTIONARY_SHARE:
        rows.append(_dictionaries(tables[0].layout.size))
    return rows


def _dictionaries(neurons: int) -> dict[str, Any]:
    small = make_tables(max(51200, neurons // DICTIONARY_SHARE))
    scale = neurons / small[0].layout.size
    groups = [others.as_dictionaries(table) for table in small]
    start = time.perf_counter()
    others.general_of_dictionaries(small, groups)
    seconds = (time.perf_counter() - start) * scale
    row = _row("general", f"Python dictionaries, × {scale:.1f}", 1, small, [seconds], True, None)
    return row | {"neurons": neurons, "scaled_by": scale}


def _mapped(tables: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """From files: once with the pages dropped where the system lets us, then with them in memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.safetensors" for name in ("neur", "control", "surface")]
        for table, path in zip(tables, paths, strict=True):
            table.save(path)
        expected = cf.select_general(*tables)
        for name in ("culnig_fast, files not in memory", "culnig_fast, files in memory"):
            seconds = []
            for _ in range(options.rounds):
                if "not" in name:
                    _forget(paths)
                start = time.perf_counter()
                loaded = [cf.ScoreTable.load(path) for path in paths]
                got = cf.select_general(*loaded)
                seconds.append(time.perf_counter() - start)
                del loaded
            rows.append(_row("general", name, options.threads, tables, seconds, got == expected, None))
    return rows


def _forget(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _row(
    job: str, name: str, threads: int, tables: Any, seconds: list[float], exact: bool, extra: int | None
) -> dict[str, Any]:
    return {
        "job": job,
        "neurons": tables[0].layout.size,
        "implementation": name,
        "threads": threads,
        "seconds": min(seconds),
        "median_seconds": statistics.median(seconds),
        "exact": exact,
        "extra_bytes": extra,
    }


def _interleaved(jobs: list[tuple[Callable[[], Any], int, str]], rounds: int) -> list[list[float]]:
    """Seconds of each job in each round; one of every job a round, so that other load hits all alike."""
    seconds: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for (work, threads, name), found in zip(jobs, seconds, strict=True):
            if found and sum(found) > 6:  # slow ones have said enough
                continue
            start = time.perf_counter()
            _limited(work, threads, name)
            found.append(time.perf_counter() - start)
    return seconds


def _limited(work: Callable[[], Any], threads: int, name: str) -> Any:
    """The core takes as many threads as the process may use cores; one thread is measured on one core."""
    if name != "culnig_fast" or threads != 1:
        return work()
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        return work()
    finally:
        os.sched_setaffinity(0, mine)


def _read_once(tables: Any, rounds: int) -> float:
    """Least seconds to sum all tables once with torch on all threads: the floor."""
    tensors = [torch.from_numpy(table.totals) for table in tables]
    seconds = []
    for _ in range(max(5, rounds)):
        start = time.perf_counter()
        for tensor in tensors:
            tensor.sum()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _with_memory(work: Callable[[], Any]) -> tuple[Any, int | None]:
    """The result, and the most that resident memory rose above what it was; sampled, so short peaks may be missed."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return work(), None
    page = os.sysconf("SC_PAGE_SIZE")
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, int(statm.read_text().split()[1]))
            time.sleep(0.0005)

    start = int(statm.read_text().split()[1])
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return result, max(0, peak - start) * page


def _same(got: Any, expected: Any, tables: Any) -> bool:
    layout = tables[0].layout
    if isinstance(got, dict):
        return all(_same(got[name], expected[name], tables) for name in expected)
    flat = got.flat(layout) if isinstance(got, cf.NeuronSet) else np.asarray(got)
    return bool(np.array_equal(flat, expected))
