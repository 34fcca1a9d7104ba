"""What to do where a `training_step` does not give its samples' own losses: the lines to paste, for the module's own task."""

from __future__ import annotations

from typing import Any

from torch import nn

_PLAIN = "return per_sample({model}(**batch).logits, batch['labels'])"

#: End of a model's class name -> the body of its `per_sample_loss`.
_BODIES = {
    "ForSequenceClassification": _PLAIN,
    "ForTokenClassification": _PLAIN,
    "ForMultipleChoice": _PLAIN,
    "ForMaskedLM": _PLAIN,
    "ForPreTraining": _PLAIN,
    "ForConditionalGeneration": _PLAIN,
    "ForSeq2SeqLM": _PLAIN,
    "ForCausalLM": "return per_sample({model}(**batch).logits, batch['labels'], shift=True)",
    "LMHeadModel": "return per_sample({model}(**batch).logits, batch['labels'], shift=True)",
    "ForQuestionAnswering": "found = {model}(**batch)\n"
    "length = found.start_logits.shape[1]\n"
    "ends = (found.start_logits, batch['start_positions']), (found.end_logits, batch['end_positions'])\n"
    "return sum(per_sample(logits, at.clamp(max=length), ignore_index=length) for logits, at in ends) / 2",
}

#: The same for problems of a model `ForSequenceClassification`, by `config.problem_type`.
_OF_PROBLEM = {
    "regression": "return ({model}(**batch).logits.squeeze(-1) - batch['labels']).square()",
    "multi_label_classification": "return per_sample({model}(**batch).logits, batch['labels'].float())",
}

_GENERIC = "return per_sample(self(batch), batch['labels'])  # logits and labels of your model"


def remedy_for(module: nn.Module) -> str:
    """How to say what one sample's loss is, in a sentence and the lines to paste.

    Args:
        module: a LightningModule; its task is that of the transformers model in it, known by the name of its class.

    Example:
        >>> class XLMRobertaForTokenClassification(nn.Module): ...
        >>> module = nn.Module()
        >>> module.net = XLMRobertaForTokenClassification()
        >>> print(remedy_for(module))
        Add a method `per_sample_loss(self, batch)` to the LightningModule that returns one loss for each sample:
        <BLANKLINE>
            def per_sample_loss(self, batch):
                from lightning_tracin.losses import per_sample
        <BLANKLINE>
                return per_sample(self.net(**batch).logits, batch['labels'])
    """
    lines = ["def per_sample_loss(self, batch):", "    from lightning_tracin.losses import per_sample", ""]
    body = [f"    {line}" for line in _body(module).split("\n")]
    text = "\n".join(f"    {line}".rstrip() for line in [*lines, *body])
    return f"Add a method `per_sample_loss(self, batch)` to the LightningModule that returns one loss for each sample:\n\n{text}"


def _body(module: nn.Module) -> str:
    for name, part in module.named_modules():
        kind = next((end for end in _BODIES if type(part).__name__.endswith(end)), None)
        if kind is None:
            continue
        config: Any = getattr(part, "config", None)
        problem = getattr(config, "problem_type", None) or ("regression" if getattr(config, "num_labels", 0) == 1 else None)
        body = _OF_PROBLEM.get(str(problem), _BODIES[kind]) if kind == "ForSequenceClassification" else _BODIES[kind]
        return body.format(model=_called(module, name))
    return _GENERIC


def _called(module: nn.Module, name: str) -> str:
    """How the module calls the part: by the outermost attribute that passes its arguments on (PEFT's wrappers do)."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        if hasattr(module.get_submodule(".".join(parts[:end])), "get_base_model"):
            return f"self.{'.'.join(parts[:end])}"
    return f"self.{name}" if name else "self"
