"""Planning: groups become steps over slots, in an order and with a memory plan.

    groups {relu, sum}, {matmul}  -->  slots x, y, arena...; steps launch k0, call matmul; offsets

Every stored node gets a slot. What a library reads through views is a strided window where strides can say it, else a copy
kernel in front. Results that are written back into inputs are computed in their place, or copied there at the end. Then steps are
ordered for low peak memory, results take over the memory of operands that die, and intermediates get offsets in one arena.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from dlcompiler.ir import program as P
from dlcompiler.ir.contraction import find_contraction, pack_columns, split_groups
from dlcompiler.ir.errors import VerifyError
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Builder, Graph, Node, OutputStrides
from dlcompiler.ir.kernel import Buffer, Kernel
from dlcompiler.ir.ops import Trait, lookup
from dlcompiler.ir.ops.view import view_strides
from dlcompiler.ir.types import HostType, TensorType, TupleType, contiguous_strides
from dlcompiler.ir.winograd import transform_panels
from dlcompiler.passes.block.fuse import Fusion, Group, Trials, fixed_buffers, fuse, is_grouped
from dlcompiler.passes.block.lower import lower_group, origin_of
from dlcompiler.passes.block.signature import signature
from dlcompiler.passes.dataflow.blocks import in_blocks
from dlcompiler.passes.dataflow.bundle import bundle_launches
from dlcompiler.passes.dataflow.in_place import find_aliases
from dlcompiler.passes.dataflow.layout import assign_layouts, strides_of_output
from dlcompiler.passes.dataflow.memory import place
from dlcompiler.passes.dataflow.order import order_steps
from dlcompiler.passes.dataflow.plan_target import PlanTarget, WithoutRoutines
from dlcompiler.passes.dataflow.take_over import take_over
from dlcompiler.passes.dataflow.write_back import write_in_place
from dlcompiler.passes.fixed import is_fixed_source
from dlcompiler.passes.strides import Strides, channels_last_strides, images_read


class _Planner:
    def __init__(self, fusion: Fusion, target: PlanTarget, trials: Trials) -> None:
        self.fusion, self.target, self.trials = fusion, target, trials
        self.graph = fusion.graph
        self.layouts = assign_layouts(fusion)
        self.images = {image for node in self.graph.nodes for image in self.fusion.images_of(node)}
        self.slots: dict[Node, P.Slot] = {}
        self.extra_slots: list[P.Slot] = []
        self.steps: list[P.Step] = []
        self.constants: list = []
        self.copies: dict[tuple[Node, Strides], P.View] = {}
        self.preparation: list[P.Launch] = []
        self.prepared_nodes = self._find_prepared()
        self.panels: dict[tuple, P.View] = {}
        self.contracted: dict[tuple[str, frozenset[str]], bool] = {}
        self.matrices: dict[tuple, P.View] = {}
        self.sums_of_parts: set[P.Launch] = set()
        self.output_slots = 0
        # results that are views of something, as whoever gets them wants them laid out
        self.handed_out: set[tuple[Node, Strides]] = set()

    def run(self) -> P.Program:
        inputs = self._input_slots()
        self._choose_output_slots()
        for group in self.fusion.groups:
            self._plan_group(group)
        outputs = self._outputs()
        self._write_back()
        slots = (*self.slots.values(), *self.extra_slots)
        program = P.Program(
            self.graph.name, self.graph, slots, tuple(self.steps), inputs, outputs, tuple(self.constants),
            refusals=self.fusion.refusals, history=self.graph.history, preparation=tuple(self.preparation),
        )  # fmt: skip
        return take_over(program, self.sums_of_parts)

    def _find_prepared(self) -> frozenset[Node]:
        """Nodes that are there before the first step: what stays the same between calls, and is not handed out as a result."""
        fusion = self.fusion
        found = {n for n in fusion.fixed if is_fixed_source(n)}
        handed_out = {self._base_view(node)[0] for node in fusion.graph.results}
        for group in fusion.groups:
            is_ready = group.kind == "kernel" and all(n in fusion.fixed for n in group.nodes)
            if is_ready and not handed_out & set(group.nodes) and self._reads(group) <= found:
                found.update(group.outputs)
        return frozenset(found)

    def _reads(self, group: Group) -> set[Node]:
        """Stored nodes outside a group that it reads, through views."""
        members = set(group.nodes)
        return self._reads_of(*(operand for node in group.nodes for operand in node.inputs if operand not in members))

    def _reads_of(self, *nodes: Node) -> set[Node]:
        """These nodes if they are stored, else what they are computed from that is."""
        found: set[Node] = set()
        stack, seen = list(nodes), set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if self.fusion.inlined(node):
                stack.extend(node.inputs)
            else:
                found.add(node)
        return found

    # -- slots -------------------------------------------------------------------------------------------------------------

    def _input_slots(self) -> tuple[P.Slot | None, ...]:
        found: list[P.Slot | None] = []
        for position, node in enumerate(self.graph.inputs):
            if node.op.name == "size":
                found.append(None)
                continue
            slot = P.Slot(node.name, node.dtype, node.shape, self.layouts[node], "input", position)
            self.slots[node] = slot
            found.append(slot)
        return tuple(found)

    def _choose_output_slots(self) -> None:
        """Computed results live in memory of their own from the start; a view of all of one makes its base a result."""
        wanted = self.graph.output_strides or (None,) * len(self.graph.outputs)
        computed = {node for group in self.fusion.groups if group.kind != "extern" for node in group.outputs}
        computed |= {n for n in self.graph.nodes if n.op.name == "tuple.get" and n.inputs[0].has(Trait.LIBRARY)}
        shown: dict[Node, dict[tuple, Dim]] = {}  # base -> elements of each different view of it that is a result
        for node, strides in zip(self.graph.outputs, wanted):
            base, view = self._base_view(node)
            if base is not node and view is None:
                self.handed_out.add((node, strides_of_output(node, base, strides, self.layouts, self.images)))
            if base not in computed or not isinstance(base.type, TensorType):
                continue
            if view is not None and (strides == "any" or view[0] == (strides or contiguous_strides(node.shape))):
                shown.setdefault(base, {})[node.shape, view] = node.tensor.numel
        for base, views in shown.items():
            # what shows a part of something large is copied, or whoever gets it would hold all of that
            left = base.tensor.numel - sum(views.values())
            if base not in self.slots and (base.tensor.numel in views.values() or (isinstance(left, int) and left <= 0)):
                self._new_slot(base, "output")

    def _base_view(self, node: Node) -> tuple[Node, tuple[Strides, Dim] | None]:
        """The stored node under a chain of views, and strides and offset of the chain's end, None if only a copy can hold it."""
        chain = []
        while self.fusion.inlined(node) and node.has(Trait.VIEW) and len(node.inputs) == 1:
            chain.append(node)
            node = node.inputs[0]
        if self.fusion.inlined(node) or node not in self.layouts:
            return node, None
        strides = self.layouts[node]
        offset: Dim = 0
        for view in reversed(chain):
            found = view_strides(view, strides)
            if found is None:
                return node, None
            strides, offset = found[0], offset + found[1]
        return node, (strides, offset)

    def _new_slot(self, node: Node, role: P.Role) -> P.Slot:
        position = -1
        if role == "output":
            position, self.output_slots = self.output_slots, self.output_slots + 1
        slot = P.Slot(node.name, node.dtype, node.shape, self.layouts[node], role, position)
        self.slots[node] = slot
        return slot

    def slot(self, node: Node) -> P.Slot:
        """The slot of a stored node, made when first asked for."""
        if node in self.slots:
            return self.slots[node]
        if node.op.name == "constant":
            slot = P.Slot(node.name, node.dtype, node.shape, self.layouts[node], "constant", len(self.constants))
            self.constants.append(node.attributes["value"])
            self.slots[node] = slot
            return slot
        source = node.inputs[0] if node.op.name == "tuple.get" else node
        if node in self.prepared_nodes:
            return self._new_slot(node, "prepared")
        return self._new_slot(node, "extern" if source.op.name == "aten.call" else "intermediate")

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _plan_group(self, group: Group) -> None:
        if group.kind == "kernel":
            self._launch(group.nodes, group.outputs, [self.slot(n).view() for n in group.outputs])
            return
        (node,) = group.nodes
        origin = (_origin(node),)
        scratch = self.target.scratch_of_routine(node) if group.kind == "library" else None
        packing = self.target.packing_of_routine(node) if scratch is not None else {}
        reads = tuple(
            self._arranged(node.inputs[k], packing[k]) if k in packing else self._operand(node, k)
            for k in range(len(node.inputs))
        )
        if group.kind == "library":
            # every result of a library's op has memory
            writes = tuple(view for view in self._results(node) if view is not None)
            attributes = dict(node.attributes)
            if scratch is None:
                self.steps.append(P.LibraryCall(node.op.name, reads, writes, attributes, origin))
            else:
                writes += tuple(self._scratch_of_routine(f"{node.name}.scratch{k}", type) for k, type in enumerate(scratch))
                in_place = tuple(self.target.in_place_of_routine(node).items())
                self.steps.append(P.RoutineCall(node.op.name, reads, writes, attributes, origin, in_place))
        else:
            laid_out = node.attributes.get("operand_strides", ())
            reads = tuple(self._laid_out(n, read, want) for n, read, want in zip_longest(node.inputs, reads, laid_out))
            target, arguments = node.attributes["target"], node.attributes["arguments"]
            reason = node.attributes.get("reason", "")
            self.steps.append(P.AtenCall(target, arguments, reads, self._results(node), origin, reason))

    def _results(self, node: Node) -> tuple[P.View | None, ...]:
        """Where a call writes: a slot for each result, also for one that nobody reads if the call cannot do without."""
        if isinstance(node.type, TensorType):
            return (self.slot(node).view(),)
        assert isinstance(node.type, TupleType)
        taken = {user.attributes["index"]: user for user in self.graph.users[node]}
        return tuple(self._result(node, k, element, taken.get(k)) for k, element in enumerate(node.type.elements))

    def _result(self, node: Node, index: int, element: TensorType | HostType | None, taken: Node | None) -> P.View | None:
        if taken is not None:
            return self.slot(taken).view()
        if node.has(Trait.EXTERN) or not isinstance(element, TensorType):
            return None
        return self._scratch(f"{node.name}.unused{index}", element)

    def _scratch(self, name: str, type: TensorType) -> P.View:
        """Memory that only one step uses."""
        slot = P.Slot(name, type.dtype, type.shape, contiguous_strides(type.shape), "intermediate")
        self.extra_slots.append(slot)
        return slot.view()

    def _arranged(self, operand: Node, arrange: Callable[[Builder, Node], Node]) -> P.View:
        """An operand as a routine wants it, stored once if it stays the same between calls."""
        node = arrange(Builder(operand.name), operand)
        is_ready = operand in self.fusion.fixed and self._reads_of(operand) <= self.prepared_nodes
        role: P.Role = "prepared" if is_ready else "intermediate"
        slot = P.Slot(
            f"{operand.name}.packed{len(self.extra_slots)}", node.dtype, node.shape, contiguous_strides(node.shape), role
        )
        self.extra_slots.append(slot)
        self._launch((node,), (node,), (slot.view(),))
        return slot.view()

    def _scratch_of_routine(self, name: str, type: TensorType) -> P.View:
        """Scratch memory of the next step; integers, with which threads count, are set to 0 before it."""
        view = self._scratch(name, type)
        if type.dtype.is_integer:
            builder = Builder("clear")
            zero = builder.expand(builder.constant(0, type.dtype), shape=type.shape)
            kernel, _, _ = lower_group(
                f"kernel_{len(self.steps)}", (zero,), (zero,), lambda n: n is not zero, lambda n: view.strides, cost_matters=False
            )
            self.steps.append(P.Launch(kernel, (view,), (name,)))
        return view

    def _launch(self, nodes: Sequence[Node], outputs: Sequence[Node], writes: Sequence[P.View]) -> None:
        read = [image for node in nodes for image in self.fusion.images_of(node) if image not in nodes]
        given = {image: self._window(image, True) for image in read}
        kernel, reads, views = self._lower(nodes, outputs, writes, given)
        sums = [node for node in nodes if node.has(Trait.CONTRACTION) and node.op.name in self.target.library_ops]
        is_sum_of_parts = False
        if sums:
            if not self._contracts(kernel, fixed_buffers(kernel, reads, self.prepared_nodes)):
                # operands are not laid out as was expected when the sum was kept from the library
                operands = [o for node in sums for o in node.inputs if self.fusion.inlined(o) and o not in given]
                dropped = {image for node in sums if node.inputs[0] in operands for image in self.fusion.images_of(node)}
                given = {image: view for image, view in given.items() if image not in dropped}
                given |= {operand: self._copy(operand, contiguous_strides(operand.shape)) for operand in operands}
                kernel, reads, views = self._lower(nodes, outputs, writes, given)
            sizes = next((node.attributes["winograd"] for node in sums if "winograd" in node.attributes), None)
            fixed = fixed_buffers(kernel, reads, self.prepared_nodes)
            kernel, views = self._pack(kernel, views, fixed, sizes)
            kernel, views = self._arrange(kernel, views, fixed)
            whole = kernel
            kernel, views = self._split(kernel, views)
            is_sum_of_parts = kernel is not whole
        launch = P.Launch(kernel, (*views, *writes), kernel.origin)
        if is_sum_of_parts:
            self.sums_of_parts.add(launch)
        is_prepared = all(view.slot.role == "prepared" for view in writes)
        (self.preparation if is_prepared else self.steps).append(launch)

    def _contracts(self, kernel: Kernel, fixed: frozenset[Buffer]) -> bool:
        """`PlanTarget.contracts`, asked once for equal layers: their kernels differ in names and origins only."""
        key = (str(kernel.replace(name="kernel", origin=())), frozenset(buffer.name for buffer in fixed))
        if key not in self.contracted:
            self.contracted[key] = self.target.contracts(kernel, fixed)
        return self.contracted[key]

    def _lower(
        self, nodes: Sequence[Node], outputs: Sequence[Node], writes: Sequence[P.View], given: Mapping[Node, P.View]
    ) -> tuple[Kernel, Sequence[Node], tuple[P.View, ...]]:
        """The kernel of these nodes, what it reads and where; `given` operands lie in memory though they are views."""
        strides = {node: view.strides for node, view in (*given.items(), *zip(outputs, writes))}

        def inlined(node: Node) -> bool:
            return self.fusion.inlined(node) and node not in given

        def strides_of(node: Node) -> Strides:
            return strides[node] if node in strides else self.layouts[node]

        key, named = signature(nodes, outputs, inlined, strides_of, self.trials.described)
        key = (key, tuple(map(strides_of, outputs)))
        name = f"kernel_{len(self.steps)}"
        reads: Sequence[Node]
        if key in self.trials.lowered:
            kernel, positions = self.trials.lowered[key]
            kernel, reads = kernel.called(name, origin_of(nodes)), [named[position] for position in positions]
        else:
            kernel, reads, _ = lower_group(name, nodes, outputs, inlined, strides_of, cost_matters=False)
            if is_grouped(nodes):
                kernel = split_groups(kernel)
            self.trials.lowered[key] = kernel, tuple(map(named.index, reads))
        return kernel, reads, tuple(given[node] if node in given else self.slot(node).view() for node in reads)

    def _pack(
        self, kernel: Kernel, views: tuple[P.View, ...], fixed: frozenset[Buffer], sizes: tuple[int, ...] | None
    ) -> tuple[Kernel, tuple[P.View, ...]]:
        """A sum of products that reads its columns in panels, where the target wants that, and what it reads.

        The panels are made once of what keeps its contents between calls, else by a launch in front. `sizes`: of the tiles by
        which Winograd's algorithm shall compute it, if it can.
        """
        width = self.target.winograd_width(kernel, fixed, sizes) if sizes is not None else None
        is_transformed = width is not None
        if width is None:
            width = self.target.panel_width(kernel, fixed)
        if width is None:
            return kernel, views
        found = find_contraction(kernel, fixed)
        assert found is not None
        pack, packed = pack_columns(kernel, found, width)
        of = dict(zip(kernel.buffers, views))
        reads = tuple(of[b] for b in pack.buffers if b.role == "in")
        panels = self._panels(pack, reads, all(b in fixed for b in pack.buffers if b.role == "in"))
        views = tuple(of[b] if b in of else panels for b in packed.buffers if b.role == "in")
        return self._transform(packed, views, sizes, panels) if is_transformed and sizes is not None else (packed, views)

    def _transform(
        self, kernel: Kernel, views: tuple[P.View, ...], sizes: tuple[int, ...], panels: P.View
    ) -> tuple[Kernel, tuple[P.View, ...]]:
        """A convolution that reads its weights in panels, with those also transformed for Winograd's algorithm."""
        found = find_contraction(kernel)
        assert found is not None and found.packed is not None
        matrix, transform, kernel = transform_panels(kernel, found, sizes)
        key = (matrix.shape, sizes)
        if key not in self.matrices:
            slot = P.Slot(
                f"winograd{len(self.matrices)}",
                found.packed.dtype,
                matrix.shape,
                contiguous_strides(matrix.shape),
                "constant",
                len(self.constants),
            )
            self.constants.append(matrix)
            self.extra_slots.append(slot)
            self.matrices[key] = slot.view()
        return kernel, (*views, self._panels(transform, (self.matrices[key], panels), panels.slot.role == "prepared"))

    def _panels(self, pack: Kernel, reads: tuple[P.View, ...], is_fixed: bool) -> P.View:
        """The panels that a kernel makes, made once for all that read them."""
        (out,) = (b for b in pack.buffers if b.role == "out")
        key = (str(pack.replace(name="pack", origin=())), reads)
        if key not in self.panels:
            is_fixed = is_fixed and all(isinstance(d, int) for d in out.shape)
            made_of = reads[0].slot.name if reads else "positions"  # of indices and numbers alone
            name = f"{made_of}.panels{len(self.panels)}"
            slot = P.Slot(name, out.dtype, out.shape, out.strides, "prepared" if is_fixed else "intermediate")
            self.extra_slots.append(slot)
            launch = P.Launch(pack, (*reads, slot.view()), pack.origin)
            (self.preparation if is_fixed else self.steps).append(launch)
            self.panels[key] = slot.view()
        return self.panels[key]

    def _arrange(self, kernel: Kernel, views: tuple[P.View, ...], fixed: frozenset[Buffer]) -> tuple[Kernel, tuple[P.View, ...]]:
        """A sum of products that reads weights in the order in which the target wants them, and what it reads."""
        found = self.target.arranged(kernel, fixed)
        if found is None:
            return kernel, views
        arrange, arranged = found
        of = dict(zip(kernel.buffers, views))
        stored = self._panels(arrange, tuple(of[b] for b in arrange.buffers if b.role == "in"), True)
        return arranged, tuple(of.get(b, stored) for b in arranged.buffers if b.role == "in")

    def _split(self, kernel: Kernel, views: tuple[P.View, ...]) -> tuple[Kernel, tuple[P.View, ...]]:
        """What is left of a sum of products after its parts were summed by a launch in front, and what it reads."""
        found = self.target.in_parts(kernel)
        if found is None:
            return kernel, views
        first, rest = found
        of = dict(zip(kernel.buffers, views))
        (out,) = (b for b in first.buffers if b.role == "out")
        parts = self._scratch(f"{kernel.name}.{out.name}", TensorType(out.dtype, out.shape))
        reads = tuple(of[b] for b in first.buffers if b.role == "in")
        self.steps.append(P.Launch(first, (*reads, parts), kernel.origin))
        return rest, tuple(of.get(b, parts) for b in rest.buffers if b.role == "in")

    def _operand(self, node: Node, position: int) -> P.View:
        """What a library or extern call reads: a window on a slot, or a copy where no window shows it."""
        operand = node.inputs[position]
        if not isinstance(operand.type, TensorType):
            raise VerifyError(f"%{node.name} reads a tuple", location=node.location)
        return self._window(operand, position in images_read(node))

    def _laid_out(self, operand: Node, read: P.View, strides: Strides | None) -> P.View:
        """What a call that can see strides reads: the operand with eager's, None if any will do."""
        places = [(want, has) for size, want, has in zip(operand.shape, strides or (), read.strides) if size != 1]
        if all(want == has for want, has in places) or any(want == 0 for want, _ in places):
            return read
        return self._copy(operand, strides or ())

    def _window(self, operand: Node, want_image: bool) -> P.View:
        """A value in memory: a window on a slot, or a copy; if an image is wanted, with its channels innermost."""
        base, view = self._base_view(operand)
        if view is not None:
            if not want_image or view[0] == channels_last_strides(operand.shape):
                return P.View(self.slot(base), operand.shape, *view)
        strides = channels_last_strides(operand.shape) if want_image else contiguous_strides(operand.shape)
        return self._copy(operand, strides)

    def _copy(self, node: Node, strides: Strides, role: P.Role = "intermediate") -> P.View:
        """A kernel that stores an inlined (or differently laid out) node into a slot of its own."""
        key = (node, strides)
        is_result = key in self.handed_out
        if role == "output":
            self.handed_out.discard(key)  # another result of the same values gets memory of its own
        if key in self.copies and (role == "intermediate" or is_result):
            return self.copies[key]
        if is_result:
            role = "output"  # made once, for the steps that read it and for whoever is given it
        position = -1
        if role == "output":
            position, self.output_slots = self.output_slots, self.output_slots + 1
        if role == "intermediate" and node in self.fusion.fixed and self._reads_of(node) <= self.prepared_nodes:
            role = "prepared"
        slot = P.Slot(f"{node.name}.copy{len(self.extra_slots)}", node.dtype, node.shape, strides, role, position)
        self.extra_slots.append(slot)
        self._copy_into(node, slot.view())
        self.copies[key] = slot.view()
        return slot.view()

    def _copy_into(self, node: Node, view: P.View) -> None:
        """A launch that writes the node's elements to the view."""
        if self.fusion.inlined(node):
            self._launch((node,), (node,), (view,))
            return
        # a stored node is read: name its elements by a view that changes nothing
        same = Builder("copy").make(lookup("reshape"), (node,), {"shape": node.shape}, node.type, f"{node.name}.copy")
        self._launch((same,), (same,), (view,))

    # -- results -------------------------------------------------------------------------------------------------------------

    def _outputs(self) -> tuple[P.View, ...]:
        wanted = self.graph.output_strides or (None,) * len(self.graph.outputs)
        return tuple(self._output(node, strides) for node, strides in zip(self.graph.outputs, wanted))

    def _output(self, node: Node, wanted: OutputStrides) -> P.View:
        base, view = self._base_view(node)
        strides = strides_of_output(node, base, wanted, self.layouts, self.images)
        if view is not None and (wanted == "any" or view[0] == strides):
            slot = self.slot(base)
            # a result may alias an input, as in eager, but not one about to be overwritten; nor show the arena or a constant
            overwritten = any(target is base for _, target in self.graph.writebacks)
            if slot.role in ("output", "input", "extern") and not overwritten:
                return P.View(slot, node.shape, *view)
        return self._copy(node, strides, "output")

    def _write_back(self) -> None:
        """Copy results into the inputs they replace, after all else; a source that is itself overwritten is saved first."""
        overwritten = {target for _, target in self.graph.writebacks}
        sources: list[tuple[Node, Node, P.View | None]] = []
        for value, target in self.graph.writebacks:
            base, _ = self._base_view(value)
            if base in overwritten and value is not target:
                saved = self._copy(value, contiguous_strides(value.shape))
                sources.append((value, target, saved))
            else:
                sources.append((value, target, None))
        for value, target, kept in sources:
            if value is target:
                continue
            into = self.slot(target).view()
            if kept is None:
                self._copy_into(value, into)
            else:
                self._copy_slot(kept, into, value)

    def _copy_slot(self, source: P.View, target: P.View, node: Node) -> None:
        """A launch that copies one slot to another, both of the node's shape."""
        builder = Builder("copy")
        read = builder.input("saved", node.tensor)
        same = builder.make(lookup("reshape"), (read,), {"shape": node.shape}, node.type, f"{node.name}.written")
        strides = {read: source.strides, same: target.strides}
        kernel, _, _ = lower_group(
            f"kernel_{len(self.steps)}", (same,), (same,), lambda n: False, strides.__getitem__, cost_matters=False
        )
        self.steps.append(P.Launch(kernel, (source, target), (_origin(node),)))


def _origin(node: Node) -> str:
    return f"{node.op.name} %{node.name}" + (f" at {node.location}" if node.location else "")


def plan(fusion: Fusion, target: Any = None, options=None, trials: Trials | None = None) -> P.Program:
    """The program of a fused graph: slots, steps in order, in-place reuse and, if no size is symbolic, the memory plan.

    `trials`: of the same target; if the same groups were planned last with it, this is that program.
    """
    trials = trials or Trials()
    if trials.planned is not None and trials.planned[0].groups is fusion.groups:
        return trials.planned[1].replace(graph=fusion.graph, history=fusion.graph.history)
    program = _Planner(fusion, target or WithoutRoutines(), trials).run()
    program = order_steps(write_in_place(program))
    if target is not None and target.shares_launches:
        program = bundle_launches(program, target)
    program = in_blocks(program)
    program = program.replace(aliases=find_aliases(program))
    if not program.symbols:
        program = program.replace(placement=place(program, {}))
    trials.planned = fusion, program
    return program


def plan_graph(graph: Graph, target, options=None) -> P.Program:
    """`fuse` and `plan` in one."""
    return plan(fuse(graph, target, options), target, options)
