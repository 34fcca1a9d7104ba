"""Documents that are drawn, about topics that a model can learn in a few steps."""

from __future__ import annotations

import numpy as np

from benchmarks.known_truth.documents import Document


def generated(count: int, labels: int = 3, seed: int = 0) -> list[Document]:
    """Documents of eight words, about half of which go with the label.

    Example:
        >>> [document.label for document in generated(4, labels=2)]
        ['label 0', 'label 1', 'label 0', 'label 1']
    """
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label = number % labels
        topic = (f"topic{label}x{word}" for word in generator.integers(25, size=8))
        other = (f"word{word}" for word in generator.integers(60, size=8))
        choice = generator.random(8) < 0.5
        found.append(Document(str(number), " ".join(np.where(choice, [*topic], [*other])), f"label {label}"))
    return found
