"""A call: results, inputs that fit or not, aliasing, threads, symbolic sizes, and that nothing is left behind."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from dlcompiler.ir.errors import InputError, LaunchError
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.program import AtenCall, Launch, LibraryCall, Program, Slot, View
from dlcompiler.ir.types import bf16, f32, i64
from dlcompiler.passes.dataflow.memory import place
from dlcompiler.runtime.executable import Executable
from dlcompiler.runtime.profile import profile, table
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.programs import pointwise, program_of, slot


def launch(op: str, *views: View) -> Launch:
    return Launch(pointwise(op, len(views) - 1, views[-1].shape, views[-1].dtype), views)


def sum_then_product(shape=(4, 8), **settings) -> Program:
    """x, y -> (x + y) * y, through one intermediate."""
    x, y = slot("x", shape, "input", 0), slot("y", shape, "input", 1)
    total, result = slot("total", shape, "intermediate"), slot("result", shape, "output", 0)
    steps = (launch("add", x.view(), y.view(), total.view()), launch("mul", total.view(), y.view(), result.view()))
    return program_of((x, y), steps, (result.view(),), **settings)


def inputs(shape=(4, 8)) -> list[torch.Tensor]:
    return [torch.randn(shape), torch.randn(shape)]


def test_launches_with_an_intermediate() -> None:
    executable = Executable(sum_then_product())
    x, y = inputs()
    (result,) = executable([x, y])
    assert torch.equal(result, (x + y) * y)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 300), st.integers(1, 40), st.sampled_from([1, 4, 16]), st.integers(1, 3))
def test_any_split_over_threads_covers_all(size: int, grain: int, multiple: int, threads: int) -> None:
    executable = Executable(sum_then_product((size,), grain=grain, multiple=multiple))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, y = inputs((size,))
        assert torch.equal(executable([x, y])[0], (x + y) * y)
    finally:
        torch.set_num_threads(before)


def test_a_later_call_leaves_earlier_results_alone() -> None:
    executable = Executable(sum_then_product())
    x, y = inputs()
    first = executable([x, y])[0]
    kept = first.clone()
    second = executable([y, x])[0]
    assert torch.equal(first, kept) and first.data_ptr() != second.data_ptr()


def test_wrong_inputs_are_named() -> None:
    executable = Executable(sum_then_product())
    x, y = inputs()
    for given_inputs, message in [
        ([x], "takes 2 inputs, not 1"),
        ([x, y.double()], "input y has dtype f64, not f32"),
        ([x[:3], y], r"input x has shape \[3, 8\], not \[4, 8\]"),
        ([x.reshape(32), y], r"input x has shape \[32\]"),
        ([x.numpy(), y], "input x must be a tensor, not ndarray"),
        ([x, 3], "input y must be a tensor, not int"),
        ([x.to("meta"), y], "input x lies on meta"),
        ([x.to_sparse(), y], "input x is torch.sparse_coo"),
    ]:
        with pytest.raises(InputError, match=message):
            executable(given_inputs)
    assert torch.equal(executable([x, y])[0], (x + y) * y)  # and the executable is as good as before


def test_other_strides_and_misaligned_memory_work() -> None:
    executable = Executable(sum_then_product())
    x, y = inputs()
    expected = (x + y) * y
    transposed = x.t().contiguous().t()
    storage = torch.empty(33)
    shifted = storage[1:].view(4, 8).copy_(y)
    assert shifted.data_ptr() % 8 == 4
    assert torch.equal(executable([transposed, shifted])[0], expected)
    expanded = torch.randn(8).expand(4, 8)
    assert torch.equal(executable([expanded, y])[0], (expanded + y) * y)


def test_strides_of_single_and_empty_dimensions_do_not_matter() -> None:
    one = Executable(sum_then_product((1, 8)))
    x = torch.randn(8).as_strided((1, 8), (77, 1))
    assert torch.equal(one([x, x])[0], 2 * x * x)
    empty = Executable(sum_then_product((0, 8)))
    (result,) = empty([torch.empty(0, 8), torch.empty(8, 0).t()])
    assert result.shape == (0, 8)


def test_lazy_negation_is_resolved() -> None:
    executable = Executable(sum_then_product((3,)))
    x = torch._neg_view(torch.randn(3))
    assert x.is_neg() and torch.equal(executable([x, x])[0], 2 * x * x)


def test_parameters_give_results_without_a_gradient() -> None:
    executable = Executable(sum_then_product())
    x = torch.nn.Parameter(torch.randn(4, 8))
    (result,) = executable([x, x])
    assert not result.requires_grad and torch.equal(result, 2 * x * x)


def test_inference_mode_does_not_stick() -> None:
    executable = Executable(matmul_program(None))
    x, weight = torch.randn(2, 3), torch.randn(3, 4)
    with torch.inference_mode():
        first = executable([x, weight])[0]
    second = executable([x, weight])[0]
    assert first.is_inference() and not second.is_inference() and torch.equal(first, second)


def matmul_program(weight) -> Program:
    """x @ w + (x @ w), w a constant if given."""
    x = slot("x", (2, 3), "input", 0)
    w = slot("w", (3, 4), "constant" if weight is not None else "input", 0 if weight is not None else 1)
    t, result = slot("t", (2, 4), "intermediate"), slot("result", (2, 4), "output", 0)
    steps = (LibraryCall("matmul", (x.view(), w.view()), (t.view(),)), launch("add", t.view(), t.view(), result.view()))
    given = (x,) if weight is not None else (x, w)
    return program_of(given, steps, (result.view(),), constants=() if weight is None else (weight,))


def test_library_calls_see_inputs_that_move() -> None:
    executable = Executable(matmul_program(None))
    for _ in range(3):
        x, weight = torch.randn(2, 3), torch.randn(3, 4)
        torch.testing.assert_close(executable([x, weight])[0], 2 * (x @ weight))


def test_autocast_around_the_call_changes_nothing() -> None:
    executable = Executable(matmul_program(None))
    x, weight = torch.randn(2, 3), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (result,) = executable([x, weight])
    torch.testing.assert_close(result, 2 * (x @ weight))


def test_a_default_device_around_everything_changes_nothing() -> None:
    x, weight = torch.randn(2, 3), torch.randn(3, 4)
    with torch.device("meta"):
        executable = Executable(matmul_program(None))
        (result,) = executable([x, weight])
    torch.testing.assert_close(result, 2 * (x @ weight))


@pytest.mark.parametrize("kind", ["numpy", "torch", "read-only"])
def test_constants_are_shared_not_copied(kind: str) -> None:
    array = np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)
    weight = torch.from_numpy(array) if kind == "torch" else array
    executable = Executable(matmul_program(weight))
    x = torch.randn(2, 3)
    array[0, 0] = 7
    if kind == "read-only":
        array.setflags(write=False)
    torch.testing.assert_close(executable([x])[0], 2 * (x @ torch.from_numpy(array.copy())))


def test_a_constant_that_is_not_as_its_slot_says_is_refused() -> None:
    with pytest.raises(LaunchError, match="constant w is"):
        Executable(matmul_program(np.zeros((3, 4), dtype=np.float64)))


def test_results_alias_as_in_eager() -> None:
    x = slot("x", (4, 6), "input", 0)
    y = slot("y", (4, 6), "output", 0)
    constant = slot("c", (3,), "constant", 0)
    outputs = (y.view(), View(y, (6, 4), (1, 6)), y.view(), x.view(), View(x, (4, 2), (6, 1), 3), constant.view())
    program = program_of((x,), (launch("neg", x.view(), y.view()),), outputs, constants=(np.arange(3, dtype=np.float32),))
    executable = Executable(program)
    given_x = torch.randn(4, 6)
    first, transposed, again, same, window, fixed = executable([given_x])
    assert torch.equal(first, -given_x) and again is first and same is given_x
    assert torch.equal(transposed, first.t()) and transposed.data_ptr() == first.data_ptr()
    assert torch.equal(window, given_x[:, 3:5]) and window.data_ptr() == given_x.data_ptr() + 12
    version = given_x._version
    window.add_(1)
    assert given_x._version == version + 1
    fixed.fill_(9)  # a result is the caller's own
    assert executable([given_x])[5].tolist() == [0, 1, 2]


def test_written_inputs_count_as_changed() -> None:
    x, y = slot("x", (4, 8), "input", 0), slot("y", (4, 8), "input", 1)
    executable = Executable(program_of((x, y), (launch("neg", x.view(), y.view()),), ()))
    source, target = inputs()
    version = target._version
    assert executable([source, target]) == []
    assert torch.equal(target, -source) and target._version > version
    transposed = torch.zeros(8, 4).t()
    executable([source, transposed])
    assert torch.equal(transposed, -source) and transposed.stride() == (1, 4)


def test_bfloat16_library_call() -> None:
    x, w = slot("x", (3, 5), "input", 0, dtype=bf16), slot("w", (5, 2), "input", 1, dtype=bf16)
    y = slot("y", (3, 2), "output", 0, dtype=bf16)
    executable = Executable(program_of((x, w), (LibraryCall("matmul", (x.view(), w.view()), (y.view(),)),), (y.view(),)))
    a, b = torch.randn(3, 5, dtype=torch.bfloat16), torch.randn(5, 2, dtype=torch.bfloat16)
    torch.testing.assert_close(executable([a, b])[0], a @ b)


# -- aten calls ------------------------------------------------------------------------------------------------------------


def sort_program() -> Program:
    """x -> sorted values, twice their sum with themselves, positions of the sorted."""
    x = slot("x", (7,), "input", 0)
    values, positions = slot("values", (7,), "extern"), slot("positions", (7,), "extern", dtype=i64)
    double = slot("double", (7,), "output", 0)
    template = {"args": ({"operand": 0}, {"dim": 0}, True), "kwargs": {}}
    steps = (
        AtenCall("aten.sort.default", template, (x.view(),), (values.view(), positions.view())),
        launch("add", values.view(), values.view(), double.view()),
    )
    return program_of((x,), steps, (double.view(), positions.view()))


def test_aten_call_with_two_results() -> None:
    executable = Executable(sort_program())
    for _ in range(2):
        x = torch.randn(7)
        double, positions = executable([x])
        values, expected = torch.sort(x, descending=True)
        assert torch.equal(double, 2 * values) and torch.equal(positions, expected)


def aten_program(target: str, args: tuple, shape=(6,), out_shape=(6,)) -> Program:
    """x -> a kernel's negation into the arena -> `target` -> its result, handed back, and its negation."""
    x, t = slot("x", shape, "input", 0), slot("t", shape, "intermediate")
    made, y = slot("made", out_shape, "extern"), slot("y", out_shape, "output", 0)
    call = AtenCall(target, {"args": ({"operand": 0}, *args), "kwargs": {}}, (t.view(),), (made.view(),))
    steps = (launch("neg", x.view(), t.view()), call, launch("neg", made.view(), y.view()))
    return program_of((x,), steps, (made.view(), y.view()))


