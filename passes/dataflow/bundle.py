"""Bundles: launches that do not depend on each other become one, so that many small kernels cost one start.

    launch sum(g1) -> b1; matmul(g1); launch sum(g2) -> b2; launch norm(g2) -> h; matmul(h)
    -->  matmul(g1); launch {sum(g1) -> b1, sum(g2) -> b2, norm(g2) -> h}; matmul(h)

A launch waits until some step needs it, then all that wait are started together: gradients of biases run beside the next layer's
kernel, and an optimizer's updates, one for each parameter, become a few launches. Later launches that could run by then join
them. What waits keeps alive what it reads, and what joins makes its results early: neither may raise the peak of memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from dlcompiler.ir.kernel import Kernel, bundle
from dlcompiler.ir.program import Launch, Program, Step
from dlcompiler.passes.dataflow.order import dependencies, slot_bytes

# Of one launch: words of parameters (4 KiB of them are given to every kernel of a GPU), and texts that are not alike (each takes
# registers and time to assemble).
MOST_WORDS = 448
MOST_FORMS = 6
# Bytes by which the peak of memory may rise: less than what memory is given out by.
SLACK = 2 << 20


class BundleTarget(Protocol):
    """What is asked of a target."""

    def form_to_share(self, kernel: Kernel) -> Hashable | None:
        """What kernels have in common that are written once in a launch of several; None for one that runs alone."""
        ...


def bundle_launches(program: Program, target: BundleTarget) -> Program:
    """The program with launches together that may be; the same object if there are none.

    What is prepared of weights too: while they are trained it is made in each step.
    """
    steps = _Bundler(program, target).run()
    alone = program.replace(steps=program.preparation, preparation=(), outputs=(), placement=None)
    made = [step for step in _Bundler(alone, target).run() if isinstance(step, Launch)]
    if len(steps) == len(program.steps) and len(made) == len(program.preparation):
        return program
    return program.replace(steps=tuple(steps), preparation=tuple(made))


class _Bundler:
    """Steps are taken in order. `waiting` are launches that nothing has needed yet; none of them depends on another."""

    def __init__(self, program: Program, target: BundleTarget) -> None:
        self.program, self.target = program, target
        self.before = dependencies(program)
        self.next: list[list[int]] = [[] for _ in program.steps]
        for number, earlier in enumerate(self.before):
            for k in earlier:
                self.next[k].append(number)
        self.missing = [len(earlier) for earlier in self.before]
        self.forms: dict[Kernel, Hashable | None] = {}
        self.alive = _alive_bytes(program)
        self.most = max(self.alive, default=0) + SLACK
        self.last_use = {slot: last for slot, (_, last) in program.lifetimes.items()}
        self.steps: list[Step] = []
        self.waiting: dict[int, Hashable] = {}  # step -> its form
        self.pulled: set[int] = set()  # steps started before their turn
        # launches of which all that they depend on has been started
        self.ready = {k for k, count in enumerate(self.missing) if not count}
        self.made = 0

    def run(self) -> list[Step]:
        for number, step in enumerate(self.program.steps):
            if number in self.pulled:
                continue
            if self.before[number] & self.waiting.keys() or self.alive[number] + self._held(number) > self.most:
                self._pull(number)
                self._start_waiting()
            form = self._form(step)
            if form is None:
                self.steps.append(step)
                self._started(number)
            else:
                self.waiting[number] = form
        self._start_waiting()
        return self.steps

    def _started(self, number: int) -> None:
        self.ready.discard(number)
        for k in self.next[number]:
            self.missing[k] -= 1
            if not self.missing[k]:
                self.ready.add(k)

    def _pull(self, number: int) -> None:
        """Let launches after `number` that could run now do so beside those that wait, where there is room in one launch."""
        words = sum(len(self._launch(k).arguments) for k in self.waiting)
        forms = set(self.waiting.values())
        for k in sorted(self.ready):
            form = self._form(self.program.steps[k]) if k > number and k not in self.pulled else None
            if form is None or words > MOST_WORDS:
                continue
            launch = self._launch(k)
            made = sum(slot_bytes(view.slot) for view in launch.writes)
            fits = words + len(launch.arguments) <= MOST_WORDS and len(forms | {form}) <= MOST_FORMS
            if not fits or max(self.alive[number:k]) + made + self._held(number) > self.most:
                continue
            for between in range(number, k):
                self.alive[between] += made
            self.waiting[k] = form
            self.pulled.add(k)
            words += len(launch.arguments)
            forms.add(form)

    def _launch(self, number: int) -> Launch:
        step = self.program.steps[number]
        assert isinstance(step, Launch)
        return step

    def _form(self, step: Step) -> Hashable | None:
        if not isinstance(step, Launch):
            return None
        if step.kernel not in self.forms:
            self.forms[step.kernel] = self.target.form_to_share(step.kernel)
        return self.forms[step.kernel]

    def _held(self, number: int) -> int:
        """Bytes that would be free by now but for what waits to read them."""
        steps = self.program.steps
        late = {v.slot for k in self.waiting for v in steps[k].reads if self.last_use.get(v.slot, number) < number}
        return sum(map(slot_bytes, late))

    def _start_waiting(self) -> None:
        """Start all that wait, in as few launches as there may be."""
        together: list[int] = []
        forms: set[Hashable] = set()
        words = 0
        first = {form: k for k, form in reversed(self.waiting.items())}
        for number, form in sorted(self.waiting.items(), key=lambda item: (first[item[1]], item[0])):
            more = len(self._launch(number).arguments)
            if together and (words + more > MOST_WORDS or len(forms | {form}) > MOST_FORMS):
                self._start(together)
                together, forms, words = [], set(), 0
            together.append(number)
            forms.add(form)
            words += more
        if together:
            self._start(together)
        self.waiting.clear()

    def _start(self, numbers: Sequence[int]) -> None:
        launches = [self._launch(k) for k in numbers]
        for number in numbers:
            self._started(number)
        if len(launches) == 1:
            self.steps.append(launches[0])
            return
        kernel = bundle(f"bundle_{self.made}", [launch.kernel for launch in launches])
        self.made += 1
        origin = tuple(dict.fromkeys(line for launch in launches for line in launch.origin))
        self.steps.append(Launch(kernel, tuple(v for launch in launches for v in launch.arguments), origin))


def _alive_bytes(program: Program) -> list[int]:
    """Bytes of what is alive at each step, symbolic sizes taken for typical ones."""
    change = [0] * (len(program.steps) + 2)
    for slot, (first, last) in program.lifetimes.items():
        change[first] += slot_bytes(slot)
        change[last + 1] -= slot_bytes(slot)
    found, total = [], 0
    for each in change[: len(program.steps)]:
        total += each
        found.append(total)
    return found
