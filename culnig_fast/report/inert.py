"""Data inside a page's script element, as JSON that can be nothing but data."""

from __future__ import annotations

import json
import re
from typing import Any


def script_json(value: Any) -> str:
    """JSON that can stand inside a `script` element: nothing in it ends the element or a line of a script."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
