"""Control flow and calls of the host: see `ir.control`, which says what they mean."""

from __future__ import annotations

from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import require_operands
from dlcompiler.ir.ops.source import own_type
from dlcompiler.ir.types import TupleType, i64

# One of two graphs, by a bool. attributes: then, else. Result: a tuple.
register("if", own_type, Trait.EXTERN, Trait.BARRIER)

# A graph again and again. attributes: body, carried (how many values go from one iteration to the next). Result: a tuple.
register("loop", own_type, Trait.EXTERN, Trait.BARRIER)

# An operator that the host runs. attributes: target, such as "ai.onnx.Unique", and what the target needs. Result: a tuple.
# One of torch's has the attribute `arguments`, as an `aten.call` has.
register("host.call", own_type, Trait.EXTERN, Trait.BARRIER)


def _infer_sizes(types, attributes):
    require_operands("sizes", types, 1)
    if types[0].dtype is not i64 or types[0].shape != (len(attributes["symbols"]),):
        raise ShapeError(f"{types[0]} does not hold {len(attributes['symbols'])} sizes")
    return types[0]


# The numbers in a vector, none negative, as sizes. attributes: symbols, a name for each. Result: the operand.
register("sizes", _infer_sizes, Trait.EXTERN, Trait.BARRIER, evaluate=lambda operands, attributes: operands[0])

# An assertion: of a bool, or of two sizes. attributes: message; without an operand relation (eq, ne, lt, le, gt, ge), left and
# right. A call for which it does not hold raises an error.
register("check", lambda types, attributes: TupleType(()), Trait.EXTERN, Trait.BARRIER, evaluate=lambda operands, attributes: ())
