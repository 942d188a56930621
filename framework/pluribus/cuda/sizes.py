"""Of how many rows and tokens work is captured; no torch, since plans count what that takes."""

from __future__ import annotations

SIZES = (1, 2, 4, *range(8, 32, 8), *range(32, 128, 16), *range(128, 256, 32), *range(256, 513, 64))
"""Numbers of rows that decode passes are captured for, beside the most that there can be."""
TOKENS = (16, 32, 64, 128, 192, *(n << i for i in range(4, 9) for n in range(16, 32, 4)), 8192)
"""Numbers of tokens that the layers are captured for: 16 to 8,192, from 256 on at most a quarter
more than there are."""
AT_START = 1024
"""Up to so many tokens, they are captured before the first request, as the largest step is; others
beyond, when they come up."""
ROWS = (1, 4, 16, 64, 256)
"""Numbers of rows that sampling is captured for, beside the most that there can be."""
