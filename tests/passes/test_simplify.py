"""Every line of algebra fires where it says, gives the answer it says, and leaves near misses alone."""

from __future__ import annotations

import itertools

import pytest
from dlcompiler.passes.block import simplify
from dlcompiler.passes.node import replace_ops

from tests.passes.algebra_samples import near_misses, positives
from tests.passes.rule_checks import apply_rule, check_rule

ALGEBRA = [r for table in (simplify.RULES, replace_ops.RULES) for r in table if r.pattern is not None]


@pytest.mark.parametrize("rule", ALGEBRA, ids=lambda r: r.name)
def test_a_rule_is_sound(rule):
    samples = list(positives(rule.pattern))
    assert samples, f"no sample of {rule}"
    for seed, sample in enumerate(samples):
        check_rule(rule, sample.graph, seed)


@pytest.mark.parametrize("rule", ALGEBRA, ids=lambda r: r.name)
def test_near_misses_do_not_fire(rule):
    count = 0
    for what, sample in itertools.islice(near_misses(rule.pattern), 80):
        assert apply_rule(rule, sample.graph)[1] == 0, f"{rule} fires although {what}:\n{sample.graph}"
        count += 1
    assert count or _takes_everything(rule), f"no near miss of {rule}"


def _takes_everything(rule) -> bool:
    """Whether nothing in the left side can be changed: one op on letters of any type."""
    return rule.pattern.takes == "any" and not any(True for _ in near_misses(rule.pattern))
