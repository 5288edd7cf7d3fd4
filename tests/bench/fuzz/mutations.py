"""Ways to break a file. Each takes a `random.Random` and gives bytes and a sentence that says what was done."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import EncodeError, Message
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from tests.bench.fuzz import seeds

Mutant = tuple[bytes, str]

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    63,
    64,
    127,
    128,
    255,
    1000,
    4096,
    65536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
STRINGS = ("", "x", "y", "ai.onnx", "a" * 5000, "ä\u0000", "../../etc/passwd", "/etc/passwd", "NOTSET", "%s{0}", "x\ny", "\u202e")
INTEGER_TYPES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1), FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
}  # fmt: skip


# -- bytes -------------------------------------------------------------------------------------------------------------------


def flip_bits(data: bytes, random: Random) -> Mutant:
    """One to eight bits."""
    changed = bytearray(data)
    places = [random.randrange(len(data) * 8) for _ in range(random.choice((1, 1, 1, 2, 4, 8)))]
    for place in places:
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed), f"bits {places} flipped"


def rearrange_bytes(data: bytes, random: Random) -> Mutant:
    """A stretch of bytes removed, repeated, moved, zeroed or set at random."""
    start = random.randrange(len(data))
    stop = min(len(data), start + random.choice((1, 2, 4, 8, 16, 64, 256)))
    part = data[start:stop]
    way = random.choice(("removed", "repeated", "moved", "zeroed", "random"))
    if way == "removed":
        changed = data[:start] + data[stop:]
    elif way == "repeated":
        changed = data[:stop] + part * random.choice((1, 2, 50)) + data[stop:]
    elif way == "moved":
        rest = data[:start] + data[stop:]
        to = random.randrange(len(rest) + 1)
        changed = rest[:to] + part + rest[to:]
    else:
        filling = bytes(len(part)) if way == "zeroed" else random.randbytes(len(part))
        changed = data[:start] + filling + data[stop:]
    return changed, f"bytes {start} to {stop} {way}"


def truncate(data: bytes, end: int) -> Mutant:
    """The first `end` bytes."""
    return data[:end], f"cut to {end} of {len(data)} bytes"


# -- fields of an ONNX model -------------------------------------------------------------------------------------------------


def _places(message: Message, path: str = "") -> list[tuple[Message, FieldDescriptor, str]]:
    """Every field that is set, in every message, and where it is."""
    found = []
    for field, value in message.ListFields():
        here = f"{path}.{field.name}"
        found.append((message, field, here))
        if field.type == field.TYPE_MESSAGE:
            many = field.is_repeated
            for k, each in enumerate(value if many else [value]):
                found += _places(each, f"{here}[{k}]" if many else here)
    return found


def _new_value(field: FieldDescriptor, old: Any, random: Random, strings: list[str]) -> Any:
    if field.type in INTEGER_TYPES:
        low, high = INTEGER_TYPES[field.type]
        if field.type == FieldDescriptor.TYPE_ENUM and random.random() < 0.7:
            return random.randrange(0, 30)
        return max(low, min(high, random.choice((*INTEGERS, old + 1, old - 1, -old, old * 2))))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return random.choice((*FLOATS, -old))
    text = random.choice((*STRINGS, *strings))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.choice((b"", text.encode(), random.randbytes(len(old)), old[:-1], old + b"\0", old * 2))
    return text


def _strings_of(message: Message) -> list[str]:
    found = []
    for holder, field, _ in _places(message):
        if field.type == FieldDescriptor.TYPE_STRING:
            value = getattr(holder, field.name)
            found += list(value) if field.is_repeated else [value]
    return sorted(set(found))


def change_field(model: ModelProto, random: Random) -> str:
    """One field: a new value, removed, repeated, reordered, or copied over one of the same kind."""
    places = _places(model)
    message, field, path = random.choice(places)
    if field.is_repeated:
        return _change_repeated(model, getattr(message, field.name), field, path, random)
    if random.random() < 0.15:
        message.ClearField(field.name)
        return f"{path} removed"
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        others = [getattr(m, f.name) for m, f, _ in places if f.message_type is field.message_type and not f.is_repeated]
        copied = random.choice(others)
        kept = type(copied)()
        kept.CopyFrom(copied)
        getattr(message, field.name).CopyFrom(kept)
        return f"{path} replaced by another {field.message_type.name}"
    value = _new_value(field, getattr(message, field.name), random, _strings_of(model))
    try:
        setattr(message, field.name, value)
    except ValueError:  # an enum that is closed takes only what it names
        message.ClearField(field.name)
        value = "nothing"
    return f"{path} set to {str(value)[:60]!r}"


def _change_repeated(model: ModelProto, values: Any, field: FieldDescriptor, path: str, random: Random) -> str:
    k = random.randrange(len(values))
    way = random.choice(("removed", "repeated", "swapped", "emptied", "changed", "changed"))
    if way == "removed":
        del values[k]
    elif way == "emptied":
        del values[:]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if way == "repeated":
            values.add().CopyFrom(values[k])
        else:
            other = random.randrange(len(values))
            first, second = type(values[k])(), type(values[k])()
            first.CopyFrom(values[k])
            second.CopyFrom(values[other])
            values[k].CopyFrom(second)
            values[other].CopyFrom(first)
    elif way == "repeated":
        values.extend([values[k]] * random.choice((1, 1, 3, 70)))
    elif way == "swapped":
        other = random.randrange(len(values))
        values[k], values[other] = values[other], values[k]
    else:
        try:
            values[k] = _new_value(field, values[k], random, _strings_of(model))
        except ValueError:
            del values[k]
    return f"{path}[{k}] {way}"


# -- the structure of an ONNX model ------------------------------------------------------------------------------------------


def other_operator(model: ModelProto, random: Random) -> str:
    """A node becomes another operator, with its old inputs and attributes or those of a conformance case."""
    node = random.choice(model.graph.node)
    theirs = random.choice(random.choice(seeds.models())[1].graph.node)
    node.op_type, node.domain = theirs.op_type, theirs.domain
    if random.random() < 0.7:
        del node.attribute[:]
        node.attribute.extend(theirs.attribute)
    if theirs.domain and not any(each.domain == theirs.domain for each in model.opset_import):
        model.opset_import.add(domain=theirs.domain, version=1)
    return f"node {node.name or node.op_type!r} is a {theirs.op_type}"


def add_node(model: ModelProto, random: Random) -> str:
    """A node from another case, reading what there is and, half the time, standing in the middle."""
    theirs = random.choice(random.choice(seeds.models())[1].graph.node)
    node = NodeProto()
    node.CopyFrom(theirs)
    known = [v.name for v in model.graph.input] + [t.name for t in model.graph.initializer]
    known += [name for n in model.graph.node for name in n.output] or ["x"]
    for k in range(len(node.input)):
        node.input[k] = random.choice(known)
    for k in range(len(node.output)):
        node.output[k] = f"added_{k}"
    model.graph.node.insert(random.randrange(len(model.graph.node) + 1), node)
    if node.output and model.graph.output:
        if random.random() < 0.5:
            model.graph.output[0].name = node.output[0]
        elif model.graph.node:
            reader = random.choice(model.graph.node)
            if reader.input:
                reader.input[random.randrange(len(reader.input))] = node.output[0]
    return f"a {node.op_type} added"


def rewire(model: ModelProto, random: Random) -> str:
    """An input or output of a node takes another name of the graph: cycles, duplicates, wrong types, undefined names."""
    names = _strings_of(model)
    node = random.choice(model.graph.node)
    ends = random.choice([e for e in (node.input, node.output) if len(e)] or [node.output])
    if not len(ends):
        ends.append(random.choice(names))
        return "a name appended"
    k = random.randrange(len(ends))
    ends[k] = random.choice((*names, "nobody", ""))
    return f"an end of {node.op_type} is {ends[k][:40]!r}"


def other_opset(model: ModelProto, random: Random) -> str:
    """Another version of the operators, or another IR version."""
    if not model.opset_import or random.random() < 0.2:
        model.ir_version = random.choice((0, 1, 2, 3, 4, 8, 10, 13, 99))
        return f"IR version {model.ir_version}"
    entry = random.choice(model.opset_import)
    entry.version = random.choice((0, 1, 6, 7, 9, 11, 13, 17, 18, 20, 22, 25, 26, 27, 1000))
    return f"operator set {entry.domain!r} {entry.version}"


def other_shape(model: ModelProto, random: Random) -> str:
    """An input's shape: other sizes, symbols, another rank, none; or another element type."""
    info = random.choice([*model.graph.input, *model.graph.output, *model.graph.value_info] or [model.graph.input.add()])
    tensor = info.type.tensor_type
    way = random.choice(("size", "size", "symbol", "rank", "none", "element"))
    if way == "element":
        tensor.elem_type = random.randrange(0, 28)
    elif way == "none":
        tensor.ClearField("shape")
    elif way == "rank" or not tensor.shape.dim:
        if tensor.shape.dim and random.random() < 0.5:
            del tensor.shape.dim[-1]
        else:
            tensor.shape.dim.add(dim_value=random.choice((0, 1, 3, 2**40)))
    elif way == "symbol":
        random.choice(tensor.shape.dim).dim_param = random.choice(("n", "m", "n+1", "2*n", "", "é", "x y"))
    else:
        random.choice(tensor.shape.dim).dim_value = random.choice(INTEGERS)
    return f"{info.name!r}: another {way}"


