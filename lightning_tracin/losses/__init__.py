"""Losses for a module's own `per_sample_loss`; pure torch."""

from lightning_tracin.losses.unreduced import per_sample

__all__ = ["per_sample"]
