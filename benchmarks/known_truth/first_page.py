"""docs/known-truth.md: the findings of every model that has a page beside it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.known_truth.model_page import findings_of, read_parts
from benchmarks.known_truth.plan import MODELS

_HEAD = """# Known truth: what each number is worth where the answer is known

Written by `python -m benchmarks.known_truth --data_dir FOLDER`; change the code, not this page. `--models NAME` measures one
model and `--arms NAME` one arm; the pages are then made from it and from what `docs/known-truth` holds of the others.

Languages are made from one: each clone maps the words of real text one-to-one to words of its own, and a part p of the
different words is the same in all. So it is known what a language can have from another. A model is fitted on all of them with
the package's callbacks, and fitted again without each language, with the same first weights and the same batches in the same
order. What is true is *need*: by how many nats the loss of a language's probes rises without a train language.
"""

_TAIL = """
## What this cannot say

- Two of the models are small and start from nothing. The pretrained encoder knows the words that languages share and none of a
  clone's own: it has to learn those from a few hundred documents.
- A clone is the same language in other words: grammar, topics and label proportions are those of English.
- At p = 0 languages still share a head, a hidden layer and the proportions of labels; need says what that is worth.
- Need is one kind of truth: it takes one language out of all. Where documents are parallel, no single language is needed, and
  what the languages are worth together is said by Shapley values.
"""

_WORDS = """## Words

A cell *claims* help if its 95 % interval is above its null (shares) or above 0 (means, contrasts, contributions), and need does
if it is above 0 by two standard errors over seeds. *Other / own* is the mean value of other languages in parts of that of own
languages. Agreement is Pearson's correlation with need over the cells of other languages, as they are / without row and column
effects. `identity` is 1 for the own language, `shared words` the part of a language's probe words that the train language has,
`same label` and `BM25 x same label` look at no gradient either.
"""


def first_page(first: Path) -> str:
    """The first page in Markdown: the findings of every model that has a page beside it."""
    parts = []
    for model, about in MODELS.items():
        stored = read_parts(first.with_suffix("") / f"{model}.json")
        if stored is not None:
            said = "\n".join(f"- {sentence}" for sentence in findings_of(stored))
            more = f"Every table: [known-truth/{model}.md](known-truth/{model}.md)."
            parts.append(f"\n## {model}: {about}\n\n{said}\n\n{more}\n")
    return f"{_HEAD}{''.join(parts)}\n{_WORDS}{_TAIL}"
