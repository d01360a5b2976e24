"""`python -m inlay`, and what `accelerate launch -m inlay` starts."""

from __future__ import annotations

from inlay.cli import main

if __name__ == "__main__":
    main()
