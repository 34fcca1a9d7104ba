"""Where results go: the Trainer's own loggers, each through a sink."""

from lightning_tracin.reporting.loggers.base import Sink, sinks_for

__all__ = ["Sink", "sinks_for"]
