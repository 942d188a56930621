"""``python -m pluribus``, and what ``torchrun -m pluribus`` starts."""

from __future__ import annotations

from pluribus.cli import main

if __name__ == "__main__":
    main()
