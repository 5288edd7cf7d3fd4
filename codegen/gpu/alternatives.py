"""Other ways to run a kernel on a GPU than the one that the cost model chooses, for a tuner to try: the most promising first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlcompiler.codegen.choices import Answer, Question
from dlcompiler.codegen.gpu.compile import parameter_names, written_candidates
from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.program import RoutineCall

if TYPE_CHECKING:
    from dlcompiler.codegen.target import Target

LIBRARY: Answer = {"path": "library"}
MOST = 32  # candidates of one kernel


def alternatives(question: Question, chosen: Answer, target: Target) -> Sequence[Answer]:
    """Answers in the place of `chosen`: a library instead of a product of ours, or another of a kernel's candidates."""
    if chosen:
        return []
    if question.kind == "path":
        return [LIBRARY]
    if question.kind != "schedule" or not isinstance(question.subject, Kernel | RoutineCall):
        return []
    aligned = frozenset(parameter_names(question.subject))
    count = len(written_candidates(question.subject, target, aligned))
    return [{"candidate": number} for number in range(min(count, MOST))] if count > 1 else []
