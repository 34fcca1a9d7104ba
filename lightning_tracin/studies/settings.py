"""Every setting of a fit and of a study, with its default and its meaning."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

from lightning_tracin.analysis.baselines import BASELINES
from lightning_tracin.config import DAMPING
from lightning_tracin.errors import TracInError, unquoted
from lightning_tracin.studies.named_scores import SCORES
from lightning_tracin.studies.registry import all_experiments, chosen_experiments, experiment_named, optional_names, summaries
from lightning_tracin.trainer.process_pool import own_cores

_SomeOptions = TypeVar("_SomeOptions")


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """Data, model and schedule of one fit of a multilingual classifier.

    The defaults are names from the Unicode CLDR, a small model, five train languages, and three zero-shot languages.

    Args:
        data: ``cldr``, ``xnli``, ``paws-x``, a path with ``{language}`` in it, the path of one .csv, .tsv, .jsonl or .conll
            file with a language column (or a column for each language), or the name of any data set on the Hugging Face hub.
        data_dir: The folder that paths in ``data`` and ``probe_data`` are relative to.
        probe_data: Like ``data``, for probes and test samples in files of their own; by default they are taken out of
            ``data``, by whole items.
        train_split: The hub data set's split to train on; ``train[:20000]`` uses the first rows only.
        probe_split: The hub data set's split to probe and test on; by default ``validation`` for xnli and paws-x, otherwise the
            probes are taken out of the train split.
        config_name: The hub data set's configuration; ``{language}`` in it is replaced by the language.
        train_languages: The languages to train on; required for hub data sets other than xnli and paws-x.
        probe_languages: The languages to probe and test; one that is not trained on is zero-shot.
        text_column: The column of the text; ``{language}`` in this or another column's name is replaced by the language.
        text_pair_column: The column of the second text, for pairs.
        label_column: The column of the label.
        language_column: The column of the language, if one table holds several languages.
        item_column: The column whose value translations share; by default they share the row number.
        header: The names of the columns, for files without a header; a file that has one all the same is refused.
        parallel: Whether samples with the same item are translations; then only items that all languages have are used.
        drop_texts: Placeholder texts; rows with one of them are dropped and counted.
        merge_labels: New names of labels, such as ``{"1": "negative", "3": null}``; null drops the label's rows.
        differing_labels: What to do with items whose translations have different labels: ``drop`` leaves them out in every
            language and counts them, ``keep`` keeps them, ``error`` refuses the data.
        train_per_language: Number of train samples of each language; in parallel data, the same items in every language.
        probes_per_language: Number of probes of each language.
        test_per_language: Largest number of test samples of each language.
        share_items: Whether the train data may contain translations of the probes.
        different_items: Whether every train language has items of its own, so that no train sample is a translation of another;
            for parallel data.
        model: ``small`` trains a tokenizer and a small XLM-R from scratch; ``use-multilingual`` is a pretrained sentence encoder
            of 16 languages, whose weights an installed package ships; otherwise a name on the hub, such as
            ``xlm-roberta-base``, or a folder.
        freeze_embeddings: Whether the embeddings of word pieces keep their values; frozen parameters are not scored.
        vocabulary_size: Largest vocabulary of the small model's tokenizer.
        hidden_size: Width of the small model.
        layers: Number of layers of the small model.
        heads: Number of attention heads in each layer of the small model.
        max_length: Largest number of tokens of a sample; longer samples are truncated.
        dropout: Dropout of all layers in training; by default the model's own.
        pretraining_epochs: Epochs of masked language modelling on all texts, without labels, before a small model is fine-tuned.
        pretraining_batch_size: Texts in one optimizer step of pre-training.
        pretraining_learning_rate: Highest learning rate of pre-training.
        epochs: Epochs of fine-tuning; a snapshot is taken after each.
        batch_size: Samples in one optimizer step.
        learning_rate: Highest learning rate, reached by a linear warm-up and followed by a linear decay to zero.
        warmup: Fraction of the optimizer steps in the warm-up.
        weight_decay: Weight decay of AdamW.
        threads: Number of PyTorch threads; by default one for the small model, whose steps are too short to use several (on a
            busy machine, threads waiting for each other make them many times slower), otherwise PyTorch's own default.
        seed: Seed of the split, the first weights and the order of samples.
    """

    data: str = "cldr"
    data_dir: str = "."
    probe_data: str | None = None
    train_split: str = "train"
    probe_split: str | None = None
    config_name: str | None = None
    train_languages: list[str] | None = None
    probe_languages: list[str] | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    language_column: str | None = None
    item_column: str | None = None
    header: list[str] | None = None
    parallel: bool = True
    drop_texts: list[str] | None = None
    merge_labels: dict[str, str | None] | None = None
    differing_labels: Literal["error", "drop", "keep"] = "error"
    train_per_language: int = 400
    probes_per_language: int = 30
    test_per_language: int = 400
    share_items: bool = False
    different_items: bool = False
    model: str = "small"
    freeze_embeddings: bool = False
    vocabulary_size: int = 600
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    max_length: int = 64
    dropout: float | None = None
    pretraining_epochs: int = 0
    pretraining_batch_size: int = 32
    pretraining_learning_rate: float = 1e-3
    epochs: int = 6
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_languages", "probe_languages"):
            _require_names(f"fit.{name}", getattr(self, name))
        _require_names("fit.merge_labels", None if self.merge_labels is None else list(self.merge_labels))


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """Run a study: which languages' train samples does a fine-tuned model rely on, and can influence be trusted to tell?

    Every study includes tables of reliance, their changes between epochs, and reinforcing samples (E1, E3 to E6), by influence
    and by baselines; the experiments below are additional.

    Args:
        name: Name of the study; its folder is ``output/name``.
        fit: Data, model and schedule, as for a single fit.
        output: Folder of all studies.
        seeds: Number of seeds; each has a fit with different first weights (of the head, if the model is pre-trained) and a
            different order of samples.
        experiments: Experiments that need more fits, any of: {experiments}.
        options: Options of single experiments: the experiment's name, then its options.
        scores: Scores to compare. The first one is the study's own score, on which all tables are based.
        baselines: Baselines that need no gradients, compared with the scores.
        influence_seeds: Number of seeds whose fits are attributed; None: all. Influence varies less over seeds than what refits
            measure, and takes longer.
        contribution_seeds: Number of seeds whose fits are also accounted for (ContributionCallback), so that contributions are
            compared, too; an account takes longer than all scores together. 0: none.
        top_k: Number of strongest train samples of a probe to count.
        correct_probes: Whether to keep only probes that the fits of all seeds classify correctly, as in the original study.
        candidates_per_language: Number of samples of each language from which the probes are chosen; by default five times the
            number of probes.
        patience: Epochs without a better loss on the test samples after which a fit stops; None trains for all epochs.
        ks: Numbers of samples that ``removal`` removes.
        draws: Number of random removals of each size.
        removal_seeds: Number of seeds of ``removal``.
        removal_scores: Scores and baselines that ``removal`` uses at every k, in addition to the study's own score.
        area_scores: Scores and baselines that it uses only at every third k, for the area; None uses all others.
        subsets: Number of random halves that ``lds`` fits on.
        variant_seeds: Number of seeds of ``zero_shot``, ``imbalance`` and ``masks``.
        zero_shot: Train languages that ``zero_shot`` leaves out, one at a time; None uses all.
        imbalance: Train languages to which ``imbalance`` adds samples, one at a time; None uses all.
        amounts: Numbers of samples that it adds to a language, in per cent of the language's samples.
        kept_heads: Fraction of the attention heads that a language's mask keeps.
        random_masks: Number of random masks of the same size to compare with.
        projection_dim: Number of features of the Fisher-whitened scores.
        workers: Number of fits to run at the same time, in processes of their own; None means one per core.
        wandb_mode: Whether and how tables and figures are logged to W&B.
    """

    name: str
    fit: FitSettings = dataclasses.field(default_factory=FitSettings)
    output: str = "runs/studies"
    seeds: int = 1
    experiments: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    scores: list[str] = dataclasses.field(
        default_factory=lambda: ["cosine", "dot product", "dot product x learning rate", "relatif"]
    )
    baselines: list[str] = dataclasses.field(default_factory=lambda: list(BASELINES))
    influence_seeds: int | None = None
    contribution_seeds: int = 0
    top_k: int = 100
    correct_probes: bool = True
    candidates_per_language: int | None = None
    patience: int | None = None
    ks: list[int] = dataclasses.field(default_factory=lambda: [50, 100, 150, 200, 250])
    draws: int = 3
    removal_seeds: int = 1
    removal_scores: list[str] = dataclasses.field(default_factory=lambda: ["cosine", "same label", "BM25 x same label"])
    area_scores: list[str] | None = None
    subsets: int = 40
    variant_seeds: int = 1
    zero_shot: list[str] | None = None
    imbalance: list[str] | None = None
    amounts: list[int] = dataclasses.field(default_factory=lambda: [25, 50, 75, 100])
    kept_heads: float = 0.5
    random_masks: int = 3
    projection_dim: int = 4096
    workers: int | None = 1
    wandb_mode: Literal["offline", "online", "disabled"] = "offline"

    @property
    def candidates(self) -> int:
        """Number of samples of each language from which the probes are chosen.

        Example:
            >>> StudySettings(name="small", fit=FitSettings(probes_per_language=30)).candidates
            150
        """
        if self.candidates_per_language is not None:
            return self.candidates_per_language
        return self.fit.probes_per_language * (5 if self.correct_probes else 1)

    @property
    def processes(self) -> int:
        """Number of fits to run at the same time."""
        return own_cores() if self.workers is None else self.workers

    @property
    def extra_per_language(self) -> int:
        """Number of additional train samples of each language that the experiments need."""
        needed = (one.extra_samples(self) for one in chosen_experiments(self.experiments) if one.extra_samples is not None)
        return max(needed, default=0)

    def options_of(self, kind: type[_SomeOptions]) -> _SomeOptions:
        """The options of the experiment whose options have this class."""
        declared = next(one for one in all_experiments() if one.options is kind)
        found: _SomeOptions = declared.parsed(self.options.get(declared.name, {}))
        return found

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        for name, given in self.options.items():
            experiment_named(name).parsed(given)
        for experiment in chosen_experiments(self.experiments):
            if experiment.check_settings is not None:
                experiment.check_settings(self)

    def _check_names(self) -> None:
        for name in ("zero_shot", "imbalance"):
            _require_names(name, getattr(self, name))
        every = [*SCORES, *BASELINES]
        for field, known in (
            ("scores", SCORES),
            ("baselines", BASELINES),
            ("removal_scores", every),
            ("area_scores", every),
            ("experiments", optional_names()),
        ):
            unknown = [one for one in getattr(self, field) or () if one not in known]
            if unknown:
                raise TracInError(f"{field} has {unknown[0]!r}, but should have some of: {', '.join(known)}.")
        if not self.scores:
            raise TracInError("scores is empty, but a study needs at least one score, such as cosine.")
        if SCORES[self.scores[0]].damping != DAMPING:
            raise TracInError(f"{self.scores[0]!r} has a ridge of its own, which tables by layer lack; put another score first.")

    def _check_numbers(self) -> None:
        for name in ("seeds", "top_k", "draws", "removal_seeds", "variant_seeds", "subsets", "random_masks", "projection_dim"):
            if getattr(self, name) < 1:
                raise TracInError(f"{name} should be 1 or more, but is {getattr(self, name)}.")
        if self.contribution_seeds < 0:
            raise TracInError(f"contribution_seeds should be 0 or more, but is {self.contribution_seeds}.")
        attributed = self.seeds if self.influence_seeds is None else self.influence_seeds
        if not 1 <= attributed <= self.seeds:
            raise TracInError(f"influence_seeds should be 1 to seeds={self.seeds}, but is {attributed}.")
        for name in ("removal_seeds", "variant_seeds", "contribution_seeds"):
            if getattr(self, name) > attributed:
                what = f"seeds={self.seeds}" if self.influence_seeds is None else f"influence_seeds={attributed}"
                raise TracInError(f"{name}={getattr(self, name)} is more than {what}.")
        if self.fit.test_per_language < 1:
            raise TracInError("fit.test_per_language should be 1 or more, because a study reports the accuracy on test samples.")
        if not 0 < self.kept_heads < 1:
            raise TracInError(f"kept_heads should be between 0 and 1, but is {self.kept_heads}.")
        candidates, probes = self.candidates_per_language, self.fit.probes_per_language
        if candidates is not None and candidates < probes:
            raise TracInError(f"candidates_per_language={candidates} is less than probes_per_language={probes}.")


def _require_names(setting: str, given: Any) -> None:
    """Check that a setting is a list of names of languages, or None.

    Raises:
        TracInError: it is not.
    """
    if given is not None and not isinstance(given, list | tuple):
        raise TracInError(f"{setting} should be a list of languages, but is {given!r}.")
    for value in given or ():
        if not isinstance(value, str):
            raise unquoted(setting, value)


class _Help:
    """A docstring that names the registered experiments; built on access, because importing them takes seconds."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, instance: object, owner: type) -> str:
        return self._text.replace("{experiments}", summaries())


StudySettings.__doc__ = _Help(str(StudySettings.__doc__))  # type: ignore[assignment]