def other_constant(model: ModelProto, random: Random) -> str:
    """Integers of a constant become large or negative: shapes, axes, counts and sizes that bombs are made of."""
    tensors = list(model.graph.initializer)
    tensors += [a.t for n in model.graph.node for a in n.attribute if a.type == AttributeProto.TENSOR]
    if not tensors:
        # an input that the conformance cases give at run time becomes a constant of the file
        info = random.choice(model.graph.input) if model.graph.input else None
        if info is None:
            return other_opset(model, random)
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        count = 1
        for d in dims:
            count *= max(d, 0)
        if info.type.tensor_type.elem_type != TensorProto.INT64 or count > 1000:
            return other_shape(model, random)
        tensor = model.graph.initializer.add(name=info.name, data_type=TensorProto.INT64, dims=dims)
        tensor.int64_data.extend(random.choice(INTEGERS) for _ in range(count))
        model.graph.input.remove(info)
        return f"{info.name!r} is a constant"
    tensor = random.choice(tensors)
    if tensor.data_type == TensorProto.INT64:
        count = len(tensor.raw_data) // 8 or len(tensor.int64_data)
        tensor.ClearField("raw_data")
        del tensor.int64_data[:]
        values = [random.choice(INTEGERS) for _ in range(count)]
        tensor.int64_data.extend(values)
        return f"constant {tensor.name!r} is {values[:6]}"
    way = random.choice(("external", "dims", "type", "name"))
    if way == "external":
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=random.choice((*STRINGS, "model.onnx", "a/../model.onnx", "/dev/zero")))
        tensor.external_data.add(key="offset", value=str(random.choice((*INTEGERS, "x", ""))))
    elif way == "dims":
        tensor.dims.append(random.choice(INTEGERS))
    elif way == "type":
        tensor.data_type = random.randrange(0, 28)
    else:
        tensor.name = random.choice(_strings_of(model))
    return f"constant {tensor.name!r}: another {way}"


