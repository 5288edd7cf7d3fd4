"""The conformance cases of the onnx package: a floor under how many pass, and a few run as compiled code."""

from __future__ import annotations

import pytest

from tests.frontends import onnx_cases

# one of each kind of step: kernels, library calls in one, two and three dimensions, views, indexing, shapes, constants
SAMPLE = (
    "test_add_bcast test_convtranspose_1d test_convtranspose_3d test_basic_conv_with_padding test_size test_gather_1 "
    "test_reduce_sum_do_not_keepdims_random test_resize_upsample_scales_linear test_slice_neg_steps test_lstm_with_initial_bias "
    "test_quantizelinear_axis test_attention_4d_causal test_causal_conv_with_state_basic test_softmax_axis_0 "
    # types of fewer than 16 bits, control flow, sizes that data tells, sequences, texts, samples between pixels, transforms
    "test_cast_FLOAT_to_FLOAT8E4M3FN test_castlike_FLOAT16_to_INT4 test_dequantizelinear_float4e2m1 test_quantizelinear_uint2 "
    "test_loop11 test_loop16_seq_none test_if test_if_opt test_scan9_sum test_scan_sum test_linear_attention_gated_delta "
    "test_nonmaxsuppression_two_classes test_unique_sorted_with_axis test_nonzero_example test_compress_0 "
    "test_sequence_map_add_2_sequences test_string_concat test_strnormalizer_nostopwords_nochangecase test_identity_sequence "
    "test_gridsample_bicubic test_gridsample_reflection_padding test_dft test_stft_with_window test_col2im_pads "
    "test_adam_multiple test_reduce_sum_empty_axes_input_noop test_range_float_type_positive_delta_expanded"
).split()


@pytest.fixture(scope="module")
def all_cases():
    return {case.name: case for case in onnx_cases.cases()}


@pytest.mark.parametrize("name", SAMPLE)
def test_compiled_case(all_cases, name):
    assert onnx_cases.run_case(all_cases[name], onnx_cases.compiled) is None


@pytest.mark.slow
def test_number_of_cases_that_pass(all_cases):
    """With the onnx package that the floor was measured with or a newer one."""
    passed = sum(onnx_cases.run_case(case, onnx_cases.interpreted) is None for case in all_cases.values())
    assert passed >= 1860, f"{passed} of {len(all_cases)}"


def test_a_wrong_result_is_seen(all_cases):
    """The runner itself: a result that is off, of another dtype or of another shape does not pass."""
    case = all_cases["test_add_bcast"]
    right = onnx_cases.interpreted
    assert onnx_cases.run_case(case, right) is None
    assert onnx_cases.run_case(case, lambda graph, inputs: [right(graph, inputs)[0] + 1])
    assert onnx_cases.run_case(case, lambda graph, inputs: [right(graph, inputs)[0].astype("float64")])
    assert onnx_cases.run_case(case, lambda graph, inputs: [right(graph, inputs)[0][..., :1]])
