"""Every op of the table against its record: type rule, meaning, text, element form and refusals."""

import numpy as np
import pytest
from dlcompiler.ir.errors import CompilerError
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.ops import TABLE, Trait
from dlcompiler.ir.text import graph_constants, graphs_equal, parse_graph, print_graph
from dlcompiler.ir.types import dtype_of
from dlcompiler.ir.verify import verify_graph, verify_kernel

from tests.lowering import graph_kernel, run_as_kernel
from tests.samples import RECORDS, WITHOUT_RECORD, error_samples, samples

OPS = sorted(RECORDS)
# an op without an element form cannot be a kernel
WITHOUT_KERNEL = frozenset(
    "lstm gru rnn lstm_scan gru_scan rnn_scan lstm_scan_keeping gru_scan_keeping rnn_scan_keeping "
    "lstm_scan_backward gru_scan_backward rnn_scan_backward running_extreme sort topk places scatter index_update "
    "attention_with_logsumexp attention_backward block_linear linear_logsumexp".split()
)
# relative to the largest element, for sums that may be ordered otherwise
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def assert_same(actual: np.ndarray, expected: np.ndarray, exact: bool, what: str) -> None:
    """Equal bits (any NaN equals any NaN), or equal within the dtype's tolerance."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    if exact or expected.dtype.kind in "iub":
        is_float = expected.dtype.kind in "fV"
        nan = np.isnan(expected) if is_float else np.zeros(expected.shape, bool)
        same = actual.tobytes() == expected.tobytes() or np.array_equal(
            np.where(nan, 0, actual).astype(expected.dtype), np.where(nan, 0, expected).astype(expected.dtype)
        )
        assert same and (not is_float or np.array_equal(np.isnan(actual), nan)), what
        if is_float:
            np.testing.assert_array_equal(np.signbit(actual[~nan]), np.signbit(expected[~nan]), what)
        return
    tolerance = TOLERANCES[expected.dtype.name]
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.abs(wide[np.isfinite(wide)])
    scale = max(float(finite.max()), 1.0) if finite.size else 1.0
    np.testing.assert_allclose(other, wide, rtol=tolerance, atol=tolerance * scale, err_msg=what)


def test_every_op_has_a_record():
    assert set(RECORDS) == set(TABLE) - WITHOUT_RECORD


def test_ops_say_how_they_are_computed():
    for op in TABLE.values():
        meaning = op.evaluate is not None or op.expand is not None
        given = ("input", "size", "aten.call", "host.call", "if", "loop", "random_seed")  # by whoever runs the graph
        assert meaning or op.name in given, f"{op.name} has no meaning"
        computed = op.element is not None or op.expand is not None
        assert computed or op.has(Trait.LIBRARY) or op.has(Trait.EXTERN) or op.name in ("input", "size"), op.name


@pytest.mark.parametrize("name", OPS)
def test_type_rule_and_meaning_agree_and_text_reads_back(name):
    for sample in samples(name):
        graph = sample.graph()
        verify_graph(graph)
        results = interpret_graph(graph, sample.inputs)
        for node, result in zip(graph.outputs, results):
            assert (result.dtype, result.shape) == (node.dtype.numpy, node.shape), sample
            assert dtype_of(result) is node.dtype
        again = parse_graph(print_graph(graph), graph_constants(graph))
        assert graphs_equal(graph, again) is None, sample


@pytest.mark.parametrize("name", [n for n in OPS if n not in WITHOUT_KERNEL])
def test_kernel_equals_meaning(name):
    for sample in samples(name):
        graph = sample.graph()
        kernel, _ = graph_kernel(graph)
        verify_kernel(kernel)
        (expected,) = interpret_graph(graph, sample.inputs)
        (actual,) = run_as_kernel(graph, sample.inputs)
        assert_same(actual, expected, sample.exact, f"{sample}\n{kernel}")


@pytest.mark.parametrize("name", [n for n in OPS if RECORDS[n].errors])
def test_refusals(name):
    for sample in error_samples(name):
        try:
            type = TABLE[name].infer(sample.types, sample.attributes)
        except CompilerError as error:
            assert error.__class__ is sample.error, f"{sample}: {error}"
        else:
            pytest.fail(f"{sample} was taken and gives {type}")