def nest(model: ModelProto, random: Random) -> str:
    """The graph inside branches of an If, one in the other."""
    depth = random.choice((1, 2, 10, 70, 150))
    for _ in range(depth):
        inner = type(model.graph)()
        inner.CopyFrom(model.graph)
        del inner.input[:]
        if inner.ByteSize() > 1 << 20:
            break
        del model.graph.node[:]
        condition = model.graph.node.add(op_type="Constant", output=["condition"])
        value = condition.attribute.add(name="value", type=AttributeProto.TENSOR)
        value.t.data_type, value.t.raw_data = TensorProto.BOOL, b"\1"
        node = model.graph.node.add(op_type="If", input=["condition"], output=[o.name for o in model.graph.output])
        for branch in ("then_branch", "else_branch"):
            attribute = node.attribute.add(name=branch, type=AttributeProto.GRAPH)
            attribute.g.CopyFrom(inner)
            if depth > 10:  # two full branches would double at each level
                inner = type(model.graph)(name="leaf", output=inner.output)
    return f"nested {depth} deep"


STRUCTURE = (
    change_field, change_field, other_operator, other_operator, add_node, add_node, rewire, rewire, other_opset, other_shape,
    other_shape, other_constant, other_constant, nest,
)  # fmt: skip


def change_structure(model: ModelProto, random: Random) -> Mutant:
    """One to three changes that keep the file a readable message."""
    changed = ModelProto()
    changed.CopyFrom(model)
    said = []
    for _ in range(random.choice((1, 1, 2, 3))):
        if not changed.graph.node:
            break
        said.append(random.choice(STRUCTURE)(changed, random))
    try:
        return changed.SerializeToString(deterministic=True), "; ".join(said)
    except EncodeError:  # nested deeper than protobuf writes
        return model.SerializeToString(deterministic=True), "as it was"


# -- Graph text --------------------------------------------------------------------------------------------------------------

TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*|-?\d+(?:\.\d+)?(?:e-?\d+)?|%[A-Za-z0-9_.]+|\"[^\"]*\"|\S")


