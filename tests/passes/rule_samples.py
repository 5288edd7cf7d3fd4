"""Samples of rules that are functions: for each, graphs on which it must fire, and near misses on which it must not.

A sample is the body of a graph without the types of results; what follows `# =>` says why a near miss is one. The result is
copied at the end, so that a rule may give it any memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from dlcompiler.ir.expression import floor_div, symbol, symbol_name, symbols
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.types import DTYPES, TensorType

# what the symbols of samples are bound to
SIZES = {"N": 5, "M": 3}

ONE_HOT = (
    "input %t : i64[4, 1]; input %c : bool[4, 1]; %i = iota {size = 3}; %e = eq(%i, %t); %a = constant -1.0 : f32[]; "
    "%z = constant 0.0 : f32[]; %w = where(%e, %a, %z); "
)
FIRES: dict[str, tuple[str, ...]] = {
    "one-hot-sum": (
        ONE_HOT + "input %u : f32[4, 1]; %s = where(%c, %u, %u); %m = mul(%w, %s); "
        "%y = reduce_sum(%m) {axes = (1,), keepdims = true}",
        ONE_HOT + "%y = reduce_sum(%w) {axes = (1,), keepdims = false}",
    ),
    "iota-not-negative": (
        "%i = iota {size = N}; %z = constant 0 : i64[]; %y = ge(%i, %z)",
        "%i = iota {size = 4}; %r = reshape(%i) {shape = (4, 1)}; %z = constant 0 : i64[]; %y = lt(%r, %z)",
    ),
    "identity-view": (
        "input %x : f32[3, N]; %y = reshape(%x) {shape = (3, N)}",
        "input %x : f32[3, 5]; %y = permute(%x) {dims = (0, 1)}",
        "input %x : i64[0, 5]; %y = slice(%x) {starts = (0, 0), limits = (0, 5), steps = (1, 1)}",
        "input %x : bf16[3]; %y = concat(%x) {axis = 0}",
        "input %x : f32[1]; %y = pad(%x) {low = (0,), high = (0,), value = 1.0}",
    ),
    "reshape-reshape": (
        "input %x : f32[6, N]; %r = reshape(%x) {shape = (2, 3, N)}; %y = reshape(%r) {shape = (2, 3*N)}",
        "input %x : f32[0, 4]; %r = reshape(%x) {shape = (0,)}; %y = reshape(%r) {shape = (4, 0)}",
    ),
    "permute-permute": (
        "input %x : f32[2, 3, 4]; %p = permute(%x) {dims = (2, 0, 1)}; %y = permute(%p) {dims = (0, 2, 1)}",
        "input %x : bool[2, N]; %p = permute(%x) {dims = (1, 0)}; %y = permute(%p) {dims = (1, 0)}",
    ),
    "permute-ones": (
        "input %x : f32[1, 3, 1, 4]; %y = permute(%x) {dims = (1, 0, 3, 2)}",
        "input %x : f32[1, N]; %y = permute(%x) {dims = (1, 0)}",
    ),
    "expand-expand": ("input %x : f32[1, 4]; %e = expand(%x) {shape = (3, 4)}; %y = expand(%e) {shape = (N, 3, 4)}",),
    "flip-flip": (
        "input %x : f32[3, 4]; %f = flip(%x) {axes = (0, 1)}; %y = flip(%f) {axes = (1,)}",
        "input %x : f32[3, 4]; %f = flip(%x) {axes = (0,)}; %y = flip(%f) {axes = (0,)}",
    ),
    "slice-slice": (
        """input %x : f32[20, 5]; %s = slice(%x) {starts = (2, 0), limits = (19, 5), steps = (3, 1)};
        %y = slice(%s) {starts = (1, 1), limits = (6, 4), steps = (2, 1)}""",
        "input %x : f32[9]; %s = slice(%x) {starts = (1,), limits = (8,), steps = (2,)}; "
        "%y = slice(%s) {starts = (2,), limits = (2,), steps = (5,)}",
        "input %x : f32[2]; %s = slice(%x) {starts = (0,), limits = (2,), steps = (3,)}; "
        "%y = slice(%s) {starts = (1,), limits = (1,), steps = (1,)}",
        "input %x : f32[N, 8]; %s = slice(%x) {starts = (0, 2), limits = (N, 8), steps = (1, 1)}; "
        "%y = slice(%s) {starts = (1, 3), limits = (N, 5), steps = (1, 1)}",
    ),
    "slice-concat": (
        """input %a : f32[2, 3]; input %b : f32[2, 4]; %c = concat(%a, %b) {axis = 1};
        %y = slice(%c) {starts = (0, 4), limits = (2, 7), steps = (1, 2)}""",
        """input %a : f32[N]; input %b : f32[4]; %c = concat(%a, %b) {axis = 0};
        %y = slice(%c) {starts = (0,), limits = (N,), steps = (1,)}""",
    ),
    "concat-empty": ("input %a : f32[2, 3]; input %b : f32[2, 0]; input %c : f32[2, N]; %y = concat(%a, %b, %c) {axis = 1}",),
    "concat-concat": (
        "input %a : f32[2]; input %b : f32[3]; %c = concat(%a, %b) {axis = 0}; %y = concat(%b, %c, %a) {axis = 0}",
    ),
    "concat-slices": (
        """input %x : f32[2, 9]; %a = slice(%x) {starts = (0, 1), limits = (2, 4), steps = (1, 1)};
        %b = slice(%x) {starts = (0, 4), limits = (2, 8), steps = (1, 1)}; %y = concat(%a, %b) {axis = 1}""",
    ),
    "expand-operand": (
        "input %x : f32[1, 4]; input %z : f32[3, 4]; %e = expand(%x) {shape = (3, 4)}; %y = mul(%e, %z)",
        "input %x : f32[N]; input %z : f32[1]; %e = expand(%x) {shape = (2, N)}; %y = atan2(%z, %e)",
        "input %x : bool[1]; %e = expand(%x) {shape = (0,)}; %y = bitwise_not(%e)",
        'input %x : f32[1]; %e = expand(%x) {shape = (7,)}; %y = cast(%e) {dtype = "i64"}',
    ),
    "view-around-pointwise": (
        "input %x : f32[2, 3, 4]; %p = permute(%x) {dims = (1, 2, 0)}; %e = exp(%p); %y = permute(%e) {dims = (2, 0, 1)}",
        """input %x : f32[6, N]; input %z : f32[6, N]; %a = reshape(%x) {shape = (2, 3, N)}; %b = reshape(%z) {shape = (2, 3, N)};
        %s = sub(%a, %b); %y = reshape(%s) {shape = (6, N)}""",
        """input %x : f32[2, 3]; %p = permute(%x) {dims = (1, 0)}; %c = constant [2.0] : f32[1, 1]; %s = sub(%c, %p);
        %y = permute(%s) {dims = (1, 0)}""",
    ),
    "cast-same": ('input %x : f16[3, N]; %y = cast(%x) {dtype = "f16"}',),
    "cast-cast": (
        'input %x : bf16[9]; %c = cast(%x) {dtype = "f32"}; %y = cast(%c) {dtype = "bf16"}',
        'input %x : bool[9]; %c = cast(%x) {dtype = "i8"}; %y = cast(%c) {dtype = "f32"}',
        'input %x : u8[9]; %c = cast(%x) {dtype = "i16"}; %y = cast(%c) {dtype = "i64"}',
        'input %x : i16[9]; %c = cast(%x) {dtype = "f32"}; %y = cast(%c) {dtype = "bool"}',
    ),
    "div-power-of-two": (
        "input %x : f32[40]; %c = constant -8.0 : f32[]; %y = div(%x, %c)",
        "input %x : f16[40]; %c = constant 0.25 : f16[]; %y = div(%x, %c)",
        "input %x : f64[4, 3]; %c = constant [1.0, 2.0, 0.5] : f64[3]; %y = div(%x, %c)",
    ),
    "div-constant": ("input %x : f32[40]; %c = constant 7.0 : f32[]; %y = div(%x, %c)",),
    "index-slice": (
        "input %x : f32[4, N]; %c = constant 2 : i64[]; %y = index(%x, %c) {axes = (0,)}",
        "input %x : f32[2, 9, 3]; %c = constant [1, 3, 5, 7] : i64[4]; %y = index(%x, %c) {axes = (1,)}",
        "input %x : f32[2, 9]; %c = constant [4, 4, 4, 4] : i64[2, 2]; %y = index(%x, %c) {axes = (1,)}",
        "input %x : f32[9, 2]; %i = iota {size = 6}; %r = reshape(%i) {shape = (2, 3)}; %y = index(%x, %r) {axes = (0,)}",
    ),
    "matmul-linear": (
        "input %x : f32[2, 5, 3]; input %w : f32[3, 4]; %y = matmul(%x, %w)",
        "input %x : f32[2, 5, 3]; input %v : f32[4, 3]; %n = neg(%v); %w = permute(%n) {dims = (1, 0)}; %y = matmul(%x, %w)",
        "input %x : f32[N, 3]; input %w : f32[3, 4]; %y = matmul(%x, %w)",
    ),
    "linear-bias": (
        "input %x : f32[N, 3]; input %w : f32[4, 3]; input %b : f32[1, 4]; %l = linear(%x, %w); %y = add(%b, %l)",
        """input %a : f32[2, 3]; input %c : f32[3, 4]; %x = neg(%a); %w = neg(%c); input %b : f32[4]; %l = matmul(%x, %w);
        %y = add(%l, %b)""",
    ),
    "slice-update-pad": (
        """input %x : f32[2, 3]; %c = constant -1.5 : f32[]; %e = expand(%c) {shape = (4, 3)};
        %y = slice_update(%e, %x) {starts = (1, 0), steps = (1, 1)}""",
        """input %x : i64[2, 0]; %c = constant 7 : i64[]; %e = expand(%c) {shape = (2, 5)};
        %y = slice_update(%e, %x) {starts = (0, 2), steps = (1, 1)}""",
        """input %x : bf16[N, 3]; %c = constant 0.0 : bf16[]; %e = expand(%c) {shape = (N, 4)};
        %y = slice_update(%e, %x) {starts = (0, 1), steps = (1, 1)}""",
    ),
    "slice-linear": (
        """input %x : f32[2, 5, 3]; input %w : f32[4, 3]; input %b : f32[4]; %l = linear(%x, %w, %b);
        %y = slice(%l) {starts = (0, 1, 0), limits = (2, 5, 4), steps = (1, 2, 1)}""",
        """input %x : f64[N, 5, 3]; input %w : f64[4, 3]; %l = linear(%x, %w);
        %y = slice(%l) {starts = (0, 0, 0), limits = (N, 4, 4), steps = (1, 1, 1)}""",
    ),
    "linear-pad": (
        """input %x : f32[2, 5, 3]; input %w : f32[4, 3]; %p = pad(%x) {low = (0, 1, 0), high = (0, 2, 0), value = 0.0};
        %y = linear(%p, %w)""",
    ),
    "padded-sum": (
        """input %g : f32[2, 3, 7]; input %x : f32[2, 4, 5]; %p = pad(%g) {low = (0, 0, 0), high = (0, 1, 0), value = 0.0};
        %q = reshape(%p) {shape = (8, 7)}; %r = reshape(%x) {shape = (8, 5)}; %s = permute(%q) {dims = (1, 0)};
        %t = permute(%r) {dims = (1, 0)}; %y = linear(%s, %t)""",
        """input %g : f32[3, 7]; input %x : f32[5, 2]; %p = pad(%g) {low = (2, 0), high = (0, 0), value = 0.0};
        %s = permute(%p) {dims = (1, 0)}; %t = permute(%x) {dims = (1, 0)}; %y = linear(%t, %s)""",
    ),
    "reshape-linear-reshape": (
        """input %x : f32[2, N, 3]; input %w : f32[4, 3]; input %b : f32[4]; %r = reshape(%x) {shape = (2*N, 3)};
        %l = linear(%r, %w, %b); %y = reshape(%l) {shape = (2, N, 4)}""",
    ),
    "reshape-matmul-reshape": (
        """input %a : f32[2, M, 4, N]; input %b : f32[2, M, N, 5]; %r = reshape(%a) {shape = (2*M, 4, N)};
        %s = reshape(%b) {shape = (2*M, N, 5)}; %m = matmul(%r, %s); %y = reshape(%m) {shape = (2, M, 4, 5)}""",
        """input %a : f32[2, 3, 4, 5]; input %b : f32[2, 1, 5, 6]; %e = expand(%b) {shape = (2, 3, 5, 6)};
        %s = reshape(%e) {shape = (6, 5, 6)}; %r = reshape(%a) {shape = (6, 4, 5)}; %m = matmul(%r, %s);
        %y = reshape(%m) {shape = (2, 3, 4, 6)}""",
    ),
    "convolution-bias": (
        """input %x : f32[2, 3, 7, 7]; input %w : f32[4, 3, 3, 3]; input %b : f32[4, 1, 1];
        %c = convolution(%x, %w) {strides = (1, 1), padding = (1, 1), dilations = (1, 1), output_padding = (0, 0), groups = 1,
        transposed = false}; %y = add(%c, %b)""",
    ),
    "pad-convolution": (
        """input %x : f32[2, 4, 7, 5]; input %w : f32[4, 2, 3, 3];
        %p = pad(%x) {low = (0, 0, 1, 2), high = (0, 0, 1, 2), value = 0.0};
        %y = convolution(%p, %w) {strides = (2, 1), padding = (0, 1), dilations = (1, 1), output_padding = (0, 0), groups = 2,
        transposed = false}""",
    ),
    "reduce-ones": (
        "input %x : i64[3, 1, 4, 1]; %y = reduce_sum(%x) {axes = (1, 3), keepdims = false}",
        "input %x : f32[3, 1]; %y = reduce_max(%x) {axes = (1,), keepdims = true}",
        "input %x : bool[3, N]; %y = reduce_any(%x) {axes = (), keepdims = false}",
    ),
    "sum-ones": ("input %x : f32[40, 1]; %y = reduce_sum(%x) {axes = (1,), keepdims = false}",),
    "split-reduction": (
        "input %x : i64[200, 300]; %y = reduce_sum(%x) {axes = (0, 1), keepdims = true}",
        "input %x : f32[16411, 2]; %y = reduce_max(%x) {axes = (0,), keepdims = false}",
        "input %x : bool[3, 64, 512]; %y = reduce_all(%x) {axes = (1, 2), keepdims = false}",
        "input %x : i8[32, 3, 32, 32]; %y = reduce_sum(%x) {axes = (0, 2, 3), keepdims = false}",
        "input %x : f32[40, 1000]; %y = reduce_sum(%x) {axes = (0, 1), keepdims = false}",
        "input %x : f16[40, 1000]; %y = reduce_sum(%x) {axes = (0, 1), keepdims = true}",
        "input %x : i32[1, 32768]; %y = reduce_prod(%x) {axes = (0, 1), keepdims = false}",
    ),
    "attention": (
        """input %q : f32[2, 4, 5, 8]; input %k : f32[2, 4, 6, 8]; input %v : f32[2, 4, 6, 8];
        %t = permute(%k) {dims = (0, 1, 3, 2)}; %s = matmul(%q, %t); %c = constant 3.0 : f32[]; %d = div(%s, %c);
        %w = softmax(%d) {axis = -1}; %y = matmul(%w, %v)""",
        """input %q : f32[4, N, 8]; input %k : f32[4, 8, N]; input %v : f32[4, N, 8]; input %m : bool[N, N];
        %c = constant 0.5 : f32[]; %p = mul(%q, %c); %s = matmul(%p, %k); %f = constant -1e9 : f32[]; %a = where(%m, %s, %f);
        %w = softmax(%a) {axis = 2}; %y = matmul(%w, %v)""",
        """input %q : f32[2, 3, N, 8]; input %k : f32[2, 3, N, 8]; input %v : f32[2, 3, N, 8]; %i = iota {size = N};
        %r = reshape(%i) {shape = (N, 1)}; %m = le(%i, %r); %t = permute(%k) {dims = (0, 1, 3, 2)}; %s = matmul(%q, %t);
        %f = constant -inf : f32[]; %a = where(%m, %s, %f); %w = softmax(%a) {axis = 3}; %y = matmul(%w, %v)""",
        """input %q : f32[2, 4, 5, 8]; input %k : f32[2, 4, 6, 8]; input %v : f32[2, 4, 6, 8];
        %t = permute(%k) {dims = (0, 1, 3, 2)}; %s = matmul(%q, %t); %w = softmax(%s) {axis = 3}; %n = isnan(%w);
        %z = constant 0.0 : f32[]; %o = where(%n, %z, %w); %y = matmul(%o, %v)  # => a row that sees nothing gives zeros""",
        """input %q : f32[2, 5, 8]; input %k : f32[2, 5, 8]; input %v : f32[2, 5, 8]; input %m : f32[5, 5];
        input %p : f32[2, 1, 5];
        %t = permute(%k) {dims = (0, 2, 1)}; %s = matmul(%q, %t); %a = add(%s, %m); %d = add(%a, %p); %w = softmax(%d) {axis = 2};
        %y = matmul(%w, %v)  # => two masks""",
        """input %q : f32[2, 5, 8]; input %k : f32[2, 5, 8]; input %v : f32[2, 5, 8]; input %m : f32[5, 5];
        %g = constant [true, false, true, true, true] : bool[5]; %f = constant -inf : f32[]; %t = permute(%k) {dims = (0, 2, 1)};
        %s = matmul(%q, %t); %a = where(%g, %s, %f); %d = add(%a, %m); %w = softmax(%d) {axis = 2};
        %y = matmul(%w, %v)  # => one that keeps and one that is added""",
        """input %q : f32[2, 4, 5, 8]; input %k : f32[2, 4, 6, 8]; input %v : f32[2, 4, 6, 8];
        %j = reshape(%k) {shape = (8, 6, 8)};
        %p = permute(%j) {dims = (0, 2, 1)}; %t = reshape(%p) {shape = (2, 4, 8, 6)}; %s = matmul(%q, %t);
        %w = softmax(%s) {axis = 3}; %y = matmul(%w, %v)  # => heads merged around the exchange""",
    ),
    "grouped-attention": (
        """input %q : f32[2, 6, 5, 8]; input %k : f32[2, 3, 1, 7, 8]; input %v : f32[2, 3, 1, 7, 4];
        %a = expand(%k) {shape = (2, 3, 2, 7, 8)}; %b = reshape(%a) {shape = (2, 6, 7, 8)};
        %c = expand(%v) {shape = (2, 3, 2, 7, 4)}; %d = reshape(%c) {shape = (2, 6, 7, 4)};
        %y = attention(%q, %b, %d) {scale = 0.5, causal = true}""",
        """input %q : f32[N, 4, 5, 8]; input %k : f32[N, 2, 1, 7, 8]; input %v : f32[N, 2, 1, 7, 4]; input %m : f32[N, 1, 5, 7];
        %a = expand(%k) {shape = (N, 2, 2, 7, 8)}; %b = reshape(%a) {shape = (N, 4, 7, 8)};
        %c = expand(%v) {shape = (N, 2, 2, 7, 4)}; %d = reshape(%c) {shape = (N, 4, 7, 4)};
        %y = attention(%q, %b, %d, %m) {scale = 0.5, causal = false}""",
        """input %q : f32[1, 4, 5, 8]; input %k : f32[1, 2, 1, 7, 8]; input %v : f32[1, 2, 1, 7, 4]; input %m : bool[4, 5, 7];
        %a = expand(%k) {shape = (1, 2, 2, 7, 8)}; %b = reshape(%a) {shape = (1, 4, 7, 8)};
        %c = expand(%v) {shape = (1, 2, 2, 7, 4)}; %d = reshape(%c) {shape = (1, 4, 7, 4)};
        %y = attention(%q, %b, %d, %m) {scale = 0.5, causal = false}""",
    ),
    "attention-mask": (
        """input %q : f32[2, 5, 8]; input %k : f32[2, 5, 8]; input %v : f32[2, 5, 8]; %t = constant true : bool[];
        %m = expand(%t) {shape = (5, 5)}; %y = attention(%q, %k, %v, %m) {scale = 0.25, causal = false}""",
        """input %q : f32[2, 3, 8]; input %k : f32[2, 3, 8]; input %v : f32[2, 3, 8];
        %m = constant [0.0, -inf, -inf, 0.0, 0.0, -inf, 0.0, 0.0, 0.0] : f32[1, 3, 3];
        %y = attention(%q, %k, %v, %m) {scale = 0.25, causal = false}""",
        """input %q : f32[2, 5, 8]; input %k : f32[2, 5, 8]; input %v : f32[2, 5, 8]; %i = iota {size = 5}; %n = neg(%i);
        %r = reshape(%n) {shape = (5, 1)}; %m = ge(%n, %r); %y = attention(%q, %k, %v, %m) {scale = 0.25, causal = false}""",
    ),
    "scale-convolution": (
        """input %x : f32[1, 2, 4, 4]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2, 1, 1];
        %b = constant [1.0, 2.0, 3.0] : f32[3];
        %c = convolution(%x, %w, %b) {strides = (1, 1), padding = (0, 0), dilations = (1, 1), output_padding = (0, 0),
        groups = 1, transposed = false}; %s = constant [0.3, 2.0, -1.5] : f32[1, 3, 1, 1]; %y = mul(%c, %s)""",
        """input %x : f32[1, 4, 4]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0, 5.0, 6.0] : f32[4, 2, 1];
        %c = convolution(%x, %w) {strides = (2,), padding = (0,), dilations = (1,), output_padding = (0,),
        groups = 2, transposed = true}; %s = constant [0.3, 2.0, -1.5, 7.0] : f32[4, 1]; %y = mul(%s, %c)""",
    ),
    "scale-linear": (
        """input %x : f32[5, 2]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2]; %l = linear(%x, %w);
        %s = constant [0.3, 2.0, -1.5] : f32[3]; %y = mul(%l, %s)""",
    ),
    "shift-product": (
        """input %x : f32[5, 2]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2];
        %b = constant [1.0, 2.0, 3.0] : f32[3]; %l = linear(%x, %w, %b); %s = constant 0.5 : f32[]; %y = sub(%l, %s)""",
        """input %x : f32[1, 2, 4, 4]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2, 1, 1];
        %c = convolution(%x, %w) {strides = (1, 1), padding = (0, 0), dilations = (1, 1), output_padding = (0, 0),
        groups = 1, transposed = false}; %s = constant [0.3, 2.0, -1.5] : f32[1, 3, 1, 1]; %y = add(%c, %s)""",
    ),
    "quantized-sum": (
        """input %q : u8[3, 8]; input %v : i8[4, 8]; %a = cast(%q) {dtype = "f32"}; %z = constant 7.0 : f32[]; %m = sub(%a, %z);
        %s = constant 0.5 : f32[]; %x = mul(%m, %s); %c = cast(%v) {dtype = "f32"}; input %t : f32[4, 1]; %w = mul(%t, %c);
        input %b : f32[4]; %y = linear(%x, %w, %b)""",
        """input %q : i8[2, N, 8]; input %z : i8[]; input %v : u8[8, 5]; %a = cast(%q) {dtype = "f32"};
        %zf = cast(%z) {dtype = "f32"}; %x = sub(%a, %zf); %c = cast(%v) {dtype = "f32"};
        %u = constant [0.0, 1.0, 2.0, 3.0, 128.0] : f32[5]; %m = sub(%c, %u);
        %t = constant [0.5, 1.0, 2.0, 3.0, 0.25] : f32[1, 5]; %w = mul(%m, %t); %p = permute(%w) {dims = (1, 0)};
        %y = linear(%x, %p)""",
        """input %q : u8[1, 2, 5, 4]; input %v : i8[4, 2, 3, 3]; %a = cast(%q) {dtype = "f32"}; %z = constant 9.0 : f32[];
        %x = sub(%a, %z); %c = cast(%v) {dtype = "f32"}; input %t : f32[4, 1, 1, 1]; %w = mul(%c, %t); input %b : f32[4];
        %y = convolution(%x, %w, %b) {strides = (1, 1), padding = (1, 1), dilations = (1, 1), output_padding = (0, 0), groups = 1,
        transposed = false}""",
    ),
    "bias-of-integers": (
        """input %q : u8[3, 8]; input %v : i8[4, 8]; %x = cast(%q) {dtype = "i32"}; %w = cast(%v) {dtype = "i32"};
        input %b : i32[4]; %y = linear(%x, %w, %b)""",
    ),
    "signed-weights": (
        """input %x : i32[3, 2]; %v = constant [0, 255, 128, 1, 2, 3] : u8[3, 2]; %c = cast(%v) {dtype = "i32"};
        %z = constant 128 : i32[]; %w = sub(%c, %z); %y = linear(%x, %w)""",
        """input %x : i32[3, 2]; %w = constant [-128, 127, 0, 1, 2, 3] : i32[3, 2]; %y = linear(%x, %w)""",
    ),
    "unsigned-weights": (
        """input %x : i32[3, 2]; %v = constant [0, 255, 9, 1, 2, 3] : u8[3, 2]; %c = cast(%v) {dtype = "i32"};
        %z = constant [100, 0, 255] : i32[3, 1]; %w = sub(%c, %z); %y = linear(%x, %w)""",
        """input %x : i32[3, 2]; %w = constant [-129, 126, 0, 1, 2, 3] : i32[2, 3]; %y = matmul(%x, %w)""",
        """input %x : i32[1, 1, 4, 4]; %v = constant [[[[0, 255], [9, 1]]]] : u8[1, 1, 2, 2]; %w = cast(%v) {dtype = "i32"};
        %y = convolution(%x, %w) {strides = (1, 1), padding = (1, 1), dilations = (1, 1), output_padding = (0, 0), groups = 1,
        transposed = false}""",
    ),
    "zero-of-rows": (
        """input %q : u8[3, N, 8]; input %z : i32[1]; %zb = cast(%z) {dtype = "u8"}; %zi = cast(%zb) {dtype = "i32"};
        %a = cast(%q) {dtype = "i32"}; %x = sub(%a, %zi); input %w : i32[3, 8, 4]; %y = matmul(%x, %w)""",
        """input %q : u8[2, 4, 6, 5]; input %z : u8[1]; %zi = cast(%z) {dtype = "i32"}; %a = cast(%q) {dtype = "i32"};
        %x = sub(%a, %zi); input %w : i32[6, 2, 3, 2]; %y = convolution(%x, %w) {strides = (2, 1), padding = (1, 2),
        dilations = (2, 1), output_padding = (0, 0), groups = 2, transposed = false}""",
        """input %q : i8[1, 4, 6, 5]; %a = cast(%q) {dtype = "i32"}; %z = constant -7 : i32[]; %x = sub(%a, %z);
        input %w : i32[6, 2, 3, 2]; %y = convolution(%x, %w) {strides = (2, 1), padding = (1, 0), dilations = (1, 1),
        output_padding = (0, 0), groups = 2, transposed = false}""",
    ),
    "zero-of-columns": (
        """input %x : i32[2, 3, 8]; input %v : u8[4, 8]; %c = cast(%v) {dtype = "i32"};
        %z = constant [1, 2, 3, 200] : i32[4, 1]; %w = sub(%c, %z); %y = linear(%x, %w)""",
        """input %x : i32[3, 8]; input %v : i8[8, N]; input %z : i8[N]; %c = cast(%v) {dtype = "i32"};
        %zi = cast(%z) {dtype = "i32"}; %w = sub(%c, %zi); %y = matmul(%x, %w)""",
        """input %x : i32[2, 3, 6, N]; input %v : i8[4, 3, 3, 2]; input %z : i8[4, 1, 1, 1]; %c = cast(%v) {dtype = "i32"};
        %zi = cast(%z) {dtype = "i32"}; %w = sub(%c, %zi); %y = convolution(%x, %w) {strides = (2, 1), padding = (1, 2),
        dilations = (2, 1), output_padding = (0, 0), groups = 1, transposed = false}""",
    ),
    "signed-operands": (
        """input %q : u8[3, N, 8]; %x = cast(%q) {dtype = "i32"}; input %w : i32[3, 8, 4]; %y = matmul(%x, %w)""",
        """input %x : i32[2, 3, 8]; input %v : u8[4, 8]; %w = cast(%v) {dtype = "i32"}; %y = linear(%x, %w)""",
        """input %q : u8[1, 4, 6, 5]; %x = cast(%q) {dtype = "i32"}; input %w : i32[6, 2, 3, 2];
        %y = convolution(%x, %w) {strides = (2, 1), padding = (1, 0), dilations = (1, 1), output_padding = (0, 0), groups = 2,
        transposed = false}""",
    ),
}

