"""What a graph for a GPU computes of numbers on the CPU alone is taken out of it."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dlcompiler.frontends.fx_host import take_host_part

aten = torch.ops.aten


def update(p, g, step, rate, count):
    """Two parameters' worth of an optimizer that counts its steps on the CPU; `count` is only counted."""
    after = aten.add.Tensor(step, 1)
    correction = aten.sub.Tensor(aten.pow.Scalar(0.9, after), 1)
    new = aten.sub.Tensor(p, aten.mul.Tensor(aten.div.Tensor(g, correction), rate))
    return new, aten.copy_.default(step, after), aten.add.Tensor(count, 1), aten.mul.Tensor(new, after)


def traced(*devices: str):
    with FakeTensorMode():
        inputs = [torch.empty(() if k > 1 else (3, 4), device=device) for k, device in enumerate(devices)]
        return make_fx(update)(*inputs)


def test_numbers_of_the_cpu_are_computed_there():
    part = take_host_part(traced("cuda", "cuda", "cpu", "cpu", "cpu"))
    assert part is not None
    assert {n.meta["val"].device.type for n in part.host.graph.nodes if "val" in n.meta} == {"cpu"}
    assert {n.meta["val"].device.type for n in part.device.graph.nodes if "val" in n.meta} == {"cuda"}

    p, g = torch.randn(3, 4), torch.randn(3, 4)
    numbers = [torch.tensor(2.0), torch.tensor(0.1), torch.tensor(7.0)]
    expected = update(p, g, *(n.clone() for n in numbers))
    given = [p, g, *numbers]
    of_host = part.host(*(given[k] for k in part.host_inputs))
    rows = of_host[: part.rows]
    assert all(r.shape[1] * r.element_size() == 16 for r in rows)  # each number lies as a vector does
    of_device = part.device(*(given[k] for k in part.device_inputs), *rows)
    for (is_host, k), want in zip(part.results, expected, strict=True):
        torch.testing.assert_close((of_host if is_host else of_device)[k], want, rtol=0, atol=0)
    assert numbers[0] == 3  # counted in place, without the device


def test_numbers_that_are_drawn_stay_where_all_draws_are():
    def function(p, step):
        return aten.mul.Tensor(p, aten.mul.Tensor(step, aten.rand.default([], device=torch.device("cpu"))))

    with FakeTensorMode():
        module = make_fx(function)(torch.empty(3, device="cuda"), torch.empty(()))
    assert take_host_part(module) is None


def test_graphs_of_one_device_are_left_whole():
    assert take_host_part(traced(*["cpu"] * 5)) is None
    assert take_host_part(traced(*["cuda"] * 5)) is None
