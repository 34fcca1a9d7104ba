"""Progress bars of our own: none, tqdm's, or rich's where the Trainer has those."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, cast

from tqdm.auto import tqdm


class RichBars:
    """Bars of rich in a fit with a `RichProgressBar`, whose display is paused for as long as one of them is shown.

    Args:
        callback: the Trainer's `RichProgressBar`.
    """

    def __init__(self, callback: Any) -> None:
        self._callback = callback

    def bar(self, items: Iterable[Any] | None, **shown: Any) -> tqdm[Any]:
        """A bar, as `tqdm` makes it."""
        from tqdm import TqdmExperimentalWarning
        from tqdm.rich import tqdm_rich

        display = self._callback.progress
        paused = display is not None and display.live.is_started

        class Bar(tqdm_rich):  # type: ignore[type-arg]
            def close(self) -> None:
                was_open = not self.disable
                super().close()
                if paused and was_open:
                    display.start()

        if paused:  # a console has one live display; without `transient`, stopping it leaves a copy on the console
            kept, display.live.transient = display.live.transient, True
            display.stop()
            display.live.transient = kept
        options = {"transient": True, **({} if display is None else {"console": display.console})}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmExperimentalWarning)
            return cast("tqdm[Any]", Bar(items, options=options, **shown))


#: False for no bars, True for tqdm's.
Progress = bool | RichBars


def progress_of(callback: Any) -> Progress:
    """The bars that go with the Trainer's own.

    Args:
        callback: the Trainer's `progress_bar_callback`. None: it shows no bars.

    Example:
        >>> progress_of(None)
        False
        >>> from pytorch_lightning.callbacks import TQDMProgressBar
        >>> progress_of(TQDMProgressBar())
        True
    """
    if callback is None:
        return False
    is_rich = any(parent.__name__ == "RichProgressBar" for parent in type(callback).__mro__)  # of either Lightning package
    return RichBars(callback) if is_rich else True


def tracked(progress: Progress, items: Iterable[Any] | None = None, **shown: Any) -> tqdm[Any]:
    """A progress bar; `update` and `close` are those of `tqdm`.

    Args:
        progress: which one.
        items: to iterate over. None: `update` says how far it is.
        shown: `total`, `desc`, `unit` and `delay`, as for `tqdm`.

    Example:
        >>> list(tracked(False, [1, 2], desc="numbers"))
        [1, 2]
    """
    if isinstance(progress, RichBars):
        return progress.bar(items, **shown)
    return tqdm(items, disable=not progress, **shown)
