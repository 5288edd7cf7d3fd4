"""Graphs, kernels and programs as text that people read and that parses back to an equal object.

`print_X` gives the text, `parse_X` reads it, `Xs_equal` says the first difference. Comments run from `#` to the end of the line;
white space only separates. A graph's history is printed as comments and not read back.
"""

from dlcompiler.ir.text.equal import graphs_equal, kernels_equal, programs_equal
from dlcompiler.ir.text.graph import graph_constants, parse_graph, print_graph, print_node
from dlcompiler.ir.text.kernel import parse_kernel, print_kernel
from dlcompiler.ir.text.program import parse_program, print_program

__all__ = [
    "graph_constants", "graphs_equal", "kernels_equal", "parse_graph", "parse_kernel", "parse_program", "print_graph",
    "print_kernel", "print_node", "print_program", "programs_equal",
]  # fmt: skip
