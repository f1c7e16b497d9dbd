"""Which neurons of a large language model contribute to the right answer."""

from __future__ import annotations

from culnig_fast.attribution import attribute
from culnig_fast.attributor import Attributor
