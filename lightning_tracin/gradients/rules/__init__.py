"""One rule per layer type: from a layer's input and the gradient of its output to its parameters' per-sample gradients.

A rule is a function ``(module, input, output_gradient, wanted) -> {parameter: form}`` declared with `@rule(LayerType)`.
It applies to a module only if the module's `forward` *is* that layer type's `forward`: a subclass that computes something else
must not inherit a wrong formula. RMSNorm, which every model library writes itself, is recognised by what it computes
(`recognition`). Parameters without a rule take the general ways of `shared` and `replay`, which are just as exact but slower.
"""

from lightning_tracin.gradients.rules import convolution, embedding, linear, norms
from lightning_tracin.gradients.rules.rule import FALLBACK, RULED, Rule, find_rule, rule

__all__ = ["FALLBACK", "RULED", "Rule", "convolution", "embedding", "find_rule", "linear", "norms", "rule"]
