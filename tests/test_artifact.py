"""The `.dlc`: what goes in comes out, mapped and not copied; what is damaged or hostile is refused in one line."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from dlcompiler.ir.errors import CompilerError, InvalidModelError, UnsupportedError
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.text import graph_constants, print_graph
from dlcompiler.ir.types import DTYPES, TensorType, f32
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

import dlcompiler
from dlcompiler.artifact import GRAPH, MANIFEST, WEIGHTS, Artifact, load_artifact, save_artifact
from dlcompiler.files import write_atomically
from dlcompiler.weights import read_safetensors, write_safetensors


def graph() -> Graph:
    """A large constant, a small one, and a bfloat16 one."""
    b = Builder("kept")
    x = b.input("x", TensorType(f32, (2, 40)), location="m.py:1")
    weight = np.random.default_rng(0).standard_normal((40, 30), np.float32)
    y = b.add(b.matmul(x, b.constant(weight)), b.constant(1.5, f32))
    narrow = b.constant(np.arange(30).astype(ml_dtypes.bfloat16))
    return b.finish([b.mul(y, b.cast(narrow, dtype="f32"))], output_names=("answer",))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "m.dlc"
    save_artifact(path, Artifact(graph(), "cpu:x86-64-v3", {"fuel": 3}))
    return path


def test_round_trip(saved: Path) -> None:
    loaded = load_artifact(saved)
    assert (loaded.target, loaded.options) == ("cpu:x86-64-v3", {"fuel": 3})
    assert print_graph(loaded.graph) == print_graph(graph())
    for name, array in graph_constants(graph()).items():
        kept = graph_constants(loaded.graph)[name]
        assert kept.dtype == array.dtype
        np.testing.assert_array_equal(kept, array)


def test_is_an_ordinary_zip_with_a_manifest(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert {i.filename for i in archive.infolist()} == {MANIFEST, GRAPH, WEIGHTS}
        assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
        manifest = json.loads(archive.read(MANIFEST))
        weights = safetensors.torch.load(archive.read(WEIGHTS))
    assert manifest["format_version"] == 1 and manifest["targets"] == ["cpu:x86-64-v3"]
    assert manifest["inputs"] == [{"name": "x", "dtype": "f32", "shape": [2, 40]}]
    assert manifest["outputs"] == [{"name": "answer", "dtype": "f32", "shape": [2, 30]}]
    assert len(weights) == 2


def test_weights_are_mapped_and_aligned(saved: Path) -> None:
    array = next(iter(graph_constants(load_artifact(saved).graph).values()))
    assert not array.flags.owndata and array.ctypes.data % 64 == 0
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if str(saved) in line]
    assert any(int(low, 16) <= array.ctypes.data < int(high, 16) for low, high in ranges)


def test_the_same_model_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_artifact(tmp_path / name, Artifact(graph(), "cpu"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_changing_a_loaded_weight_changes_no_file(saved: Path) -> None:
    before = saved.read_bytes()
    next(iter(graph_constants(load_artifact(saved).graph).values()))[...] = 0
    assert saved.read_bytes() == before


def test_compiled_models_save_and_load(tmp_path: Path) -> None:
    compiled = dlcompiler.compile(graph(), options={"disabled_passes": ["simplify"], "dump_dir": str(tmp_path / "dump")})
    compiled.save(tmp_path / "m.dlc")
    loaded = dlcompiler.load(tmp_path / "m.dlc")
    x = np.ones((2, 40), np.float32)
    np.testing.assert_array_equal(loaded(x), compiled(x))
    assert loaded.options.disabled_passes == {"simplify"} and loaded.options.dump_dir is None
    assert (loaded.input_names, loaded.output_names) == (compiled.input_names, ("answer",))


def test_a_model_that_changes_itself_is_not_saved(tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm1d(3).train()
    compiled = dlcompiler.compile(norm, (torch.randn(4, 3),))
    with pytest.raises(UnsupportedError, match="changes its own tensors"):
        compiled.save(tmp_path / "m.dlc")
    assert not list(tmp_path.iterdir())


# -- files that are not what they say ----------------------------------------------------------------------------------------


def refused(path: Path, says: str = "") -> None:
    with pytest.raises(InvalidModelError) as caught:
        load_artifact(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and says in message


def test_missing_empty_and_foreign(tmp_path: Path) -> None:
    refused(tmp_path / "none.dlc", "No such file")
    for content in (b"", b"no zip", b"PK\x03\x04" + b"\0" * 100):
        (tmp_path / "m.dlc").write_bytes(content)
        refused(tmp_path / "m.dlc")


def test_truncated_anywhere(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for end in range(0, len(data), max(1, len(data) // 50)):
        (tmp_path / "cut.dlc").write_bytes(data[:end])
        refused(tmp_path / "cut.dlc")


def test_flipped_bits_are_found_or_harmless(saved: Path, tmp_path: Path) -> None:
    """Whatever bit is wrong, loading refuses, or the graph is what was saved (padding, dates)."""
    data = saved.read_bytes()
    chooser = random.Random(0)
    # the whole directory at the end, and places all over
    places = [*range(len(data) - 400, len(data)), *(chooser.randrange(len(data)) for _ in range(300))]
    path = tmp_path / "flipped.dlc"
    expected = print_graph(graph())
    kept = 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << chooser.randrange(8)
        path.write_bytes(changed)
        try:
            loaded = load_artifact(path)
        except CompilerError as error:
            assert isinstance(error, InvalidModelError) and "\n" not in error.message
        else:
            kept += 1
            assert print_graph(loaded.graph) == expected
    assert kept < len(places) / 2


def rewrite(path: Path, change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of an artefact with its members changed and its digests made to fit again."""
    import hashlib

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    manifest = json.loads(members[MANIFEST])
    for name, entry in manifest.get("members", {}).items():
        if name in members:
            entry["sha256"] = hashlib.sha256(members[name]).hexdigest()
    members[MANIFEST] = json.dumps(manifest).encode()
    out = path.with_name("changed.dlc")
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_STORED if name == WEIGHTS else compression)
    return out


