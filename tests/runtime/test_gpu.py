"""The runtime for GPUs on a device made of Triton's interpreter: everything but the last call of the driver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dlcompiler.codegen import emit
from dlcompiler.codegen.gpu import recurrent_form
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.errors import InputError, LaunchError
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.memory import place
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
from dlcompiler.runtime.constants import remember_source
from dlcompiler.runtime.cuda_driver import Driver
from dlcompiler.runtime.device import image_for, open_device
from dlcompiler.runtime.gpu import GpuExecutable

from tests.runtime.interpreted_device import InterpretedDevice

pytest.importorskip("triton")
TARGET = parse_target("cuda:sm_90")


def executable(graph: Graph, device: InterpretedDevice, **options) -> GpuExecutable:
    program = emit(plan(fuse(optimize(graph, TARGET), TARGET), TARGET), TARGET)
    return GpuExecutable(program, place, open_device=lambda _: device, **options)


def graph_of(build, *types: TensorType, written: int | None = None) -> Graph:
    b = Builder("test")
    inputs = [b.input(f"x{k}", t) for k, t in enumerate(types)]
    outputs = build(b, *inputs)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return b.finish(outputs) if written is None else b.finish([], writebacks=((outputs[-1], inputs[written]),))


ROWS = TensorType(f32, (6, 40))


def network(b, x, w):
    """Two kernels with a library call between them."""
    return b.softmax(b.add(b.matmul(b.gelu(x), w), 1.0), axis=1)


def expected(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.nn.functional.gelu(x) @ w + 1, 1)


def test_kernels_and_library_calls_share_the_arena():
    run = executable(graph_of(network, ROWS, TensorType(f32, (40, 40))), InterpretedDevice())
    for seed in range(2):
        torch.manual_seed(seed)
        x, w = torch.randn(6, 40), torch.randn(40, 40)
        torch.testing.assert_close(run([x, w])[0], expected(x, w))


def test_inputs_are_made_to_fit_or_refused():
    device = InterpretedDevice()
    run = executable(graph_of(lambda b, x: b.mul(x, 2.0), ROWS), device)
    memory = torch.randn(1 + 6 * 40)
    shifted = memory[1:].view(6, 40)  # not at a multiple of 16 bytes
    torch.testing.assert_close(run([shifted])[0], shifted * 2)
    turned = torch.randn(40, 6).t()
    torch.testing.assert_close(run([turned])[0], turned * 2)
    for bad, words in ((torch.randn(6, 41), "shape"), (torch.zeros(6, 40, dtype=torch.int32), "dtype"), (3, "tensor")):
        with pytest.raises(InputError, match=words):
            run([bad])


def test_an_input_that_is_written_is_written_wherever_it_lies():
    run = executable(graph_of(lambda b, x: [b.add(x, 1.0)], ROWS, written=0), InterpretedDevice())
    for x in (torch.zeros(6, 40), torch.zeros(40, 6).t()):
        version = x._version
        run([x])
        run([x])
        assert x.eq(2).all() and x._version > version


def test_symbolic_sizes_have_a_plan_each():
    run = executable(graph_of(lambda b, x: b.softmax(b.neg(x), axis=1), TensorType(f32, (symbol("N"), 40))), InterpretedDevice())
    for rows in (1, 7, 1, 0):
        x = torch.randn(rows, 40)
        torch.testing.assert_close(run([x])[0], torch.softmax(-x, 1))


def test_what_depends_on_weights_alone_is_made_once_and_again_when_they_change():
    weight = torch.randn(40)
    device = InterpretedDevice()

    def build(b, x):
        w = b.constant(weight.numpy(), f32)
        return b.mul(x, b.sigmoid(b.reduce_sum(b.exp(w), axes=(0,), keepdims=True)))

    run = executable(graph_of(build, ROWS), device)
    x = torch.randn(6, 40)
    launches = []
    for value in (None, None, 0.5):
        if value is not None:
            weight.fill_(value)
        device.started.clear()
        torch.testing.assert_close(run([x])[0], x * torch.sigmoid(weight.exp().sum()))
        launches.append(len(device.started))
    assert launches[1] <= launches[0]


@pytest.mark.parametrize("change", ["in place", "through .data", "on a device"])
def test_a_constant_is_copied_again_when_its_tensor_changes(change):
    weight, device = torch.randn(6, 40), InterpretedDevice()
    elsewhere = weight.clone()  # as a tensor on a device, of which the program holds a copy on the CPU
    if change == "on a device":
        remember_source(array := weight.numpy(), elsewhere)
    else:
        array = weight.numpy()
    run = executable(graph_of(lambda b, x: b.mul(x, b.constant(array, f32)), ROWS), device)
    x = torch.randn(6, 40)
    for value in (None, 0.5, 0.25):
        if value is not None and change == "through .data":
            weight.data.fill_(value)
        elif value is not None:
            (weight if change == "in place" else elsewhere).fill_(value)
        torch.testing.assert_close(run([x])[0], x * (elsewhere if change == "on a device" else weight))
    assert device.waits == 0  # on one stream everything is in order by itself
    device.stream_now = 1
    torch.testing.assert_close(run([x])[0], x * 0.25)
    assert device.waits == 1


@pytest.mark.parametrize("layout", ["as it is", "a part", "transposed", "off a vector"])
def test_a_models_tensor_on_the_device_is_read_where_it_is(layout):
    """Without a second one, unless it lies otherwise than kernels read it."""
    memory = torch.randn(8, 48)
    copy = memory.clone().numpy()
    remember_source(copy, memory)
    part = {"as it is": np.s_[:, :], "a part": np.s_[2:, :], "transposed": np.s_[:, :], "off a vector": np.s_[:, 1:41]}[layout]
    array = copy[part].T if layout == "transposed" else copy[part]
    run = executable(graph_of(lambda b, x: b.mul(x, b.constant(array, f32)), TensorType(f32, array.shape)), InterpretedDevice())
    x = torch.randn(array.shape)
    expected = memory[part].T if layout == "transposed" else memory[part]
    for _ in range(2):
        torch.testing.assert_close(run([x])[0], x * expected)
        memory.mul_(2)
    (held,) = run._shared.constants.values()
    is_shared = held.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
    assert is_shared == (layout != "off a vector")
    assert (held.data_ptr() - memory.data_ptr() == 2 * 48 * 4) == (layout == "a part")


class Library:
    """A driver that knows contexts alone: one of its own for each GPU, and the one current in this thread."""

    def __init__(self) -> None:
        self.current, self.set = 0, []

    def cuInit(self, flags):
        return 0

    def cuCtxGetCurrent(self, found):
        found._obj.value = self.current or None
        return 0

    def cuDeviceGet(self, found, index):
        found._obj.value = index
        return 0

    def cuDevicePrimaryCtxRetain(self, found, device):
        found._obj.value = 1000 + device.value
        return 0

    def cuCtxSetCurrent(self, context):
        self.current = context.value
        self.set.append(context.value)
        return 0


def test_a_thread_without_a_context_is_given_that_of_the_gpu():
    library = Library()
    driver = Driver(library)
    for index in (0, 0, 1, 0):
        driver.make_current(index)
        assert library.current == 1000 + index
    library.current = 0  # another thread
    driver.make_current(0)
    assert library.set == [1000, 1001, 1000, 1000]


def test_each_stream_has_memory_of_its_own():
    device = InterpretedDevice()
    run = executable(graph_of(network, ROWS, TensorType(f32, (40, 40))), device)
    x, w = torch.randn(6, 40), torch.randn(40, 40)
    for stream in (0, 5, 0):
        device.stream_now = stream
        torch.testing.assert_close(run([x, w])[0], expected(x, w))
    assert {s for _, s in device.started} == {0, 5}


def test_a_recorded_program_keeps_its_results_apart():
    device = InterpretedDevice()
    chain = graph_of(lambda b, x, w: [b.softmax(b.mul(x, w), axis=1), b.reduce_sum(x, axes=(0,))], ROWS, ROWS)
    run = executable(chain, device, graphs=True)
    weight, results = torch.randn(6, 40), []
    xs = [torch.randn(6, 40) for _ in range(4)]  # all alive: at four places
    for x in xs:
        results.append(run([x, weight]))
    assert device.recordings == 1 and device.replays == 3
    moved = weight.clone()
    results.append(run([xs[0], moved]))  # a parameter elsewhere: recorded again
    assert device.recordings == 2
    for x, (soft, total) in zip([*xs, xs[0]], results):
        torch.testing.assert_close(soft, torch.softmax(x * weight, 1))
        torch.testing.assert_close(total, x.sum(0))


def test_a_recorded_program_writes_its_inputs():
    device = InterpretedDevice()
    run = executable(graph_of(lambda b, x: [b.add(x, 1.0)], ROWS, written=0), device, graphs=True)
    steady = torch.zeros(6, 40)
    for _ in range(4):
        run([steady])
    assert steady.eq(4).all() and device.replays == 3
    for moving in (torch.zeros(6, 40), torch.ones(6, 40)):
        before = moving.clone()
        run([moving])
        torch.testing.assert_close(moving, before + 1)


def test_a_kernel_that_is_started_for_each_step_is_told_which(monkeypatch):
    monkeypatch.setattr(recurrent_form, "WHOLE_WEIGHT_BYTES", 0)  # else a layer this narrow is one launch
    device = InterpretedDevice()
    shapes = [(1, 2, 17), (5, 2, 17), (17, 17)]

    def build(b, *operands):
        return b("tuple.get", b("rnn_scan", *operands, reverse=(False,), activation="tanh"), index=0)

    run = executable(graph_of(build, *(TensorType(f32, shape) for shape in shapes)), device, graphs=True)
    for seed in range(3):
        torch.manual_seed(seed)
        h, gates, weight = (torch.randn(shape) * 0.3 for shape in shapes)
        want, state = [], h[0]
        for each in gates:
            state = torch.tanh(each + state @ weight.t())
            want.append(state)
        torch.testing.assert_close(run([h, gates, weight])[0], torch.stack(want))
    assert len(device.started) == 5 and device.recordings == 1 and device.replays == 2


def test_too_little_memory_is_said_before_anything_runs():
    device = InterpretedDevice(free=500)
    run = executable(graph_of(lambda b, x: b.mul(x, 2.0), ROWS), device)
    with pytest.raises(LaunchError, match="MiB"):
        run([torch.zeros(6, 40)])
    assert not device.started


def test_no_gpu_is_said_clearly_and_leaves_the_cpu_usable():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(LaunchError, match="CUDA|driver|GPU"):
        open_device()
    program = emit(plan(fuse(graph_of(lambda b, x: b.neg(x), ROWS), TARGET), TARGET), TARGET)
    with pytest.raises(LaunchError):
        GpuExecutable(program, place)([torch.zeros(6, 40)])


def test_the_binary_that_a_gpu_is_given():
    program = emit(plan(fuse(graph_of(lambda b, x: b.neg(x), ROWS), TARGET), TARGET), TARGET)
    kernel = program.code.kernels[0]
    assert image_for(kernel, (9, 0)) == kernel.binary
    with pytest.raises(LaunchError, match="sm_80"):
        image_for(kernel, (8, 0))
    with pytest.raises(LaunchError, match="sm_100"):  # PTX for sm_90a runs on no other
        image_for(kernel, (10, 0))
    older = parse_target("cuda:sm_80")
    kernel = emit(plan(fuse(graph_of(lambda b, x: b.neg(x), ROWS), older), older), older).code.kernels[0]
    assert image_for(kernel, (8, 6)) == kernel.binary
    assert image_for(kernel, (12, 0)).startswith(b"//")
    assert np.frombuffer(image_for(kernel, (12, 0)), np.uint8)[-1] == 0