def test_a_result_that_views_its_operand_is_copied() -> None:
    executable = Executable(aten_program("aten.view.default", ((2, 3),), (6,), (2, 3)))
    x = torch.randn(6)
    first, negated = executable([x])
    kept = first.clone()
    executable([torch.randn(6)])
    assert torch.equal(first, kept) and torch.equal(first, -x.view(2, 3)) and torch.equal(negated, x.view(2, 3))


def test_a_result_with_other_strides_is_laid_out_as_planned() -> None:
    program = aten_program("aten.t_copy.default", (), (2, 3), (3, 2))
    x = torch.randn(2, 3)
    made, negated = Executable(program)([x])
    assert made.stride() == (2, 1) and torch.equal(made, -x.t()) and torch.equal(negated, x.t())


def test_a_result_of_another_shape_is_an_error() -> None:
    executable = Executable(aten_program("aten.cumsum.default", (0,), (6,), (5,)))
    with pytest.raises(LaunchError, match=r"aten.cumsum.default gave torch.float32\[6\]"):
        executable([torch.randn(6)])


# -- symbolic sizes ----------------------------------------------------------------------------------------------------------


def symbolic_program() -> Program:
    n = symbol("n")
    x, y = slot("x", (n, 3), "input", 0), slot("y", (n, 3), "input", 1)
    t, r = slot("t", (n, 3), "intermediate"), slot("r", (n, 3), "output", 0)
    steps = (launch("add", x.view(), y.view(), t.view()), launch("mul", t.view(), y.view(), r.view()))
    return program_of((x, y), steps, (r.view(),))


