"""`python -m lightning_tracin`: the command, where it is not on the path, or where torchrun starts it."""

from __future__ import annotations

from lightning_tracin.cli.main import main

if __name__ == "__main__":
    main()
