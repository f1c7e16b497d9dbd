"""What an installed wheel must show without torch: its C++ core is there and ranks. Run by cibuildwheel."""

from __future__ import annotations

import numpy as np

from culnig_fast.selection import core, ranking

best, scores = ranking.rank(ranking.Source("s", np.array([[1.0, 3.0, 2.0]]), 2), None, np.array([[0, 3]]), 2)
if (core.implementation(), best.tolist(), scores.tolist()) != ("C++", [1, 2], [1.5, 1.0]):
    raise SystemExit(f"the wheel is broken: {core.implementation()}, {best}, {scores}")
print("the wheel's C++ core ranks as it should")
