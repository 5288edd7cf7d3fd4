"""`python -m dlcompiler`."""

from dlcompiler.cli import main

main()
