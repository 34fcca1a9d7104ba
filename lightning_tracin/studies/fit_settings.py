"""What can be asked of a fit: every option, its default and its meaning."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """Data, model and schedule of one fit of a multilingual classifier.

    With no option: names from the Unicode CLDR, a small model, five training languages, three more that are only probed.

    Args:
        data: ``cldr``, ``xnli``, ``paws-x``, a path with ``{language}`` in it, the path of one .csv, .tsv or .jsonl file with
            a language column, or the name of any data set on the Hugging Face hub.
        data_dir: The folder that paths in ``data`` and ``probe_data`` are relative to.
        probe_data: Like ``data``, where probes and test samples are in files of their own; by default they are taken out of
            ``data``, by whole items.
        train_split: The hub data set's split to train on; ``train[:20000]`` takes the first rows only.
        probe_split: The hub data set's split to probe and test on; by default ``validation`` for xnli and paws-x, else the
            probes are taken out of the train split.
        config_name: The hub data set's configuration; ``{language}`` in it stands for the language.
        train_languages: The languages to train on; every data set but a hub one has a default.
        probe_languages: The languages to probe and test; one that is not trained on is zero-shot.
        text_column: The column of the text.
        text_pair_column: The column of the second text, for pairs.
        label_column: The column of the label.
        language_column: The column of the language, where one table holds several.
        item_column: The column that translations share; by default they share the row number.
        header: The names of the columns, for files without a header.
        parallel: Whether samples with the same item are translations; only items that all languages have are used then.
        drop_texts: Texts that are placeholders; such rows are dropped and counted.
        merge_labels: New names of labels, such as ``{"1": "negative", "3": null}``; null drops the label's rows.
        differing_labels: What to do with items whose translations do not have one label: ``drop`` leaves them out in every
            language and counts them, ``keep`` takes them as they are.
        train_per_language: Train samples of each language; of the same items if parallel.
        probes_per_language: Probes of each language.
        test_per_language: Test samples of each language at most.
        share_items: Let translations of the probes into the train data.
        model: ``small`` trains a tokenizer and a small XLM-R from scratch; else a name on the hub, such as
            ``xlm-roberta-base``, or a folder.
        vocabulary_size: Pieces of the small model's tokenizer at most.
        hidden_size: Width of the small model.
        layers: Layers of the small model.
        heads: Attention heads of the small model.
        max_length: Tokens of a sample at most.
        dropout: Of all layers in training; by default as the model has it.
        pretraining_epochs: Epochs of masked language modelling on all texts, labels unseen, before a small model is fine-tuned.
        pretraining_batch_size: Texts of an optimizer step there.
        pretraining_learning_rate: The highest one there.
        epochs: How often the train data are seen; there is a snapshot after each.
        batch_size: Samples of an optimizer step.
        learning_rate: The highest one; it is reached by a linear warm-up and decays linearly to zero.
        warmup: Share of the steps that warm up.
        weight_decay: AdamW's.
        threads: Of the processor; by default one for the small model, whose steps are too short to be shared (on a busy
            machine, threads that wait for each other make them many times slower), else as PyTorch likes.
        seed: Of the split, the weights and the order.
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
    model: str = "small"
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