def change_text(text: str, random: Random) -> Mutant:
    """Tokens swapped, changed, repeated or removed; lines too; or a character."""
    said = []
    for _ in range(random.choice((1, 1, 2, 4))):
        tokens = [m.span() for m in TOKEN.finditer(text)]
        if not tokens:
            break
        (start, stop), (other_start, other_stop) = random.choice(tokens), random.choice(tokens)
        word = text[start:stop]
        way = random.choice(("token", "token", "number", "removed", "repeated", "line", "character", "deep"))
        if way == "token":
            text = text[:start] + text[other_start:other_stop] + text[stop:]
        elif way == "number" and re.fullmatch(r"-?\d+", word):
            text = text[:start] + str(random.choice(INTEGERS)) + text[stop:]
        elif way == "removed":
            text = text[:start] + text[stop:]
        elif way == "repeated":
            text = text[:stop] + (" " + word) * random.choice((1, 2, 2000)) + text[stop:]
        elif way == "line":
            lines = text.splitlines(keepends=True)
            k = random.randrange(len(lines))
            line = lines.pop(k)
            if random.random() < 0.6:
                lines.insert(random.randrange(len(lines) + 1), line)
            if random.random() < 0.3:
                lines.insert(random.randrange(len(lines) + 1), line)
            text = "".join(lines)
        elif way == "deep":
            text = text[:start] + "[" * random.choice((10, 1000, 100_000)) + text[start:]
        else:
            text = text[:start] + random.choice(("\0", "é", "\n", '"', "{", "}", "*", "/", "\u2028", "9" * 400)) + text[start:]
        said.append(f"{way} at {start}")
    return text.encode("utf-8", "surrogatepass"), "; ".join(said)


# -- artefacts ---------------------------------------------------------------------------------------------------------------


def pack(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED, again: str | None = None) -> bytes:
    """A zip of these members; `again` is written twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
        if again is not None:
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(zipfile.ZipInfo(again), b"twice")
    return out.getvalue()


def _json_places(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((value, key), *_json_places(inner))]


def _change_json(document: Any, random: Random) -> str:
    holder, key = random.choice(_json_places(document))
    way = random.choice(("value", "removed", "nested"))
    if way == "removed":
        del holder[key]
    elif way == "nested":
        holder[key] = {"a": [holder[key]]}
    else:
        holder[key] = random.choice((*INTEGERS, *STRINGS, None, True, [], {}, 1.5, "cuda:sm_90", "cpu:x86-64-v4", 10**400))
    return f"JSON {key!r} {way}"


def change_artifact(members: dict[str, bytes], random: Random) -> Mutant:
    """What is inside changed and the digests made right again, or the zip itself."""
    members = dict(members)
    way = random.choice(("text", "text", "manifest", "manifest", "weights", "header", "name", "bomb", "twice", "bits", "cut"))
    said = way
    if way == "text":
        members["graph.txt"], said = change_text(members["graph.txt"].decode(), random)
    elif way == "weights":
        members["weights.safetensors"], said = flip_bits(members["weights.safetensors"], random)
    elif way == "header":
        data = members["weights.safetensors"]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        if header:
            said = _change_json(header, random)
        text = json.dumps(header).encode()
        members["weights.safetensors"] = len(text).to_bytes(8, "little") + text + data[8 + length :]
    elif way == "name":
        name = random.choice(list(members))
        members[random.choice(("../graph.txt", "/etc/passwd", "a/../../b", "graph.txt ", "code.so", "GRAPH.TXT"))] = members.pop(
            name
        )
    elif way == "bomb":
        members[random.choice(list(members))] = bytes(random.choice((10_000, 10_000_000)))
    manifest = json.loads(members["manifest.json"]) if members.get("manifest.json", b"\0")[:1] == b"{" else None
    if manifest is not None:
        for name, content in members.items():
            if name in manifest.get("members", {}):
                manifest["members"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        if way == "manifest":
            said = "; ".join(_change_json(manifest, random) for _ in range(random.choice((1, 1, 3))) if manifest)
        members["manifest.json"] = json.dumps(manifest).encode()
    compression = zipfile.ZIP_DEFLATED if way == "bomb" or random.random() < 0.1 else zipfile.ZIP_STORED
    data = pack(members, compression, "graph.txt" if way == "twice" else None)
    if way == "bits":
        return flip_bits(data, random)
    if way == "cut":
        return truncate(data, random.randrange(len(data)))
    return data, f"{way}: {said}"