MISSES: dict[str, tuple[str, ...]] = {
    "one-hot-sum": (
        ONE_HOT.replace("constant 0.0", "constant 1.0") + "%y = reduce_sum(%w) {axes = (1,), keepdims = true}",
        ONE_HOT + "%y = reduce_sum(%w) {axes = (0,), keepdims = true}",
    ),
    "iota-not-negative": (
        "%i = iota {size = 4}; %z = constant 1 : i64[]; %y = ge(%i, %z)",
        "input %i : i64[4]; %z = constant 0 : i64[]; %y = ge(%i, %z)",
        "%i = iota {size = 4}; %p = pad(%i) {low = (1,), high = (0,), value = -3}; %z = constant 0 : i64[]; %y = ge(%p, %z)",
    ),
    "identity-view": (
        "input %x : f32[3, 3]; %y = permute(%x) {dims = (1, 0)}",
        "input %x : f32[4]; %y = reshape(%x) {shape = (2, 2)}",
        "input %x : f32[4]; %y = concat(%x, %x) {axis = 0}",
        "input %x : f32[4]; %y = flip(%x) {axes = (0,)}",
    ),
    "reshape-reshape": ("input %x : f32[4]; %e = exp(%x); %y = reshape(%e) {shape = (2, 2)}",),
    "permute-permute": ("input %x : f32[2, 2]; %r = reshape(%x) {shape = (4, 1)}; %y = permute(%r) {dims = (1, 0)}",),
    "permute-ones": (
        "input %x : f32[2, 3]; %y = permute(%x) {dims = (1, 0)}",
        "input %x : f32[N, M]; %y = permute(%x) {dims = (1, 0)}  # => a symbol may be 1, and may not",
    ),
    "expand-expand": ("input %x : f32[1]; %r = reshape(%x) {shape = (1, 1)}; %y = expand(%r) {shape = (2, 2)}",),
    "flip-flip": ("input %x : f32[4]; %n = neg(%x); %y = flip(%n) {axes = (0,)}",),
    "slice-slice": (
        """input %x : f32[N]; %s = slice(%x) {starts = (0,), limits = (N,), steps = (2,)};
        %y = slice(%s) {starts = (0,), limits = (div(N + 1, 2),), steps = (2,)}  # => the last position depends on N""",
    ),
    "slice-concat": (
        """input %a : f32[3]; input %b : f32[4]; %c = concat(%a, %b) {axis = 0};
        %y = slice(%c) {starts = (2,), limits = (5,), steps = (1,)}  # => across the seam""",
    ),
    "concat-empty": ("input %a : f32[2]; input %b : f32[N]; %y = concat(%a, %b) {axis = 0}",),
    "concat-concat": (
        "input %a : f32[2, 2]; %c = concat(%a, %a) {axis = 0}; %y = concat(%c, %c) {axis = 1}  # => another axis",
        "input %a : f32[2]; %c = concat(%a, %a) {axis = 0}; %y = concat(%c, %c) {axis = 0}  # => read twice",
    ),
    "concat-slices": (
        """input %x : f32[9]; %a = slice(%x) {starts = (1,), limits = (4,), steps = (1,)};
        %b = slice(%x) {starts = (5,), limits = (8,), steps = (1,)}; %y = concat(%a, %b) {axis = 0}  # => a gap""",
        """input %x : f32[9]; input %z : f32[9]; %a = slice(%x) {starts = (1,), limits = (4,), steps = (1,)};
        %b = slice(%z) {starts = (4,), limits = (8,), steps = (1,)}; %y = concat(%a, %b) {axis = 0}  # => another value""",
        """input %x : f32[9]; %a = slice(%x) {starts = (0,), limits = (4,), steps = (2,)};
        %b = slice(%x) {starts = (4,), limits = (8,), steps = (2,)}; %y = concat(%a, %b) {axis = 0}  # => steps""",
    ),
    "expand-operand": ("input %x : f32[1]; %e = expand(%x) {shape = (4,)}; %y = reduce_sum(%e) {axes = (0,), keepdims = false}",),
    "view-around-pointwise": (
        "input %x : f32[2, 3]; %p = permute(%x) {dims = (1, 0)}; %e = exp(%p); %s = neg(%e); %y = permute(%s) {dims = (1, 0)}",
        """input %x : f32[2, 3]; input %z : f32[3, 2]; %p = permute(%x) {dims = (1, 0)}; %e = add(%p, %z);
        %y = permute(%e) {dims = (1, 0)}  # => the other operand is in the other order""",
        """input %x : f32[2, 3]; %p = permute(%x) {dims = (1, 0)}; %e = exp(%p); %q = permute(%e) {dims = (1, 0)};
        %r = reshape(%e) {shape = (2, 3)}; %y = add(%q, %r)  # => read twice""",
    ),
    "cast-same": ('input %x : f16[3]; %y = cast(%x) {dtype = "bf16"}',),
    "cast-cast": (
        'input %x : f32[9]; %c = cast(%x) {dtype = "bf16"}; %y = cast(%c) {dtype = "f32"}  # => rounds',
        'input %x : i32[9]; %c = cast(%x) {dtype = "f32"}; %y = cast(%c) {dtype = "i32"}  # => 24 bits',
        'input %x : i8[9]; %c = cast(%x) {dtype = "u32"}; %y = cast(%c) {dtype = "i64"}  # => wraps',
        'input %x : f16[9]; %c = cast(%x) {dtype = "bf16"}; %y = cast(%c) {dtype = "f32"}  # => fewer digits',
        'input %x : i64[9]; %c = cast(%x) {dtype = "bool"}; %y = cast(%c) {dtype = "i64"}',
    ),
    "div-power-of-two": (
        "input %x : f32[4]; %c = constant 3.0 : f32[]; %y = div(%x, %c)",
        "input %x : f32[4]; %c = constant 1e-45 : f32[]; %y = div(%x, %c)  # => the reciprocal is infinite",
        "input %x : f32[3]; %c = constant [2.0, 0.0, 4.0] : f32[3]; %y = div(%x, %c)",
        "input %x : f32[3]; %c = constant 2.0 : f32[]; %y = div(%c, %x)",
    ),
    "div-constant": (
        "input %x : bf16[4]; %c = constant 3.0 : bf16[]; %y = div(%x, %c)  # => 1 / 3 has 8 bits",
        "input %x : f32[4]; %c = constant 0.0 : f32[]; %y = div(%x, %c)",
        "input %x : f32[4]; %c = constant 3e38 : f32[]; %y = div(%x, %c)  # => a denormal reciprocal",
        "input %x : f32[4]; %c = constant inf : f32[]; %y = div(%x, %c)",
    ),
    "index-slice": (
        "input %x : f32[9]; %c = constant [1, 3, 4] : i64[3]; %y = index(%x, %c) {axes = (0,)}",
        "input %x : f32[9]; %c = constant [5, 3, 1] : i64[3]; %y = index(%x, %c) {axes = (0,)}  # => backwards",
        "input %x : f32[N]; %c = constant 2 : i64[]; %y = index(%x, %c) {axes = (0,)}  # => clamped if N is 2",
        "input %x : f32[4]; %i = iota {size = 6}; %y = index(%x, %i) {axes = (0,)}  # => clamped",
        "input %x : f32[4]; input %i : i64[2]; %y = index(%x, %i) {axes = (0,)}",
    ),
    "matmul-linear": (
        "input %x : f32[2, 5, 3]; input %w : f32[2, 3, 4]; %y = matmul(%x, %w)",
        "input %x : f32[5, 3]; input %v : f32[3, 4]; %w = exp(%v); %y = matmul(%x, %w)  # => two activations",
        "input %x : i64[2, 5, 3]; input %w : i64[3, 4]; %y = matmul(%x, %w)  # => libraries have linear for floats",
    ),
    "linear-bias": (
        "input %x : f32[4, 3]; input %w : f32[4, 3]; input %b : f32[4, 1]; %l = linear(%x, %w); %y = add(%l, %b)",
        "input %x : f32[4, 3]; input %w : f32[4, 3]; input %b : f32[4]; %l = linear(%x, %w, %b); %y = add(%l, %b)",
        "input %x : f32[1, 3]; input %w : f32[4, 3]; input %b : f32[2, 4]; %l = linear(%x, %w); %y = add(%l, %b)",
        """input %x : f32[2, 3]; input %w : f32[4, 3]; input %b : f32[4]; %l = linear(%x, %w); %a = add(%l, %b);
        %y = mul(%a, %l)  # => read twice""",
    ),
    "slice-update-pad": (
        """input %x : f32[2, 3]; %c = constant -1.5 : f32[]; %e = expand(%c) {shape = (4, 3)};
        %y = slice_update(%e, %x) {starts = (0, 0), steps = (2, 1)}  # => every other row""",
        """input %x : f32[2, 3]; input %e : f32[4, 3]; %y = slice_update(%e, %x) {starts = (0, 0), steps = (1, 1)}""",
    ),
    "slice-linear": (
        """input %x : f32[2, 3]; input %w : f32[4, 3]; %l = linear(%x, %w);
        %y = slice(%l) {starts = (0, 1), limits = (2, 4), steps = (1, 1)}  # => a part of each row""",
        """input %x : f32[2, 3]; input %w : f32[4, 3]; %l = linear(%x, %w);
        %s = slice(%l) {starts = (0, 0), limits = (1, 4), steps = (1, 1)}; %y = add(%s, %l)  # => all rows are read""",
    ),
    "linear-pad": (
        """input %x : f32[2, 3]; input %w : f32[4, 3]; %p = pad(%x) {low = (0, 0), high = (1, 0), value = 1.0};
        %y = linear(%p, %w)  # => rows of ones""",
        """input %x : f32[2, 3]; input %w : f32[4, 5]; %p = pad(%x) {low = (0, 1), high = (1, 1), value = 0.0};
        %y = linear(%p, %w)  # => more columns""",
        """input %x : f32[2, 3]; input %w : f32[4, 3]; input %b : f32[4];
        %p = pad(%x) {low = (0, 0), high = (1, 0), value = 0.0}; %y = linear(%p, %w, %b)  # => the bias is in each row""",
    ),
    "padded-sum": (
        """input %g : f32[3, 7]; input %x : f32[5, 2]; %p = pad(%g) {low = (2, 0), high = (0, 0), value = 1.0};
        %s = permute(%p) {dims = (1, 0)}; %t = permute(%x) {dims = (1, 0)}; %y = linear(%t, %s)  # => rows of ones""",
        """input %g : f32[3, 7]; input %x : f32[5, 7]; %p = pad(%g) {low = (2, 0), high = (0, 0), value = 0.0};
        %y = linear(%x, %p)  # => not summed over rows""",
    ),
    "reshape-linear-reshape": (
        """input %x : f32[6, 4]; input %w : f32[4, 3]; %r = reshape(%x) {shape = (8, 3)}; %l = linear(%r, %w);
        %y = reshape(%l) {shape = (2, 4, 4)}  # => rows were cut anew""",
    ),
    "reshape-matmul-reshape": (
        """input %a : f32[2, 3, 4, 5]; input %b : f32[3, 2, 5, 6]; %r = reshape(%a) {shape = (6, 4, 5)};
        %s = reshape(%b) {shape = (6, 5, 6)}; %m = matmul(%r, %s); %y = reshape(%m) {shape = (6, 2, 2, 6)}  # => rows cut""",
        """input %a : f32[2, 3, 4, 5]; input %b : f32[1, 5, 6]; %r = reshape(%a) {shape = (6, 4, 5)}; %m = matmul(%r, %b);
        %y = reshape(%m) {shape = (2, 3, 4, 6)}  # => one matrix for all""",
    ),
    "convolution-bias": (
        """input %x : f32[2, 3, 7]; input %w : f32[4, 3, 3]; input %b : f32[7];
        %c = convolution(%x, %w) {strides = (1,), padding = (1,), dilations = (1,), output_padding = (0,), groups = 1,
        transposed = false}; %y = add(%c, %b)  # => along width""",
    ),
    "pad-convolution": (
        """input %x : f32[2, 4, 7]; input %w : f32[4, 4, 3]; %p = pad(%x) {low = (0, 0, 0), high = (0, 0, 1), value = 0.0};
        %y = convolution(%p, %w) {strides = (1,), padding = (0,), dilations = (1,), output_padding = (0,), groups = 1,
        transposed = false}  # => one side""",
        """input %x : f32[2, 4, 7]; input %w : f32[4, 4, 3]; %p = pad(%x) {low = (0, 0, 1), high = (0, 0, 1), value = 1.0};
        %y = convolution(%p, %w) {strides = (1,), padding = (0,), dilations = (1,), output_padding = (0,), groups = 1,
        transposed = false}  # => not zeros""",
        """input %x : f32[2, 4, 7]; input %w : f32[4, 4, 3]; %p = pad(%x) {low = (0, 0, 1), high = (0, 0, 1), value = 0.0};
        %y = convolution(%p, %w) {strides = (1,), padding = (1,), dilations = (1,), output_padding = (0,), groups = 1,
        transposed = true}  # => transposed""",
    ),
    "reduce-ones": (
        "input %x : f32[1, N]; %y = reduce_max(%x) {axes = (0, 1), keepdims = false}",
        "input %x : f32[3, 1]; %y = reduce_sum(%x) {axes = (1,), keepdims = false}  # => 0 + -0.0 is 0.0",
    ),
    "sum-ones": ("input %x : f32[1, N]; %y = reduce_sum(%x) {axes = (0, 1), keepdims = false}",),
    "split-reduction": (
        "input %x : f32[16383]; %y = reduce_sum(%x) {axes = (0,), keepdims = false}",
        "input %x : f32[16, 16384]; %y = reduce_sum(%x) {axes = (1,), keepdims = false}",
        "input %x : f32[N]; %y = reduce_sum(%x) {axes = (0,), keepdims = false}",
    ),
    "attention": (
        """input %q : f32[2, 5, 8]; input %k : f32[2, 6, 8]; input %v : f32[2, 6, 8]; %t = permute(%k) {dims = (0, 2, 1)};
        %s = matmul(%q, %t); %w = softmax(%s) {axis = 1}; %y = matmul(%w, %v)  # => over queries""",
        """input %q : f32[2, 6, 8]; input %k : f32[2, 6, 8]; input %v : f32[2, 6, 6]; %t = permute(%k) {dims = (0, 2, 1)};
        %s = matmul(%q, %t); %w = softmax(%s) {axis = 2}; %m = matmul(%w, %v); %y = add(%m, %w)  # => weights read elsewhere""",
        """input %q : f32[2, 5, 8]; input %k : f32[2, 6, 8]; input %v : f32[2, 6, 8]; input %m : f32[5, 6];
        %t = permute(%k) {dims = (0, 2, 1)}; %s = matmul(%q, %t); %a = add(%s, %m); %c = constant 3.0 : f32[]; %d = div(%a, %c);
        %w = softmax(%d) {axis = 2}; %y = matmul(%w, %v)  # => the mask is scaled too""",
        """input %q : f32[2, 5, 8]; input %k : f32[2, 6, 8]; input %v : f32[2, 6, 8]; input %m : bool[5, 6];
        %t = permute(%k) {dims = (0, 2, 1)}; %s = matmul(%q, %t); %f = constant -1.0 : f32[]; %a = where(%m, %s, %f);
        %w = softmax(%a) {axis = 2}; %y = matmul(%w, %v)  # => -1 hides nothing""",
        """input %q : f32[5, 8]; input %k : f32[6, 8]; input %v : f32[6, 8]; %t = permute(%k) {dims = (1, 0)};
        %s = matmul(%q, %t); %w = softmax(%s) {axis = 1}; %y = matmul(%w, %v)  # => attention has rank 3 or more""",
        """input %q : f32[2, 5, 8]; input %k : f32[2, 6, 8]; input %v : f32[2, 6, 8]; %t = permute(%k) {dims = (0, 2, 1)};
        %s = matmul(%q, %t); %w = softmax(%s) {axis = 2}; %n = isnan(%w); %z = constant 1.0 : f32[]; %o = where(%n, %z, %w);
        %y = matmul(%o, %v)  # => NaN becomes 1""",
        """input %q : f32[2, 5, 8]; input %k : f32[2, 6, 8]; input %v : f32[2, 6, 8]; %t = permute(%k) {dims = (0, 2, 1)};
        %s = matmul(%q, %t); %w = softmax(%s) {axis = 2}; %n = isnan(%s); %z = constant 0.0 : f32[]; %o = where(%n, %z, %w);
        %y = matmul(%o, %v)  # => the scores are tested, not the weights""",
        """input %q : f32[2, 6, 8]; input %k : f32[2, 6, 8]; input %v : f32[2, 6, 6]; %t = permute(%k) {dims = (0, 2, 1)};
        %s = matmul(%q, %t); %w = softmax(%s) {axis = 2}; %n = isnan(%w); %z = constant 0.0 : f32[]; %o = where(%n, %z, %w);
        %m = matmul(%o, %v); %y = add(%m, %w)  # => tested weights read elsewhere""",
        """input %q : f32[2, 5, 8]; input %k : f32[2, 6, 8]; input %v : f32[2, 6, 8]; input %m : f32[5, 6];
        input %p : f32[2, 5, 6];
        %t = permute(%k) {dims = (0, 2, 1)}; %s = matmul(%q, %t); %a = add(%s, %m); %e = exp(%p); %d = mul(%a, %e);
        %w = softmax(%d) {axis = 2}; %y = matmul(%w, %v)  # => masked scores times a tensor""",
    ),
    "grouped-attention": (
        """input %q : f32[2, 6, 5, 8]; input %k : f32[2, 3, 1, 7, 8]; input %v : f32[2, 6, 7, 4];
        %a = expand(%k) {shape = (2, 3, 2, 7, 8)}; %b = reshape(%a) {shape = (2, 6, 7, 8)};
        %y = attention(%q, %b, %v) {scale = 0.5, causal = false}  # => values are each head's own""",
        """input %q : f32[2, 6, 5, 8]; input %k : f32[2, 1, 3, 7, 8]; input %v : f32[2, 1, 3, 7, 4];
        %a = expand(%k) {shape = (2, 2, 3, 7, 8)}; %b = reshape(%a) {shape = (2, 6, 7, 8)};
        %c = expand(%v) {shape = (2, 2, 3, 7, 4)}; %d = reshape(%c) {shape = (2, 6, 7, 4)};
        %y = attention(%q, %b, %d) {scale = 0.5, causal = false}  # => all heads repeated, not each next to itself""",
        """input %q : f32[2, 1, 5, 8]; input %k : f32[2, 3, 1, 7, 8]; input %v : f32[2, 3, 1, 7, 4];
        %a = expand(%k) {shape = (2, 3, 2, 7, 8)}; %b = reshape(%a) {shape = (2, 6, 7, 8)};
        %c = expand(%v) {shape = (2, 3, 2, 7, 4)}; %d = reshape(%c) {shape = (2, 6, 7, 4)};
        %y = attention(%q, %b, %d) {scale = 0.5, causal = false}  # => one head of queries""",
    ),
    "attention-mask": (
        """input %q : f32[2, 2, 8]; input %k : f32[2, 2, 8]; input %v : f32[2, 2, 8]; %m = constant [true, true, true, false] :
        bool[2, 2]; %y = attention(%q, %k, %v, %m) {scale = 0.25, causal = false}""",
        """input %q : f32[2, 2, 8]; input %k : f32[2, 2, 8]; input %v : f32[2, 2, 8]; %t = constant 1.0 : f32[];
        %m = expand(%t) {shape = (2, 2)}; %y = attention(%q, %k, %v, %m) {scale = 0.25, causal = false}""",
        """input %q : f32[2, 2, 8]; input %k : f32[2, 2, 8]; input %v : f32[2, 2, 8]; input %m : bool[2, 2];
        %y = attention(%q, %k, %v, %m) {scale = 0.25, causal = false}""",
    ),
    "scale-convolution": (
        """input %x : f32[1, 2, 3]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2, 1];
        %c = convolution(%x, %w) {strides = (1,), padding = (0,), dilations = (1,), output_padding = (0,),
        groups = 1, transposed = false}; %s = constant [0.3, 2.0, -1.5] : f32[3]; %y = mul(%c, %s)  # => along width""",
        """input %x : f32[1, 2, 3]; input %w : f32[3, 2, 1];
        %c = convolution(%x, %w) {strides = (1,), padding = (0,), dilations = (1,), output_padding = (0,),
        groups = 1, transposed = false}; %s = constant [0.3, 2.0, -1.5] : f32[3, 1];
        %y = mul(%c, %s)  # => a weight that may change""",
    ),
    "scale-linear": (
        """input %x : f32[5, 2]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2]; %l = linear(%x, %w);
        %s = constant [0.3, 2.0, -1.5] : f32[3]; %m = mul(%l, %s); %n = reduce_sum(%w) {axes = (0, 1), keepdims = false};
        %y = add(%m, %n)  # => the weight is read elsewhere""",
        """input %x : f32[3, 2]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2]; %l = linear(%x, %w);
        %s = constant [0.3, 2.0, -1.5] : f32[3, 1]; %y = mul(%l, %s)  # => one for each row""",
    ),
    "shift-product": (
        """input %x : f32[5, 2]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2]; %l = linear(%x, %w);
        %s = constant 0.5 : f32[]; %y = sub(%s, %l)  # => the other way round""",
        """input %x : f32[5, 2]; input %b : f32[3]; %w = constant [1.0, 2.0, -1.0, 0.5, 3.0, 4.0] : f32[3, 2];
        %l = linear(%x, %w, %b); %s = constant 0.5 : f32[]; %y = add(%l, %s)  # => a bias that may change""",
    ),
    "quantized-sum": (
        # => the scale differs along what is summed
        """input %q : u8[3, 8]; input %v : i8[4, 8]; %a = cast(%q) {dtype = "f32"}; %c = cast(%v) {dtype = "f32"};
        input %t : f32[8]; %w = mul(%c, %t); %y = linear(%a, %w)""",
        # => one operand is no bytes
        """input %x : f32[3, 8]; input %v : i8[4, 8]; %w = cast(%v) {dtype = "f32"}; %y = linear(%x, %w)""",
        # => the zero point is no whole number
        """input %q : u8[3, 8]; input %v : i8[4, 8]; %a = cast(%q) {dtype = "f32"}; %z = constant 0.5 : f32[]; %x = sub(%a, %z);
        %w = cast(%v) {dtype = "f32"}; %y = linear(%x, %w)""",
        # => the sum might overflow
        """input %q : u8[1, 40000]; input %v : i8[1, 40000]; %x = cast(%q) {dtype = "f32"}; %w = cast(%v) {dtype = "f32"};
        %y = linear(%x, %w)""",
    ),
    "bias-of-integers": ("input %x : f32[3, 8]; input %w : f32[4, 8]; input %b : f32[4]; %y = linear(%x, %w, %b)",),
    "signed-weights": (
        # => a difference beyond a byte
        """input %x : i32[3, 2]; %v = constant [0, 255] : u8[1, 2]; %c = cast(%v) {dtype = "i32"}; %z = constant 100 : i32[];
        %w = sub(%c, %z); %y = linear(%x, %w)""",
        """input %x : i32[3, 2]; %w = constant [-129, 127] : i32[1, 2]; %y = linear(%x, %w)""",
    ),
    "unsigned-weights": (
        # => they are signed bytes already, span more than a byte, or lie beyond what a zero point may be
        """input %x : i32[3, 2]; %v = constant [0, 255] : u8[1, 2]; %c = cast(%v) {dtype = "i32"}; %z = constant 128 : i32[];
        %w = sub(%c, %z); %y = linear(%x, %w)""",
        """input %x : i32[3, 2]; %w = constant [-129, 127] : i32[1, 2]; %y = linear(%x, %w)""",
        """input %x : i32[3, 2]; %w = constant [256, 255] : i32[1, 2]; %y = linear(%x, %w)""",
    ),
    "zero-of-rows": (
        # => a number for each row
        """input %q : u8[3, 8]; %a = cast(%q) {dtype = "i32"}; %z = constant [1, 2, 3] : i32[3, 1]; %x = sub(%a, %z);
        input %w : i32[4, 8]; %y = linear(%x, %w)""",
        # => neither what a padded place holds nor where padding begins is known
        """input %q : u8[1, 2, 4, N]; input %z : u8[1]; %zi = cast(%z) {dtype = "i32"}; %a = cast(%q) {dtype = "i32"};
        %x = sub(%a, %zi); input %w : i32[2, 2, 3, 3]; %y = convolution(%x, %w) {strides = (1, 1), padding = (1, 1),
        dilations = (1, 1), output_padding = (0, 0), groups = 1, transposed = false}""",
    ),
    "signed-operands": (
        # => signed already, and no bytes
        """input %q : i8[3, 8]; %x = cast(%q) {dtype = "i32"}; input %w : i32[4, 8]; %y = linear(%x, %w)""",
        # => sums over windows
        """input %x : i32[1, 2, 4, 4]; input %v : u8[2, 2, 3, 3]; %w = cast(%v) {dtype = "i32"};
        %y = convolution(%x, %w) {strides = (1, 1), padding = (1, 1), dilations = (1, 1), output_padding = (0, 0), groups = 1,
        transposed = false}""",
    ),
    "zero-of-columns": (
        # => it differs along what is summed
        """input %x : i32[3, 8]; input %v : u8[4, 8]; input %z : u8[8]; %zi = cast(%z) {dtype = "i32"};
        %c = cast(%v) {dtype = "i32"}; %w = sub(%c, %zi); %y = linear(%x, %w)""",
        # => a group for each two results: the sums of windows are half of the work
        """input %x : i32[1, 4, 4, 4]; input %v : u8[4, 2, 3, 3]; input %z : u8[1]; %zi = cast(%z) {dtype = "i32"};
        %c = cast(%v) {dtype = "i32"}; %w = sub(%c, %zi); %y = convolution(%x, %w) {strides = (1, 1), padding = (1, 1),
        dilations = (1, 1), output_padding = (0, 0), groups = 2, transposed = false}""",
    ),
}


