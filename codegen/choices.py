"""What can be chosen when a program is planned and written, and what was chosen: how a tuner talks to a target.

    choices = Choices({})
    program = emit(plan(fusion, target.with_choices(choices)), ...)     # the target's cost model answers every question
    choices.asked                                                       # the questions it came across
    target.alternatives(question)                                       # other answers, the most promising first
    Choices({question.key: {"rows": 6}})                                # the same program, but for that

A question is about one kernel (or graph node), and is the same wherever that is met again. An answer holds what differs from what
the cost model says; an empty one changes nothing. Answers are data: they print, and are kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

from dlcompiler.ir.graph import Node
from dlcompiler.ir.kernel import Buffer, Kernel
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.text.values import show_attributes, show_dims

# path      of a sum of products or of an op with a hand-written kernel: ours, or the library's
# winograd  whether a convolution that may be computed by Winograd's algorithm is
# columns   how the columns of a sum of products lie: vectors in a panel, 0 for where they are
# schedule  how a kernel's loops run
Kind = Literal["path", "winograd", "columns", "schedule"]
Subject: TypeAlias = Kernel | RoutineCall | Node
Answer: TypeAlias = Mapping[str, int | str]

NOTHING: Answer = MappingProxyType({})
# fewest work items that are shared out: none of these kernels has as many
ONE_THREAD: Answer = MappingProxyType({"grain": 1 << 40})


@dataclass(frozen=True, eq=False)
class Question:
    """What a target was asked. `fixed`: buffers of a kernel that keep their contents between calls."""

    kind: Kind
    key: str
    subject: Subject = field(repr=False)
    fixed: frozenset[Buffer] = frozenset()


class Choices:
    """Answers by the key of their question, and every question that was asked."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.asked: dict[str, Question] = {}

    def ask(self, kind: Kind, subject: Subject, fixed: Set[Buffer] = frozenset()) -> Answer:
        """What was chosen; nothing where it is left to the cost model."""
        key = question_key(kind, subject, fixed)
        self.asked.setdefault(key, Question(kind, key, subject, frozenset(fixed)))
        return self.answers.get(key, NOTHING)


def question_key(kind: Kind, subject: Subject, fixed: Set[Buffer] = frozenset()) -> str:
    """Equal for questions about the same: names and origins do not matter, nor does the machine."""
    text = f"{kind}\n{subject_text(subject)}\n{' '.join(sorted(b.name for b in fixed))}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def subject_text(subject: Subject) -> str:
    """All that a kernel's code (or a node's) depends on, without its name and origin."""
    if isinstance(subject, Kernel):
        return str(subject.replace(name="kernel", origin=()))
    if isinstance(subject, RoutineCall):
        views = [f"{v.dtype}{show_dims(v.shape)}{show_dims(v.strides)}" for v in subject.arguments]
        return f"{subject.op} {len(subject.reads)} {' '.join(views)} {show_attributes(subject.attributes)}"
    types = " ".join(str(operand.type) for operand in subject.inputs)
    return f"{subject.op.name} {types} {show_attributes(subject.attributes)}"


def show_answer(answer: Answer) -> str:
    """`rows 6, tiles 2`"""
    return ", ".join(f"{name} {value}" for name, value in answer.items())