def test_symbolic_sizes() -> None:
    executable = Executable(symbolic_program(), place)
    for n in (5, 1, 0, 70, 5):
        x, y = inputs((n, 3))
        assert torch.equal(executable([x, y])[0], (x + y) * y)
    assert executable.placement({"n": 70}).arena_bytes == 896
    with pytest.raises(InputError, match=r"input y has shape \[4, 3\], not \[5, 3\]"):
        executable([torch.randn(5, 3), torch.randn(4, 3)])
    with pytest.raises(InputError, match="input x must be a tensor"):
        executable(["five", torch.randn(4, 3)])


def test_an_integer_argument_binds_a_symbol() -> None:
    n = symbol("n")
    x, y = slot("x", (n * 2 + 1,), "input", 1), slot("y", (n * 2 + 1,), "output", 0)
    executable = Executable(program_of(("n", x), (launch("neg", x.view(), y.view()),), (y.view(),)), place)
    given_x = torch.randn(7)
    assert torch.equal(executable([3, given_x])[0], -given_x)
    with pytest.raises(InputError, match="input n must be an integer, not str"):
        executable(["3", given_x])
    with pytest.raises(InputError, match=r"input x has shape \[7\], not \[9\]"):
        executable([4, given_x])


def test_a_size_is_solved_from_a_linear_dimension() -> None:
    n = symbol("n")
    x, y = slot("x", (n * 2 + 1,), "input", 0), slot("y", (n * 2 + 1,), "output", 0)
    executable = Executable(program_of((x,), (launch("neg", x.view(), y.view()),), (y.view(),)), place)
    for size in (1, 9):
        given_x = torch.randn(size)
        assert torch.equal(executable([given_x])[0], -given_x)
    with pytest.raises(InputError, match=r"input x has shape \[8\], not \[7\]"):
        executable([torch.randn(8)])


