"""Ways to damage a file: its bytes, its lines and cells, or what its JSON says."""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
import struct
from typing import Any

INTERESTING = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\n", b"\r", b"\t", b",", b"{", b"]", b"\\", b"\\ud800", b"NaN",
    b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b"&a [*a]", b"\xe2\x80\xa8", b"../../x", b"\x1b[2J", b"null",
    b"A" * 70000,
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 2**31, 2**63, 2**64, 10**30, float("inf"), float("nan"), 1e308, "", " ",
    "0", "\0", "a\nb", "\ud800", "../../x", "/etc/passwd", "x" * 5000, [], {}, [None], [[]], {"": None},
    {"a": {"b": []}},
    "mlp.gate_proj", "self_attn.q_proj", "China", "A", "demo", "\x1b[2J", "\u202e",
)  # fmt: skip


def mutated(content: bytes, name: str, source: random.Random) -> bytes:
    """A damaged copy of a file's content; `name` tells what it is a file of."""
    if name.endswith(".gz") and source.random() < 0.6:
        return gzip.compress(mutated(gzip.decompress(content), name[:-3], source), 1)
    choices = [_bytes]
    if name.endswith((".json", ".jsonl")):
        choices += [_json, _json]
    if name.endswith(".yaml"):
        choices += [_yaml, _yaml]
    if name.endswith(".safetensors"):
        choices += [_header, _header]
    if name.endswith((".csv", ".tsv", ".txt", ".jsonl", ".yaml")):
        choices += [_lines]
    if name.endswith((".csv", ".tsv", ".txt")):
        choices += [_cells, _cells]
    return source.choice(choices)(content, source)


def _bytes(content: bytes, source: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 5))):
        at = source.randrange(len(data) + 1)
        end = min(len(data), at + source.choice((1, 4, 30, 300)))
        kind = source.randrange(6)
        if kind == 0:
            for _ in range(source.choice((1, 1, 8))):
                if data:
                    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end] * source.choice((1, 3))
        elif kind == 4:
            data[at:at] = source.choice(INTERESTING)
        else:
            data[at:end] = source.choice((source.randbytes(end - at), source.choice(INTERESTING)))
    return bytes(data)


def _lines(content: bytes, source: random.Random) -> bytes:
    lines = content.split(b"\n")
    at, other = source.randrange(len(lines)), source.randrange(len(lines))
    kind = source.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[other])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines.insert(at, source.choice(INTERESTING))
    return b"\n".join(lines)


def _cells(content: bytes, source: random.Random) -> bytes:
    separator = b"\t" if content.count(b"\t") > content.count(b",") else b","
    lines = content.split(b"\n")
    at = source.randrange(len(lines))
    cells = lines[at].split(separator)
    new = source.choice((*INTERESTING, b"0", b"2.5", b"-7", b"UK", b"Atlantis", b"A", b"1e30", b"inf", b"nan"))
    cells[source.randrange(len(cells))] = new
    lines[at] = separator.join(cells)
    return b"\n".join(lines)


def _json(content: bytes, source: random.Random) -> bytes:
    try:
        text = content.decode("utf-8-sig")
        values = [json.loads(text)]
        ending = ""
    except ValueError:
        try:
            values = [json.loads(line) for line in text.split("\n") if line]
            ending = "\n"
        except (ValueError, UnboundLocalError):
            return _bytes(content, source)
    at = source.randrange(len(values))
    values[at] = changed(values[at], source)
    return _encoded("\n".join(json.dumps(value) for value in values) + ending, source)


def _yaml(content: bytes, source: random.Random) -> bytes:
    import yaml

    return _encoded(json.dumps(changed(yaml.safe_load(content), source)), source)


def _header(content: bytes, source: random.Random) -> bytes:
    """The header changed and its length right, without the content hash: what lies behind the hash is to be reached."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    metadata = header["__metadata__"]
    if source.random() < 0.9:
        metadata.pop("content", None)
    if source.random() < 0.3:
        header = changed(header, source)
    else:
        key = source.choice(sorted(metadata))
        try:
            metadata[key] = json.dumps(changed(json.loads(metadata[key]), source))
        except ValueError:
            metadata[key] = str(source.choice(VALUES))
    text = _encoded(json.dumps(header), source)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def changed(value: Any, source: random.Random) -> Any:
    """A copy of a JSON value with one or two of its places altered."""
    value = copy.deepcopy(value)
    for _ in range(source.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(source.choice(VALUES))
        holder, key = source.choice(places)
        kind = source.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[source.randrange(len(holder))]))
        elif kind == 1:
            holder[str(source.choice(VALUES))] = copy.deepcopy(holder[key])
        elif kind == 2:
            holder[key] = copy.deepcopy(_at(source.choice(places)))
        elif kind == 3 and isinstance(holder[key], str):
            holder[key] = holder[key] + str(source.choice(VALUES))
        elif kind == 4 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = source.choice((holder[key] + 1, -holder[key], holder[key] * 1e12, str(holder[key])))
        elif kind == 5:
            holder[key] = _nested(source.choice((20, 400)))
        else:
            holder[key] = copy.deepcopy(source.choice(VALUES))
    return value


def _places(value: Any) -> Any:
    """(container, key) of everything inside; of long lists a few."""
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for key in range(min(len(value), 12)):
            yield value, key
            yield from _places(value[key])


def _at(place: tuple[Any, Any]) -> Any:
    return place[0][place[1]]


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _encoded(text: str, source: random.Random) -> bytes:
    """UTF-8; now and then an escape becomes what no UTF-8 file holds, or a number one of thousands of digits."""
    if source.random() < 0.02:
        text = re.sub(r"\d+", "7" * 5000, text, count=1)
    return text.encode("utf-8", "surrogatepass")