NAMES = {
    **{name: symbol(name) for name in SIZES},
    "div": floor_div,
    "true": True,
    "false": False,
    "inf": math.inf,
}
STATEMENT = re.compile(r"%(?P<name>\w+) = (?P<op>\w+)\s*(?:\((?P<operands>[^)]*)\))?\s*(?:\{(?P<attributes>.*)\})?$", re.DOTALL)
TYPED = re.compile(r"(?:input %(?P<input>\w+)|%(?P<constant>\w+) = constant (?P<value>.+?)) :\s*(?P<dtype>\w+)\[(?P<shape>.*)\]$")


def sample_graph(rule: str, body: str) -> Graph:
    """The graph whose statements are those of `body`, types of results inferred; its result is a copy of `%y`."""
    b = Builder("sample")
    known: dict[str, Node] = {}
    for line in " ".join(line.split("# =>")[0] for line in body.splitlines()).split(";"):
        statement = " ".join(line.split())
        typed = TYPED.match(statement)
        if typed:
            type = TensorType(DTYPES[typed["dtype"]], _evaluated(f"({typed['shape']},)") if typed["shape"] else ())
            if typed["input"]:
                known[typed["input"]] = b.input(typed["input"], type)
            else:
                array = np.array(_evaluated(typed["value"]), dtype=type.dtype.numpy).reshape(type.shape)
                known[typed["constant"]] = b.constant(array, name=typed["constant"])
            continue
        found = STATEMENT.match(statement)
        assert found, statement
        operands = [known[o.strip(" %")] for o in (found["operands"] or "").split(",") if o.strip()]
        attributes = _evaluated(f"dict({found['attributes'] or ''})")
        known[found["name"]] = b(found["op"], *operands, name=found["name"], **attributes)
    result = known["y"]
    # made by an op that the rule does not look at
    output = b.minimum(result, result) if rule.startswith("cast") else b.cast(result, dtype=result.dtype.name)
    return _with_sizes_bound(b).finish([output])


def _evaluated(text: str) -> Any:
    return eval(text, {"__builtins__": {"dict": dict}}, NAMES)


def _with_sizes_bound(b: Builder) -> Builder:
    """Sizes that no input has are given as numbers."""
    bound = {symbol_name(d) for i in b.inputs for d in i.shape}
    used = {s for n in b.nodes for d in n.shape for s in symbols(d)}
    for name in sorted(used - bound):
        b.size_input(f"size_{name}", name)
    return b


def samples(table: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for name, bodies in table.items():
        for body in bodies:
            yield name, body
