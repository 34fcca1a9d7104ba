"""One rule per layer type: from a layer's input and the gradient of its output to its parameters' per-sample gradients.

A rule is a function ``(module, input, output_gradient, wanted) -> {parameter: form}`` declared with `@rule(LayerType)`.
It applies to a module only where the module's `forward` *is* that layer type's `forward`: a subclass that computes
something else must not inherit a formula that is wrong for it. A layer that every model library writes anew, the norm by
root mean square, is recognised by what it computes (`recognition`). Parameters without a rule go through the general ways of
`shared` and `replay`, which are as exact and need more time.
"""

from lightning_tracin.gradients.rules import convolution, embedding, linear, norms
from lightning_tracin.gradients.rules.rule import RULED, Declared, Rule, find_rule, rule

__all__ = ["RULED", "Declared", "Rule", "convolution", "embedding", "find_rule", "linear", "norms", "rule"]
