"""Options are defined once: the command line shows each with its help, and what is not possible is one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lightning_tracin import TracInCallback, TracInError
from lightning_tracin.config import Options, Scoring, Stored, View
from lightning_tracin.storage.records import RunRecord


def test_a_command_line_shows_every_option_with_its_help() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(TracInCallback, "tracin")
    said = re.sub(r"\s+", "", parser.format_help())  # lines may end within a word, at a hyphen
    for name, field in Options.model_fields.items():
        assert f"--tracin.{name}" in said
        assert field.description
        assert re.sub(r"\s+", "", field.description) in said, name


def test_values_from_a_file_reach_the_options() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TracInCallback, "callback")
    told = {"dirpath": "runs/x", "top_k": 7, "text_columns": ["a", "b"], "every_n_train_steps": 5, "similarity": "dot"}
    section = {"class_path": "lightning_tracin.TracInCallback", "init_args": told}
    options = parser.instantiate_classes(parser.parse_object({"callback": section})).callback.options
    assert options == Options(top_k=7, text_columns=("a", "b"), every_n_train_steps=5, similarity="dot")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"similarity": "x"}, r"^similarity should be one of 'cosine', 'dot', 'relatif', but is 'x'\.$"),
        ({"when": "later"}, r"^when should be one of 'auto', 'fit_end', 'snapshot', 'never', but is 'later'\.$"),
        ({"top_k": 0}, r"^top_k should be 1 or more, but is 0\.$"),
        ({"batch_size": "many"}, r"^batch_size has the value 'many': Input should be a valid integer"),
        ({"parameters": "body.*"}, r"^parameters should be a list of strings, but is the string 'body\.\*'\.$"),
        ({"languages": "en"}, r"^languages should be a list of strings, but is the string 'en'\.$"),
        ({"topk": 5}, r"^There is no option 'topk'; the options are .*top_k"),
        ({"verbosity": 5}, r"^There is no option 'verbosity'; the options are .*top_k"),
    ],
)
def test_what_is_not_possible_is_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        TracInCallback("run", **given)


def test_reading_options_are_checked_too() -> None:
    with pytest.raises(TracInError, match=r"damping should be above 0, but is 0"):
        Scoring(damping=0)
    with pytest.raises(TracInError, match=r"^measure should be one of 'sum', 'mean', 'share', 'mass', but is 'total'\.$"):
        View(measure="total")  # type: ignore[arg-type]


def test_changing_nothing_gives_the_same_options() -> None:
    options = Options(top_k=3, mask=Path("mask.safetensors"))
    assert options.but(top_k=None) == options
    assert options.but(top_k=4).top_k == 4


def test_the_record_holds_the_options_whole_except_for_the_path_of_the_mask() -> None:
    options = Options(top_k=3, projection_dim=64, preconditioner="fisher", text_columns=("a",))
    assert Options.model_validate_json(options.model_dump_json()) == options
    assert "mask" not in Options(mask=Path("somewhere")).model_dump()
    assert set(Stored.model_fields) < set(Options.model_fields)
    assert RunRecord.model_fields["options"].annotation is Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact", "projection_dim": 64}, "method='exact' contradicts .* which choose 'projected'"),
        ({"method": "exact", "language_means": True}, "method='exact' contradicts .* which choose 'means'"),
        ({"method": "projected", "language_means": True}, "method='projected' needs a `projection_dim`"),
        ({"method": "projected"}, "method='projected' needs a `projection_dim`"),
        ({"method": "means", "projection_dim": 64}, "not both"),
        ({"method": "means", "preconditioner": "adam"}, "acts on single elements of a gradient; leave out `language_means`"),
        ({"method": "means", "mask": "mask.safetensors"}, "needs exact influence; leave out `language_means`"),
        ({"method": "exact", "projection_dim": 64, "preconditioner": "fisher"}, "contradicts"),
        ({"method": "own", "language_means": True}, "method='own' contradicts"),
    ],
)
def test_a_methods_name_and_the_options_that_choose_one_agree(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        Options(**options)


def test_a_method_chosen_by_name_is_the_one_chosen_by_options() -> None:
    assert Options(method="means").language_means
    assert Options(method="exact").method_name == Options().method_name
    assert Options(method="projected", projection_dim=8).method_name == Options(projection_dim=8).method_name


def test_a_value_of_two_kinds_is_named_by_both() -> None:
    with pytest.raises(TracInError, match=r"^damping should be a number or 'steps', but is 'step'\.$"):
        Scoring(damping="step")
    with pytest.raises(TracInError, match=r"^damping should be above 0, but is -1"):
        Scoring(damping=-1.0)