def manifest_with(**changes: object) -> Callable[[dict[str, bytes]], object]:
    def change(members: dict[str, bytes]) -> None:
        members[MANIFEST] = json.dumps({**json.loads(members[MANIFEST]), **changes}).encode()

    return change


def test_rewriting_itself_is_no_damage(saved: Path) -> None:
    assert print_graph(load_artifact(rewrite(saved, lambda members: None)).graph) == print_graph(graph())


def test_wrong_digest(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[GRAPH] = members[GRAPH].replace(b"1.5", b"2.5")
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(saved, "SHA-256")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "sub/../../evil", "code.py", "weights.pkl"])
def test_unexpected_members(saved: Path, name: str) -> None:
    refused(rewrite(saved, lambda members: members.update({name: b"x"})), "no artefact has")
    assert not (saved.parent.parent / "evil").exists()


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS])
def test_missing_members(saved: Path, name: str) -> None:
    with zipfile.ZipFile(saved) as archive:
        members = {n: archive.read(n) for n in archive.namelist() if n != name}
    with zipfile.ZipFile(saved, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    refused(saved, f"{name} missing")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (manifest_with(format_version=2), "format version 2"),
        (manifest_with(format_version="1"), "format version '1'"),
        (manifest_with(format_version=True), "format version True"),
        (manifest_with(targets=[]), "no target"),
        (manifest_with(targets=[5]), "no target"),
        (manifest_with(options=[]), "has no options"),
        (manifest_with(members={}), "SHA-256"),
    ],
)
def test_manifest_that_does_not_fit(saved: Path, change: Callable[[dict[str, bytes]], object], says: str) -> None:
    refused(rewrite(saved, change), says)


def test_unknown_target_in_the_manifest(saved: Path) -> None:
    path = rewrite(saved, manifest_with(targets=["quantum"]))
    with pytest.raises(InvalidModelError, match="saved for a target that is not known here"):
        dlcompiler.load(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"evil": 1}, "unknown option 'evil'"),
        ({"fuel": "much"}, "option 'fuel' takes an integer"),
        ({"disabled_passes": ["simplfy"]}, "there is no pass 'simplfy'"),
        # these would write where the file says, or run machine code that lies there
        ({"dump_dir": "/tmp/evil"}, "sets the option 'dump_dir', which no file may"),
        ({"cache_dir": "/tmp/evil"}, "sets the option 'cache_dir', which no file may"),
        ({"tune_budget": 1e9}, "sets the option 'tune_budget', which no file may"),
    ],
)
def test_options_in_the_manifest_that_are_refused(saved: Path, options: dict[str, object], says: str) -> None:
    refused(rewrite(saved, manifest_with(options=options, targets=["cpu"])), says)


def test_deflate_bomb(saved: Path) -> None:
    """Members that could unfold to more than they take."""
    path = rewrite(saved, lambda members: members.update({GRAPH: b" " * (64 << 20)}), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    refused(path, "stored, not compressed")


def test_declared_sizes_are_not_believed(saved: Path) -> None:
    """The directory says that a member is smaller or larger than it is."""
    path = rewrite(saved, lambda members: None)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    while data[start + 46 : start + 46 + len(GRAPH)] != GRAPH.encode():
        start = data.index(b"PK\x01\x02", start + 1)
    (size,) = struct.unpack_from("<I", data, start + 24)
    for wrong in (size - 10, size + 10, 1 << 31):
        struct.pack_into("<I", data, start + 24, wrong)
        path.write_bytes(data)
        refused(path)


def test_no_pickle_is_ever_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    load_artifact(saved)


# -- safetensors -------------------------------------------------------------------------------------------------------------

DTYPE_STRATEGY = st.sampled_from([d.numpy for d in DTYPES.values()])
ARRAYS = DTYPE_STRATEGY.flatmap(
    lambda dtype: stn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4).map(
        lambda shape: np.random.default_rng(len(shape)).integers(0, 100, shape).astype(dtype)
    )
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(min_size=1, max_size=5), ARRAYS, max_size=5))
def test_tensors_come_back(tensors: dict[str, np.ndarray]) -> None:
    import io

    file = io.BytesIO()
    tensors.pop("__metadata__", None)
    write_safetensors(file, tensors)
    found = read_safetensors(memoryview(file.getvalue()), "here")
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_the_library_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    from safetensors.torch import load_file, save_file

    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    found = read_safetensors(memoryview((tmp_path / "theirs.safetensors").read_bytes()), "theirs")
    assert found["b"].dtype == np.dtype(ml_dtypes.bfloat16)
    with open(tmp_path / "ours.safetensors", "wb") as file:
        write_safetensors(file, found)
    for name, tensor in load_file(tmp_path / "ours.safetensors").items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"not json",
        b"[" * 5000,
        b'{"a": 5}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}',
        b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}',
        b'{"__metadata__": {"complex": "[\\"a\\"]"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_bad_headers(header: bytes) -> None:
    with pytest.raises(InvalidModelError):
        read_safetensors(memoryview(len(header).to_bytes(8, "little") + header + b"\0" * 4), "here")


# -- files -------------------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_writes_through_links_but_not_over_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, lambda file: file.write(b"new"))
    assert link.is_symlink() and target.read_bytes() == b"new"
    with pytest.raises(OSError, match="not a regular file"):
        write_atomically("/dev/null", lambda file: file.write(b"x"))
    assert Path("/dev/null").is_char_device()
