"""Options: where each value comes from, and what is refused."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from dlcompiler.ir.errors import OptionError
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcompiler.options import MODES, Options, writable_folder

VALUES = {
    "optimization_level": (3, None, None),
    "disabled_passes": (frozenset({"simplify"}), None, None),
    "fuel": (7, "12", 12),
    "numerics": ("eager", None, None),
    "activation_memory_budget": (0.5, None, None),
    "strict": (True, "0", False),
    "verify": (True, "yes", True),
    "dump_dir": ("/tmp/a", "/tmp/b", "/tmp/b"),
    "cache_dir": ("/tmp/a", "/tmp/b", "/tmp/b"),
    "cache_bytes": (5, "0", 0),
    "disable_cache": (True, "false", False),
    "tune_budget": (5.0, "2.5", 2.5),
    "logs": (frozenset({"fusion"}), "cache,memory", frozenset({"cache", "memory"})),
    "progress": (False, "off", False),
    "mode": ("reduce-overhead", None, None),
    "dynamic": (True, None, None),
    "cuda_graphs": (False, None, None),
    "gpu_writer": ("cuda", None, None),
    "float32": ("tf32", None, None),
    "fix_batch": (True, None, None),
}


def test_the_table_names_every_option() -> None:
    assert set(VALUES) == {row[0] for row in Options.documentation()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sets(st.sampled_from(sorted(VALUES))), st.sets(st.sampled_from(sorted(VALUES))))
def test_explicit_before_environment_before_default(explicit: set[str], set_outside: set[str]) -> None:
    variables = {name: variable for name, _, _, variable, _ in Options.documentation()}
    environment = {str(variables[name]): VALUES[name][1] for name in set_outside if variables[name]}
    resolved = Options.resolve({name: VALUES[name][0] for name in explicit}, {"HOME": "/tmp/home", **environment})
    defaults = Options()
    for name, (given_value, _, from_environment) in VALUES.items():
        value, source = getattr(resolved, name), resolved.sources[name]
        if name in explicit:
            assert (value, source) == (given_value, "explicit")
        elif variables[name] in environment:
            assert (value, source) == (from_environment, variables[name])
        elif name == "cache_dir":
            assert (value, source) == ("/tmp/home/.cache/dlcompiler", "default")
        elif source == "mode reduce-overhead":
            assert (name, value) == ("cuda_graphs", True) and "mode" in explicit
        else:
            assert (value, source) == (getattr(defaults, name), "default")


def test_options_that_are_resolved_stay_as_they_are() -> None:
    resolved = Options.resolve({"fuel": 3}, {})
    assert Options.resolve(resolved, {"DLCOMPILER_STRICT": "1"}) is resolved
    assert Options.resolve({"fuel": 3}, {}) == resolved and hash(Options.resolve({"fuel": 3}, {})) == hash(resolved)
    with pytest.raises(FrozenInstanceError):
        resolved.fuel = 4  # type: ignore[misc]


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_of_torch_are_known_and_yield_to_what_is_explicit(mode: str) -> None:
    resolved = Options.resolve({"mode": mode}, {})
    assert resolved.optimization_level == MODES[mode].get("optimization_level", 2)
    assert Options.resolve({"mode": mode, "optimization_level": 0}, {}).optimization_level == 0


@pytest.mark.parametrize(
    ("explicit", "says"),
    [
        ({"strct": True}, "did you mean 'strict'?"),
        ({"zzz": True}, "there are optimization_level"),
        ({"strict": 1}, "option 'strict' takes true or false, not 1"),
        ({"fuel": True}, "an integer of at least 0"),
        ({"fuel": -1}, "an integer of at least 0"),
        ({"optimization_level": 4}, "an integer from 0 to 3"),
        ({"mode": "max-autotun"}, "did you mean 'max-autotune'?"),
        ({"numerics": "exact"}, "one of fast, eager"),
        ({"logs": "fusions"}, "names out of fusion"),
        ({"disabled_passes": 5}, "takes names, not 5"),
        ({"disabled_passes": [5]}, "takes names"),
        ({"dump_dir": 5}, "a folder"),
        ({"dump_dir": ""}, "a folder"),
    ],
)
def test_refused(explicit: dict, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options.resolve(explicit, {})
    assert says in str(caught.value)


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(OptionError, match="DLCOMPILER_STRICT takes true or false, not 'maybe'"):
        Options.resolve({}, {"DLCOMPILER_STRICT": "maybe"})
    assert Options.resolve({}, {"DLCOMPILER_STRICT": ""}).strict is False


def test_names_may_be_a_list_or_a_text_with_commas() -> None:
    assert Options.resolve({"disabled_passes": "a, b,"}, {}).disabled_passes == {"a", "b"}
    assert Options.resolve({"disabled_passes": ["a", "b"]}, {}).disabled_passes == {"a", "b"}


def test_as_dict_goes_round() -> None:
    resolved = Options.resolve({name: values[0] for name, values in VALUES.items()}, {})
    assert Options.resolve(resolved.as_dict(), {}) == resolved


def test_cache_folder_follows_xdg() -> None:
    assert Options.resolve({}, {"XDG_CACHE_HOME": "/tmp/x", "HOME": "/tmp/y"}).cache_dir == "/tmp/x/dlcompiler"


def test_unwritable_folders_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    caplog.set_level(logging.WARNING, "dlcompiler")
    logging.getLogger("dlcompiler").propagate = True
    for _ in range(2):
        assert writable_folder(tmp_path / "file" / "inside", "dump") is None
        assert Options.resolve({"cache_dir": str(tmp_path / "file")}, {}).cache_dir is None
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        f"cannot write the dump folder {tmp_path / 'file' / 'inside'}",
        f"cannot write the cache folder {tmp_path / 'file'}",
    ]
    assert writable_folder(tmp_path / "new" / "deep", "dump") == tmp_path / "new" / "deep"


def test_every_field_is_documented() -> None:
    for name, takes, _, _, meaning in Options.documentation():
        assert takes and meaning, name
    assert len(Options.documentation()) == len(fields(Options)) - 1  # `sources` is no option
