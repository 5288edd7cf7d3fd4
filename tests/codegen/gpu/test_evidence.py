"""What is said of kernels without running them: numbers out of cubins, bytes, occupancy; and the choice of schedules."""

from __future__ import annotations

import struct

import pytest
from dlcompiler.codegen import emit
from dlcompiler.codegen.gpu.cubin import resources_of
from dlcompiler.codegen.gpu.device import DEVICES, device_of
from dlcompiler.codegen.gpu.evidence import evidence_table, occupancy, program_evidence
from dlcompiler.codegen.gpu.handwritten import Handwritten, register, unregister
from dlcompiler.codegen.gpu.schedule import candidates
from dlcompiler.codegen.gpu.triton_writer import write_triton
from dlcompiler.codegen.target import GPU_ARCHITECTURES, nearest_architecture, parse_target
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.program import Launch, Program
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize

from tests.codegen.cpu.test_kernels import graph_of

pytest.importorskip("triton")
TARGET = parse_target("cuda:sm_90")


def planned(build, *types: TensorType) -> Program:
    return plan(fuse(optimize(graph_of(build, *types), TARGET), TARGET), TARGET)


def kernel_of(build, *types: TensorType) -> Kernel:
    (step,) = planned(build, *types).steps
    assert isinstance(step, Launch)
    return step.kernel


def first(kernel: Kernel):
    return next(iter(candidates(kernel, device_of("sm_90"))))


def test_every_architecture_is_described():
    assert set(DEVICES) == set(GPU_ARCHITECTURES)


def test_forms_follow_from_how_memory_lies():
    big = TensorType(f32, (2048, 1024))
    assert first(kernel_of(lambda b, x: b.exp(x), big)).form == "elements"
    assert first(kernel_of(lambda b, x: b.add(b.permute(x, dims=(1, 0)), 1.0), big)).form == "tiles"
    assert first(kernel_of(lambda b, x: b.softmax(x, axis=1), big)).form == "rows"
    assert first(kernel_of(lambda b, x: b.softmax(x, axis=1), TensorType(f32, (64, 40000)))).form == "loop"
    assert first(kernel_of(lambda b, x: b.reduce_sum(x, axes=(0,)), TensorType(f32, (700, 40000)))).form == "loop"


def test_indices_are_narrow_only_where_that_is_proved():
    assert first(kernel_of(lambda b, x: b.exp(x), TensorType(f32, (1 << 14, 1 << 14)))).narrow
    assert not first(kernel_of(lambda b, x: b.exp(x), TensorType(f32, (1 << 16, 1 << 15)))).narrow
    unknown = kernel_of(lambda b, x: b.exp(x), TensorType(f32, (symbol("N"), 4)))
    assert not first(unknown).narrow and "to(tl.int64)" in write_triton(unknown).source


def test_few_results_of_many_elements_are_made_in_two_kernels():
    program = planned(lambda b, x: b.reduce_sum(x, axes=(0,)), TensorType(f32, (8192, 768)))
    assert len(program.steps) == 2
    assert len(planned(lambda b, x: b.softmax(x, axis=1), TensorType(f32, (128, 50000))).steps) == 1


def test_bytes_count_each_element_once_and_loops_again():
    size = 4 * 512 * 30000
    once = program_evidence(planned(lambda b, x: b.exp(x), TensorType(f32, (512, 30000))))[0]
    assert once.bytes == once.minimum_bytes == 2 * size
    program = emit(planned(lambda b, x: b.softmax(x, axis=1), TensorType(f32, (512, 30000))), TARGET)
    (row,) = program_evidence(program)
    assert row.minimum_bytes == 2 * size and row.bytes == 4 * size  # the largest, the sum, the quotients
    assert row.registers > 0 and not row.spilled_bytes and row.roofline_seconds >= row.bytes / 4.3e12
    assert "loop" in evidence_table([row], device_of("sm_90"))


def test_occupancy_is_bound_by_what_runs_out_first():
    device = device_of("sm_90")
    assert occupancy(device, 128, 32, 0) == 1.0
    assert occupancy(device, 128, 255, 0) == pytest.approx(8 * 32 / 2048)  # registers: 256 a thread in units
    assert occupancy(device, 128, 32, 100 << 10) == pytest.approx(2 * 128 / 2048)  # shared memory
    assert occupancy(device, 32, 16, 0) == 0.5  # blocks


def test_what_is_no_cubin_is_refused():
    with pytest.raises(UnsupportedError):
        resources_of(b"\x7fELF", "kernel")
    with pytest.raises(UnsupportedError):
        resources_of(struct.pack("64s", b"nothing"), "kernel")


def test_kernels_by_hand_go_first_by_priority():
    made = []

    def by_hand(name: str, priority: int, fits: bool) -> Handwritten:
        def write(kernel, device, aligned):
            made.append(name)
            return write_triton(kernel, "kernel", None, aligned)

        return Handwritten(name, priority, lambda kernel, device: fits, write)

    offers = [by_hand("low", 1, True), by_hand("high", 2, True), by_hand("absent", 3, False)]
    for offer in offers:
        register(offer)
    try:
        emit(planned(lambda b, x: b.exp(b.sin(x)), TensorType(f32, (33, 77))), TARGET)
    finally:
        for offer in offers:
            unregister(offer)
    assert made == ["high"]


def test_the_nearest_architecture_of_a_capability():
    assert nearest_architecture((9, 0)) == "sm_90" and nearest_architecture((8, 7)) == "sm_86"
    assert nearest_architecture((8, 0)) == "sm_80" and nearest_architecture((12, 1)) == "sm_121"
    with pytest.raises(UnsupportedError, match="older"):
        nearest_architecture((7, 0))
    with pytest.raises(UnsupportedError, match="not known"):
        nearest_architecture((13, 0))
    with pytest.raises(UnsupportedError, match="sm_122"):  # code for its relatives uses what they alone have
        nearest_architecture((12, 2))
