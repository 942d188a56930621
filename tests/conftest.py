"""What all tests share."""

from __future__ import annotations

import os

# Tests run many small models and several processes side by side: threads only get in the way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
