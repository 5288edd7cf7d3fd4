"""The passes, in order: Graph -> Graph. This is the one list; no other place adds a pass.

Each pass leaves a valid graph and may assume that it gets one. It returns the same object when it changed nothing; else the
graph's history gets a line: what it did, to how many nodes, in what time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from dlcompiler.ir.errors import OptionError
from dlcompiler.ir.graph import Event, Graph
from dlcompiler.ir.verify import verify_graph
from dlcompiler.passes.block.fuse import Trials
from dlcompiler.passes.block.linear_loss import store_no_logits
from dlcompiler.passes.block.merge_linears import merge_linears
from dlcompiler.passes.block.patterns import match_patterns
from dlcompiler.passes.block.row_chunks import make_rows_in_parts
from dlcompiler.passes.block.simplify import simplify
from dlcompiler.passes.context import Context, DefaultOptions, Fuel, PassOptions, PassTarget
from dlcompiler.passes.dataflow.recompute import recompute
from dlcompiler.passes.node.attention_parts import split_attention
from dlcompiler.passes.node.block_scaled import scale_in_blocks
from dlcompiler.passes.node.common_subexpressions import merge_common_subexpressions
from dlcompiler.passes.node.constant_folding import fold_constants
from dlcompiler.passes.node.dead_code import remove_dead_code
from dlcompiler.passes.node.decompose import decompose
from dlcompiler.passes.node.own_rewrites import apply_own_rewrites
from dlcompiler.passes.node.quantized import sum_integers
from dlcompiler.passes.node.repeat_random import repeat_random
from dlcompiler.passes.node.replace_ops import replace_ops
from dlcompiler.passes.node.transposed_convolution import split_transposed_convolutions
from dlcompiler.passes.node.views import canonicalize_views
from dlcompiler.passes.node.winograd import choose_winograd

Observer = Callable[[str, Graph], None]


@dataclass(frozen=True)
class Pass:
    """`level`: the lowest -O at which it runs. A pass of level 0 is needed to run at all and cannot be disabled."""

    name: str
    run: Callable[[Graph, Context], Graph]
    level: int = 1


DEAD_CODE = Pass("dead-code", remove_dead_code)
CONSTANT_FOLDING = Pass("constant-folding", fold_constants)
VIEWS = Pass("views", canonicalize_views)
COMMON_SUBEXPRESSIONS = Pass("common-subexpressions", merge_common_subexpressions)
SIMPLIFY = Pass("simplify", simplify)
OWN_REWRITES = Pass("own-rewrites", apply_own_rewrites)
REPLACE_OPS = Pass("replace-ops", replace_ops, level=2)
PATTERNS = Pass("patterns", match_patterns, level=2)
TRANSPOSED_CONVOLUTIONS = Pass("transposed-convolutions", split_transposed_convolutions, level=2)
WINOGRAD = Pass("winograd", choose_winograd, level=2)
LINEAR_LOSS = Pass("linear-loss", store_no_logits, level=2)
ATTENTION_PARTS = Pass("attention-parts", split_attention, level=2)
QUANTIZED = Pass("quantized", sum_integers, level=2)
BLOCK_SCALED = Pass("block-scaled", scale_in_blocks, level=2)
ROWS_IN_PARTS = Pass("rows-in-parts", make_rows_in_parts, level=2)
MERGE_LINEARS = Pass("merge-linears", merge_linears, level=3)
REPEAT_RANDOM = Pass("repeat-random", repeat_random)
RECOMPUTE = Pass("recompute", recompute, level=2)
DECOMPOSE = Pass("decompose", decompose, level=0)

PIPELINE: tuple[Pass, ...] = (
    # first, so that nothing is spent on what nobody reads
    DEAD_CODE,
    # shapes that an ONNX file computes become numbers, which the rules below look at
    CONSTANT_FOLDING,
    VIEWS,
    COMMON_SUBEXPRESSIONS,
    # what a user has added, before anything is broken up
    OWN_REWRITES,
    # reshapes around contractions go before attention is looked for between them
    REPLACE_OPS,
    # while a quantised operand is still bytes less a zero point times a scale
    QUANTIZED,
    # what is left of these: the other operand is floats
    BLOCK_SCALED,
    # attention is found around a softmax that is still whole
    PATTERNS,
    # and a loss around a log_softmax that is
    LINEAR_LOSS,
    DECOMPOSE,
    # a batch norm's scale and shift are constants once it is written out
    CONSTANT_FOLDING,
    SIMPLIFY,
    VIEWS,
    REPLACE_OPS,
    # and then part of the convolution before it
    PATTERNS,
    MERGE_LINEARS,
    # after scales and shifts have become part of them
    TRANSPOSED_CONVOLUTIONS,
    CONSTANT_FOLDING,
    VIEWS,
    # once reshapes and slices around products are gone
    ROWS_IN_PARTS,
    # the convolutions are what they will be: this only says how each is computed
    WINOGRAD,
    # after all that attention is found by
    ATTENTION_PARTS,
    # last, after everything that makes nodes
    COMMON_SUBEXPRESSIONS,
    # which would merge what this computes again
    REPEAT_RANDOM,
    DEAD_CODE,
    # what it makes twice must stay so; it plans the graph that it is given
    RECOMPUTE,
    DEAD_CODE,
)

PASSES: dict[str, Pass] = {each.name: each for each in PIPELINE}


def optimize(
    graph: Graph,
    target: PassTarget,
    options: PassOptions | None = None,
    observe: Observer | None = None,
    fuel: Fuel | None = None,
    trials: Trials | None = None,
) -> Graph:
    """Run every pass that the options allow, and verify after each. `observe(pass name, graph)` sees each that changed something.

    `fuel` counts rewrites; if none is given there is as much as the options say. `trials`: see `passes.block.fuse.fuse`.

    Raises OptionError for a disabled pass that does not exist or cannot be left out, VerifyError for a pass that went wrong.
    """
    options = options or DefaultOptions()
    check_pass_names(options.disabled_passes)
    context = Context(target, options, fuel or Fuel(options.fuel), trials=trials or Trials())
    for each in PIPELINE:
        if each.name not in options.disabled_passes and each.level <= options.optimization_level:
            before, graph = graph, run_pass(each, graph, context)
            if observe is not None and graph is not before:
                observe(each.name, graph)
    return graph


def run_pass(each: Pass, graph: Graph, context: Context) -> Graph:
    """Run one pass, verify its result, and write a line into the graph's history if it changed anything."""
    context.counts.clear()
    context.pass_name = each.name
    start = time.perf_counter()
    result = each.run(graph, context)
    if result is graph:
        return graph
    seconds = time.perf_counter() - start
    verify_graph(result)
    detail = ", ".join(f"{what} ×{count}" for what, count in sorted(context.counts.items()))
    event = Event(each.name, len(graph.nodes), len(result.nodes), seconds, detail)
    return result.replace(history=(*graph.history, event))


def check_pass_names(names: AbstractSet[str]) -> None:
    """Raises OptionError for a name that is no pass, or a pass that nothing can be compiled without."""
    import difflib

    for name in sorted(names):
        if name not in PASSES:
            near = difflib.get_close_matches(name, PASSES, 1)
            raise OptionError(
                f"there is no pass {name!r}", hint=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(PASSES)}"
            )
        if PASSES[name].level == 0:
            raise OptionError(f"pass {name!r} cannot be disabled: no target can run what it replaces")
