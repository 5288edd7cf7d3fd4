"""A loop of the text that `Emitter` writes, with the values that it carries from one iteration to the next."""

from __future__ import annotations

from dataclasses import dataclass

from dlcompiler.codegen.cpu.value import Value


@dataclass
class Loop:
    """An open `for_loop`: read `index` and `carried` inside, call `next` once if values are carried, read `results`
    after it has closed.
    """

    index: Value
    carried: tuple[Value, ...]
    results: tuple[Value, ...]
    following: tuple[Value, ...] | None = None

    def next(self, *values: Value) -> None:
        """Give the carried values of the next iteration (or, after the last, the results)."""
        if [value.type for value in values] != [value.type for value in self.carried]:
            raise TypeError(f"the loop carries {[v.type for v in self.carried]}, not {[v.type for v in values]}")
        self.following = values