def test_plans_of_a_symbolic_program_are_bounded() -> None:
    executable = Executable(symbolic_program(), place)
    for n in range(1, 200):
        x, y = inputs((n, 3))
        executable([x, y])
    assert len(executable._plans) <= 64


# -- threads and memory --------------------------------------------------------------------------------------------------------


def test_calls_from_several_threads() -> None:
    executable = Executable(sum_then_product((64, 64), grain=512))
    failures: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            x, y = torch.randn(64, 64, generator=generator), torch.randn(64, 64, generator=generator)
            if not torch.equal(executable([x, y])[0], (x + y) * y):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_nothing_is_left_behind() -> None:
    executable = Executable(matmul_program(None))
    x, weight = torch.randn(2, 3), torch.randn(3, 4)
    (result,) = executable([x, weight])
    held = [weakref.ref(t) for t in (x, weight, result)]
    gc.disable()  # no cycle may keep memory until a collection
    try:
        del x, weight, result
        assert [ref() for ref in held] == [None, None, None]
        frame = weakref.ref(executable._only.frames[0])
        references = sys.getrefcount(executable)
        executable.close()
        assert frame() is None and sys.getrefcount(executable) == references
        gone = weakref.ref(executable)
        del executable
        assert gone() is None
    finally:
        gc.enable()


def test_extern_tensors_are_dropped_after_the_call() -> None:
    executable = Executable(sort_program())
    (double, positions) = executable([torch.randn(7)])
    reference = weakref.ref(positions)
    del positions
    assert reference() is None and double.shape == (7,)


def test_a_call_that_fails_gives_its_frame_back() -> None:
    executable = Executable(aten_program("aten.cumsum.default", (0,), (6,), (5,)))
    for _ in range(3):
        with pytest.raises(LaunchError):
            executable([torch.randn(6)])
    assert len(executable._only.frames) == 1 and not executable._only.frames[0].externs


def test_a_program_without_code_or_plan_is_refused() -> None:
    program = symbolic_program()
    with pytest.raises(LaunchError, match="no memory plan"):
        Executable(program)
    with pytest.raises(LaunchError, match="no code"):
        Executable(program.replace(code=None), place)


def test_an_intermediate_cannot_be_handed_back() -> None:
    x, t = slot("x", (3,), "input", 0), slot("t", (3,), "intermediate")
    with pytest.raises(LaunchError, match="t lies in the arena"):
        Executable(program_of((x,), (launch("neg", x.view(), t.view()),), (t.view(),)))


def test_dtypes_of_slots_are_kept() -> None:
    x = Slot("x", f32, (), (), "input", 0)
    y = Slot("y", f32, (), (), "output", 0)
    (result,) = Executable(program_of((x,), (launch("neg", x.view(), y.view()),), (y.view(),)))([torch.tensor(2.0)])
    assert result.shape == () and result.item() == -2


# -- profile -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", [sum_then_product(), matmul_program(None), sort_program()], ids=["launches", "library", "aten"]
)
def test_every_step_is_timed(program: Program) -> None:
    executable = Executable(program)
    tensors = [torch.randn(s.shape) for s in program.inputs]
    before = executable(tensors)
    times = profile(executable, tensors, rounds=3)
    assert [t.number for t in times] == list(range(len(program.steps))) and all(t.seconds > 0 for t in times)
    assert f"{len(times)} steps" in table(times) and all(t.name in table(times) for t in times)
    for left, right in zip(before, executable(tensors)):
        assert torch.equal(left, right)
    with pytest.raises(InputError, match="input x has dtype"):
        profile(executable, [t.double() for t in tensors])
