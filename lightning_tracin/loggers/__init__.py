"""Where results go: the Trainer's own loggers, each through a sink."""

from lightning_tracin.loggers.sinks import Sink, sinks_for

__all__ = ["Sink", "sinks_for"]
