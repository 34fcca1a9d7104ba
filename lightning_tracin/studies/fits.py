"""Build a fit from its settings, ready to start; every build has the same data, first weights and schedule."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pytorch_lightning as pl
import torch
from cachetools import LRUCache, cached
from datasets import Dataset, concatenate_datasets
from pytorch_lightning.callbacks import EarlyStopping

from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.language_keys import file_part
from lightning_tracin.storage.languages import own_languages
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.datasets.cloned_split import Shared, cloned
from lightning_tracin.studies.models.classifier import Classifier, tokenizer_and_model
from lightning_tracin.studies.quiet import quiet_trainer, silence_own_process
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import TextDataModule
from lightning_tracin.trainer.refits import Fit


@dataclass(frozen=True)
class Variant:
    """How the train samples of a fit differ from those of the other fits.

    Attributes:
        without: train language that is left out, and so becomes zero-shot.
        more: train language that gets more samples.
        per_cent: number of added samples, in per cent of the language's train samples.
        shared: part of the words that languages share: 0 or 1, see `datasets.cloned_split`. None leaves the texts as they are.

    Example:
        >>> Variant(without="de").name, Variant(more="de", per_cent=50).name, Variant(shared=0).name
        ('-without-de', '-de+50', '-shared0')
    """

    without: str | None = None
    more: str | None = None
    per_cent: int = 0
    shared: Shared | None = None

    @property
    def name(self) -> str:
        """Its part of a run directory's name."""
        if self.shared is not None:
            return f"-shared{self.shared}"
        if self.without is not None:
            return f"-without-{file_part(self.without)}"
        return "" if self.more is None else f"-{file_part(self.more)}+{self.per_cent}"


@dataclass(frozen=True)
class FitRecipe:
    """Everything that a fit depends on except its seed, in plain types that can be sent to other processes.

    Attributes:
        options: data, model and schedule; here, `probes_per_language` is the number of candidates.
        extra: number of additional train samples of each language that are set aside.
        chosen: positions of the probes among the candidates; None uses all.
        variant: how the train samples differ from those of the other fits.
        stop_after: epochs after which the fit stops, although its schedule is longer; None trains for all epochs.
        patience: epochs without a better loss on the test samples after which the fit stops; None never stops early.
    """

    options: FitSettings
    extra: int = 0
    chosen: tuple[int, ...] | None = None
    variant: Variant = Variant()
    stop_after: int | None = None
    patience: int | None = None


class StopAfter(pl.Callback):
    """Stops a fit after some epochs without changing its schedule."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Ask the Trainer to stop after the last epoch."""
        if trainer.current_epoch + 1 >= self._epochs:
            trainer.should_stop = True


def build(recipe: FitRecipe) -> Fit:
    """Build a fit of a classifier; its first weights depend on the current random seed, not on the variant.

    Raises:
        TracInError: data or model cannot be loaded, no train sample is in the variant's language, or there are too few additional
            samples for it.
    """
    silence_own_process()
    options = recipe.options
    if options.threads or options.model == "small":  # its steps are too short to use several threads
        torch.set_num_threads(options.threads or 1)
    data, split = prepared(options, recipe.extra, recipe.variant.shared)
    _, model = tokenizer_and_model(options, split)
    module = Classifier(model, learning_rate=options.learning_rate, warmup=options.warmup, weight_decay=options.weight_decay)
    callbacks: list[pl.Callback] = []
    if recipe.stop_after is not None:
        callbacks.append(StopAfter(recipe.stop_after))
    validation = None
    if recipe.patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=recipe.patience))
        validation = data.predict_dataloader()
        validation.generator = torch.Generator()  # otherwise it draws from the global one, which changes the fit's dropout
    trainer = quiet_trainer(max_epochs=options.epochs, callbacks=callbacks)
    probes = data.probes if recipe.chosen is None else data.probes.select(recipe.chosen)
    loader = data.loader(_train_samples(data, recipe), shuffle=True)
    return Fit(module, trainer, loader, data.loader(probes), validation)


def _train_samples(data: TextDataModule, recipe: FitRecipe) -> Dataset:
    variant = recipe.variant
    named = variant.without if variant.more is None else variant.more
    if named is None:
        return data.train
    languages = data.train.with_format(None)["language"][:]
    varied = own_languages([named], languages).get(named)
    if varied is None:
        raise TracInError(f"No train sample is in {named!r}; they are in {', '.join(sorted(set(languages)))}: name one of these.")
    if variant.more is None:
        return data.train.select([i for i, language in enumerate(languages) if language != varied])
    count = round(variant.per_cent / 100 * languages.count(varied))
    here = [i for i, language in enumerate(data.extra.with_format(None)["language"]) if language == varied]
    if count > len(here):
        raise TracInError(
            f"{variant.per_cent} % more {variant.more!r} are {count} samples, but only {len(here)} are set aside; add fewer."
        )
    more: Dataset = concatenate_datasets([data.train, data.extra.select(here[:count])])
    more.set_format(**data.train.format)
    return more


@cached(LRUCache(2), key=lambda options, extra, shared=None: (json.dumps(asdict(options)), extra, shared))
def prepared(options: FitSettings, extra: int, shared: Shared | None = None) -> tuple[TextDataModule, Split]:
    """Load the samples as batches and as text, cached for the next fit in this process.

    Args:
        options: the data.
        extra: number of additional train samples of each language.
        shared: see `Variant`.
    """
    split, _ = load_split(options, extra=extra)
    if shared is not None:
        split = cloned(split, shared)
    with torch.random.fork_rng(devices=[]):
        tokenizer, _ = tokenizer_and_model(options, split)
    return TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length), split
