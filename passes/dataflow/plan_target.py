"""What planning asks of a target (`PlanTarget`), and the answers of one that has none of it (`WithoutRoutines`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from typing import Protocol

from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.kernel import Buffer, Kernel
from dlcompiler.ir.types import TensorType


class PlanTarget(Protocol):
    """What planning asks of a target."""

    @property
    def library_ops(self) -> Set[str]:
        """Ops that a library can run whole."""
        ...

    @property
    def tiles_sums(self) -> bool:
        """Whether kernels of ours compute matrix products and convolutions well."""
        ...

    def tiles(self, node: Node) -> bool:
        """Whether kernels of ours may compute an op's sums of products, if `contracts` says so of its kernel."""
        ...

    def contracts(self, kernel: Kernel, fixed: Set[Buffer]) -> bool:
        """Whether a kernel is a sum of products that the target computes well; `fixed` buffers change rarely."""
        ...

    def panel_width(self, kernel: Kernel, fixed: Set[Buffer]) -> int | None:
        """How wide the panels should be in which a sum of products reads its columns; None to read them where they lie."""
        ...

    def winograd_width(self, kernel: Kernel, fixed: Set[Buffer], sizes: tuple[int, ...]) -> int | None:
        """The same for a convolution that Winograd's algorithm shall compute; None where the target does not do that."""
        ...

    def arranged(self, kernel: Kernel, fixed: Set[Buffer]) -> tuple[Kernel, Kernel] | None:
        """A kernel that puts in order what a sum of products reads of `fixed` buffers, and the kernel that reads that, last."""
        ...

    @property
    def shares_launches(self) -> bool:
        """Whether launches that do not depend on each other become one; then `form_to_share` says which may (see `bundle`)."""
        ...

    def form_to_share(self, kernel: Kernel) -> Hashable | None:
        """What kernels have in common that are written once in a launch of several; None for one that runs alone."""
        ...

    def in_parts(self, kernel: Kernel) -> tuple[Kernel, Kernel] | None:
        """A sum of products as a kernel of partial sums, its one out buffer, and one that reads these, last, and adds them up."""
        ...

    def scratch_of_routine(self, node: Node) -> Sequence[TensorType] | None:
        """The scratch memory of the hand-written kernel that computes a graph node; None if there is no such kernel."""
        ...

    def packing_of_routine(self, node: Node) -> Mapping[int, Callable[[Builder, Node], Node]]:
        """Operands that this kernel reads in an arrangement of its own, and how to write that with views."""
        ...

    def in_place_of_routine(self, node: Node) -> Mapping[int, int]:
        """Results that it writes element by element where it has read an operand for the last time, with these operands."""
        ...


class WithoutRoutines:
    """A target whose library computes everything that is no kernel."""

    library_ops: Set[str] = frozenset()
    tiles_sums = False
    shares_launches = False

    def form_to_share(self, kernel: Kernel) -> None:
        return None

    def tiles(self, node: Node) -> bool:
        return False

    def contracts(self, kernel: Kernel, fixed: Set[Buffer]) -> bool:
        return False

    def panel_width(self, kernel: Kernel, fixed: Set[Buffer]) -> None:
        return None

    def winograd_width(self, kernel: Kernel, fixed: Set[Buffer], sizes: tuple[int, ...]) -> None:
        return None

    def arranged(self, kernel: Kernel, fixed: Set[Buffer]) -> None:
        return None

    def in_parts(self, kernel: Kernel) -> None:
        return None

    def scratch_of_routine(self, node: Node) -> None:
        return None

    def packing_of_routine(self, node: Node) -> Mapping[int, Callable[[Builder, Node], Node]]:
        return {}

    def in_place_of_routine(self, node: Node) -> Mapping[int, int]:
        return {}
