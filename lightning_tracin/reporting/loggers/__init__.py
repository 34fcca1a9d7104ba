"""Sinks: they log a run's results through the Trainer's own loggers."""

from lightning_tracin.reporting.loggers.base import Sink, sinks_for

__all__ = ["Sink", "sinks_for"]
