"""Graphs, kernels and programs as text that people read and that parses back to an equal object.

`print_X` gives the text, `parse_X` reads it, `X_equal` says the first difference. Comments run from `#` to the end of the line;
white space only separates. A graph's history is printed as comments and not read back.
"""

from dlcompiler.ir.text.graph import graph_constants, parse_graph, print_graph, print_node

__all__ = ["graph_constants", "parse_graph", "print_graph", "print_node"]
