"""`dlcompiler.compile`: every kind of model in, every kind of call, and errors that name the input."""

from __future__ import annotations

import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from dlcompiler.ir.errors import InputError, InvalidModelError, OptionError, UnsupportedError
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.types import TensorType, bf16, f32
from onnx import TensorProto, helper
from torch import Tensor, nn

import dlcompiler
from dlcompiler.graph_file import write_graph_file


class TwoInputs(nn.Module):
    """Nested arguments and results, one by keyword, one that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, pair: dict[str, Tensor], *, scale: Tensor, flip: bool = False) -> dict[str, object]:
        y = self.linear(pair["a"] + pair["b"]) * scale
        return {"out": -y if flip else y, "parts": (y.sum(), 7, None)}


def dynamic_graph() -> Graph:
    b = Builder("dyn")
    x = b.input("x", TensorType(f32, (symbol("N"), 4)))
    y = b.input("y", TensorType(f32, (4, symbol("N"))))
    return b.finish([b.exp(x), b.add(x, b.permute(y, dims=(1, 0)))])


def test_module_function_and_exported_program_agree() -> None:
    module, x = nn.Sequential(nn.Linear(4, 3), nn.GELU()).eval(), torch.randn(5, 4)
    with torch.no_grad():
        expected = module(x)
        exported = torch.export.export(module, (x,))
        made = (
            dlcompiler.compile(module, (x,)),
            dlcompiler.compile(module, x),
            dlcompiler.compile(lambda t: module(t), (x,)),
            dlcompiler.compile(exported),
        )
        for compiled in made:
            torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)


def test_weights_are_shared_not_copied() -> None:
    module, x = nn.Linear(4, 3).eval(), torch.randn(5, 4)
    compiled = dlcompiler.compile(module, (x,))
    with torch.no_grad():
        module.weight.mul_(2)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-6)


def test_nested_arguments_and_results() -> None:
    module = TwoInputs().eval()
    pair, scale = {"a": torch.randn(2, 4), "b": torch.randn(2, 4)}, torch.tensor(3.0)
    exported = torch.export.export(module, (pair,), {"scale": scale})
    compiled = dlcompiler.compile(exported)
    with torch.no_grad():
        expected, actual = module(pair, scale=scale), compiled(pair, scale=scale)
    assert list(actual) == ["out", "parts"] and actual["parts"][1:] == (7, None)
    torch.testing.assert_close(actual["out"], expected["out"])
    torch.testing.assert_close(actual["parts"][0], expected["parts"][0])
    with pytest.raises(InputError, match="captured with arguments"):
        compiled(pair)


def test_as_it_was_given_so_it_comes_back() -> None:
    b = Builder("g")
    graph = b.finish([b.exp(b.input("x", TensorType(f32, (2, 3))))])
    compiled = dlcompiler.compile(graph)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert isinstance(compiled(x), np.ndarray)
    assert isinstance(compiled(torch.from_numpy(x)), Tensor)
    np.testing.assert_array_equal(compiled(x), compiled(torch.from_numpy(x)).numpy())
    for view in (np.asfortranarray(x), x[::-1][::-1], x.astype(">f4"), np.lib.stride_tricks.as_strided(x, (2, 3), (12, 4))):
        np.testing.assert_array_equal(compiled(view), compiled(x))
    x.flags.writeable = False
    np.testing.assert_allclose(compiled(x), np.exp(x), rtol=1e-6)


def test_bfloat16_arrays() -> None:
    b = Builder("g")
    x = b.input("x", TensorType(bf16, (4,)))
    compiled = dlcompiler.compile(b.finish([b.mul(x, x)]))
    result = compiled(np.array([1, 2, 3, 4], ml_dtypes.bfloat16))
    assert result.dtype == ml_dtypes.bfloat16 and result.tolist() == [1, 4, 9, 16]


def test_calls_by_position_name_and_mapping() -> None:
    compiled = dlcompiler.compile(dynamic_graph())
    x, y = np.ones((3, 4), np.float32), np.ones((4, 3), np.float32)
    assert compiled.input_names == ("x", "y") and compiled.output_names == ("output_0", "output_1")
    expected = compiled(x, y)
    for actual in (compiled(x=x, y=y), compiled({"y": y, "x": x}), compiled(x, y=y)):
        for left, right in zip(actual, expected):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c, x, y: c(x), "no value for input 'y'"),
        (lambda c, x, y: c(x, y, y), "3 inputs given, the model takes 2: x, y"),
        (lambda c, x, y: c(x, z=y), "no input 'z'; its inputs are x, y"),
        (lambda c, x, y: c(x, x=x), "input 'x' is given twice"),
        (lambda c, x, y: c(x.astype(np.int32), y), "input 'x' must be f32[N, 4], not i32[3, 4]; convert it to f32"),
        (lambda c, x, y: c(x, y[:, :2]), "input 'y' must be f32[4, N], not f32[4, 2]: dimension 1: N is 3"),
        (lambda c, x, y: c(x[:, :3], y), "input 'x' must be f32[N, 4], not f32[3, 3]: dimension 1 differs"),
        (lambda c, x, y: c(x[0], y), "input 'x' must be f32[N, 4], not f32[4]"),
        (lambda c, x, y: c(x, "text"), "input 'y' must be an array of numbers, not str"),
        (lambda c, x, y: c(x, None), "input 'y' must be an array of numbers, not NoneType"),
        (lambda c, x, y: c(torch.from_numpy(x), 3), "input 'y' must be a tensor or array of type f32[4, N], not int"),
    ],
)
def test_wrong_inputs_are_named(call, says: str) -> None:
    compiled = dlcompiler.compile(dynamic_graph())
    x, y = np.ones((3, 4), np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(InputError) as caught:
        call(compiled, x, y)
    assert says in str(caught.value)
    assert len(compiled(x, y)) == 2, "a refused call leaves the program as it was"


def test_paths_of_every_kind(tmp_path: Path) -> None:
    node = helper.make_node("Exp", ["x:0"], ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("x:0", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "m.onnx")
    from_file = dlcompiler.compile(tmp_path / "m.onnx")
    from_file.save(tmp_path / "m.dlc")
    write_graph_file(tmp_path / "m.txt", from_file.graph)
    x = np.ones((2, 3), np.float32)
    for other in (
        dlcompiler.compile(model),
        dlcompiler.compile(str(tmp_path / "m.onnx"), dynamic_shapes={"x:0": (2, 3)}),
        dlcompiler.compile(tmp_path / "m.dlc"),
        dlcompiler.load(tmp_path / "m.dlc"),
        dlcompiler.compile(tmp_path / "m.txt"),
    ):
        np.testing.assert_array_equal(other({"x:0": x}), from_file(x))


def test_graph_text_finds_its_weights_beside_it(tmp_path: Path) -> None:
    b = Builder("g")
    x = b.input("x", TensorType(f32, (2, 40)))
    graph = b.finish([b.add(x, b.constant(np.arange(40, dtype=np.float32)))])
    write_graph_file(tmp_path / "m.txt", graph)
    result = dlcompiler.compile(tmp_path / "m.txt")(np.zeros((2, 40), np.float32))
    np.testing.assert_array_equal(result[1], np.arange(40))
    (tmp_path / "m.safetensors").unlink()
    with pytest.raises(InvalidModelError, match="no data for 1 constants"):
        dlcompiler.compile(tmp_path / "m.txt")


def test_what_is_no_model() -> None:
    for thing in (5, None, {}, b"onnx"):
        with pytest.raises(InvalidModelError, match="is no model"):
            dlcompiler.compile(thing)
    with pytest.raises(InputError, match="example_inputs"):
        dlcompiler.compile(nn.Linear(2, 2))


def test_dynamic_option() -> None:
    compiled = dlcompiler.compile(nn.Linear(4, 3).eval(), (torch.randn(5, 4),), options={"dynamic": True})
    assert len(compiled.report().symbols) == 1
    assert compiled(torch.randn(9, 4)).shape == (9, 3)


def test_wrong_options_and_targets() -> None:
    with pytest.raises(OptionError, match="did you mean 'strict'"):
        dlcompiler.compile(dynamic_graph(), options={"strct": True})
    with pytest.raises(OptionError, match="did you mean 'cpu'"):
        dlcompiler.compile(dynamic_graph(), target="cpuu")


def test_simulate_is_for_gpu_programs() -> None:
    with pytest.raises(UnsupportedError, match="simulate runs GPU programs"):
        dlcompiler.compile(dynamic_graph()).simulate(np.ones((3, 4), np.float32), np.ones((4, 3), np.float32))


def test_gpu_programs_compile_and_simulate_without_one() -> None:
    pytest.importorskip("triton")
    compiled = dlcompiler.compile(dynamic_graph(), target="cuda:sm_90")
    x, y = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    exp, total = compiled.simulate(x, y.reshape(4, 3))
    np.testing.assert_allclose(exp, np.exp(x), rtol=1e-5)
    np.testing.assert_allclose(total, x + y.reshape(4, 3).T, rtol=1e-6)


def test_several_threads_may_call() -> None:
    compiled = dlcompiler.compile(dynamic_graph())
    wrong: list[object] = []

    def call(size: int) -> None:
        x, y = np.full((size, 4), size, np.float32), np.zeros((4, size), np.float32)
        for _ in range(50):
            if not (compiled(x, y)[1] == x).all():
                wrong.append(size)

    threads = [threading.Thread(target=call, args=(size,)) for size in (1, 2, 3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reset_forgets_but_held_programs_go_on() -> None:
    compiled = dlcompiler.compile(dynamic_graph())
    x, y = np.ones((3, 4), np.float32), np.ones((4, 3), np.float32)
    before = compiled(x, y)
    dlcompiler.reset()
    assert dlcompiler.reports() == []
    for left, right in zip(compiled(x, y), before):
        np.testing.assert_array_equal(left, right)


def test_profile_covers_every_step() -> None:
    compiled = dlcompiler.compile(dynamic_graph())
    x, y = np.ones((3, 4), np.float32), np.ones((4, 3), np.float32)
    times = compiled.profile(x, y, rounds=20)
    assert [time.number for time in times] == list(range(len(compiled.program.steps)))
    assert all(time.seconds >= 0 for time in times)


def test_repr_says_what_it_takes() -> None:
    assert "x: f32[N, 4]" in repr(dlcompiler.compile(dynamic_graph()))
