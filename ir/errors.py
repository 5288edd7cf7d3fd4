"""Every error this project raises on purpose.

An error says what is wrong, where in the user's model, and what to do. User errors and our own bugs are different classes:
`VerifyError` is always our bug. `UnsupportedError` is the only one that a fallback may catch.
"""

from __future__ import annotations


class CompilerError(Exception):
    """Base class. `location` is where in the user's model, `hint` what to do; both are appended to the message."""

    def __init__(self, message: str, *, location: str | None = None, hint: str | None = None) -> None:
        self.message, self.location, self.hint = message, location, hint
        where = f" (at {location})" if location else ""
        what_to_do = f"; {hint}" if hint else ""
        super().__init__(f"{message}{where}{what_to_do}")


class ShapeError(CompilerError, ValueError):
    """Shapes that do not fit each other or the op."""


class DTypeError(CompilerError, TypeError):
    """An element type that the op does not take."""


class UnsupportedError(CompilerError, NotImplementedError):
    """A valid model asks for something this compiler cannot do (yet). `items` lists every such thing found."""

    def __init__(self, message: str, *, items: tuple[str, ...] = (), **where: str | None) -> None:
        self.items = items
        super().__init__(message, **where)


class InvalidModelError(CompilerError, ValueError):
    """A model file or graph that breaks its own format's rules."""


SHOWN_BEFORE, SHOWN_AFTER = 100, 60  # characters of a line that is shown around the place of a mistake


class ParseError(InvalidModelError):
    """Text that is not the IR's text; `line` and `column` count from 1."""

    def __init__(self, message: str, *, line: int, column: int, source: str = "") -> None:
        self.line, self.column = line, column
        # of a long line the part around the column
        start = max(0, column - 1 - SHOWN_BEFORE)
        part = source[start : start + SHOWN_BEFORE + SHOWN_AFTER]
        shown = f"\n  {part}\n  {' ' * (column - 1 - start)}^" if source else ""
        super().__init__(f"line {line}, column {column}: {message}{shown}")


class InputError(CompilerError, ValueError):
    """A call's inputs do not match the compiled program: a wrong name, number, shape or dtype."""


class CheckError(InputError, RuntimeError):
    """Data for which what a model asserts of it does not hold."""


class OptionError(CompilerError, ValueError):
    """An unknown option, pass, target or mode."""


class VerifyError(CompilerError):
    """An IR that breaks its own rules: a bug in this compiler."""


class LaunchError(CompilerError, RuntimeError):
    """A program that could not be run on its device."""


class MismatchError(CompilerError):
    """Compiled code and the judge of its results disagree."""
