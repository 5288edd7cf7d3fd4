"""Every rule that is a function fires on its samples, gives the same answer, and leaves near misses alone."""

from __future__ import annotations

import pytest
from dlcompiler.passes.block import patterns, simplify
from dlcompiler.passes.node import quantized, replace_ops, views

from tests.passes.rule_checks import apply_rule, check_rule
from tests.passes.rule_samples import FIRES, MISSES, SIZES, sample_graph, samples

TABLES = (simplify.RULES, views.RULES, replace_ops.RULES, patterns.RULES, quantized.SIGNED_RULES)
RULES = {r.name: r for t in TABLES for r in t}
# these change the order of sums, and what a NaN that is masked out, or a row that sees nothing, does
OF_FINITE_NUMBERS = {
    "attention", "attention-mask", "linear-pad", "one-hot-sum", "padded-sum", "scale-convolution", "scale-linear",
    "shift-product", "split-reduction",
}  # fmt: skip


def test_every_rule_has_samples_and_near_misses():
    functions = {name for name, rule in RULES.items() if rule.pattern is None}
    assert set(FIRES) == functions
    assert set(MISSES) == functions


@pytest.mark.parametrize("name, body", list(samples(FIRES)), ids=lambda text: text[:40])
def test_a_rule_is_sound(name, body):
    for seed in range(3):
        check_rule(RULES[name], sample_graph(name, body), seed, SIZES, calm=name in OF_FINITE_NUMBERS)


@pytest.mark.parametrize("name, body", list(samples(MISSES)), ids=lambda text: text[:40])
def test_near_misses_do_not_fire(name, body):
    assert apply_rule(RULES[name], sample_graph(name, body))[1] == 0
