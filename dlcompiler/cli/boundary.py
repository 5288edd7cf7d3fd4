"""The one place where errors become exit codes and messages of one line.

0 ok · 1 internal error · 2 usage · 3 invalid model or input file · 4 unsupported op, dtype or size · 5 verify mismatch ·
6 device or resource · 130 interrupted

This is also the one place with a broad handler: whatever nobody foresaw is our bug, and its traceback goes into a file that the
message names, to be reported.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import click

from dlcompiler.cli.commands import cli
from dlcompiler.ir.errors import (
    CompilerError,
    DTypeError,
    InputError,
    InvalidModelError,
    LaunchError,
    MismatchError,
    OptionError,
    ShapeError,
    UnsupportedError,
    VerifyError,
)
from dlcompiler.version import __version__

OK, INTERNAL, USAGE, INVALID, UNSUPPORTED, MISMATCH, RESOURCE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

# the first class that fits; a VerifyError is our own bug and goes the way of the unforeseen
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (click.UsageError, USAGE),
    (OptionError, USAGE),
    (UnsupportedError, UNSUPPORTED),
    (MismatchError, MISMATCH),
    (InvalidModelError, INVALID),
    (InputError, INVALID),
    (ShapeError, INVALID),
    (DTypeError, INVALID),
    (LaunchError, RESOURCE),
    (MemoryError, RESOURCE),
    (OSError, RESOURCE),
)


def run(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    as_json = "--json" in arguments
    try:
        result = cli.main(args=arguments, prog_name="dlcompiler", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else OK
    except click.exceptions.NoArgsIsHelpError as error:
        # neither a result nor a mistake worth a line: whoever types the bare name wants to know what there is
        click.echo(error.format_message(), err=True)
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has seen enough; nothing can be written there any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except VerifyError as error:
        return _internal(error, arguments, as_json)
    except (CompilerError, click.ClickException, OSError, MemoryError) as error:
        return _expected(error, as_json)
    except Exception as error:  # noqa: BLE001 - see the module's docstring
        if _is_out_of_memory(error):
            return _expected(MemoryError(str(error)), as_json)
        return _internal(error, arguments, as_json)


def exit_code(error: BaseException) -> int:
    """What the process exits with for this error."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), INTERNAL)


def _is_out_of_memory(error: Exception) -> bool:
    """torch says so by a class of its own on a GPU, and by a RuntimeError of the allocator's on a CPU."""
    torch = sys.modules.get("torch")
    on_device = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_device or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _expected(error: BaseException, as_json: bool) -> int:
    code = exit_code(error)
    more = f" ({error.ctx.command_path} --help says more)" if isinstance(error, click.UsageError) and error.ctx else ""
    _say(f"error: {one_line(error)}{more}")
    items = list(getattr(error, "items", ()))
    for item in items:
        click.echo(f"  {item}", err=True)
    if as_json:
        _json_error(error, code, items=items)
    return code


def one_line(error: BaseException) -> str:
    """What an error says, on one line but for the source line and caret of a parse error."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".rstrip(": ")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error)


def _internal(error: Exception, arguments: list[str], as_json: bool) -> int:
    path = _write_crash(error, arguments)
    where = f"the traceback is in {path}" if path else "the traceback could not be written to any folder"
    _say(f"internal error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; {where}; please report it")
    if logging.getLogger("dlcompiler").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    if as_json:
        _json_error(error, INTERNAL, traceback=path)
    return INTERNAL


def _write_crash(error: Exception, arguments: list[str]) -> str | None:
    """Write what a maintainer needs into the dump folder if one is given, else into the temporary folder; its path."""
    given = arguments[arguments.index("--dump") + 1 : arguments.index("--dump") + 2] if "--dump" in arguments else []
    text = "".join(
        [
            f"dlcompiler {__version__}, Python {platform.python_version()}, {platform.platform()}\n",
            f"arguments: {arguments}\n\n",
            *traceback.format_exception(error),
        ]
    )
    for folder in (*given, tempfile.gettempdir()):
        path = Path(folder) / f"dlcompiler-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            continue
        return str(path)
    return None


def _json_error(error: BaseException, code: int, **more: Any) -> None:
    """With --json, stdout holds one document also when it went wrong."""
    document = {"error": {"kind": type(error).__name__, "message": one_line(error), "exit_code": code, **more}}
    click.echo(json.dumps(document, indent=1))


def _say(text: str) -> None:
    click.echo(f"dlcompiler: {text}", err=True)
