"""torch's way in: FX graphs of ATen operators, and whole models through torch.export.

import_fx        an ATen-level FX graph, as AOTAutograd or torch.export hands over --> Graph
capture          a module, function or ExportedProgram --> Graph, and how its calls map to the Graph's inputs and outputs
decompositions   what torch is to break up before
compute_normalized_again      what a backward pass need not be given
number_draws     gives draws of random numbers their positions
own_arguments    what AOTAutograd is to say of operators that write to their arguments
leave_out_views  results that only a call can place in an input's memory, as numbers
share_memory     results that are views of the same memory, as one result
keep_recurrent_layers_whole   what AOTAutograd is not to break up
"""

from __future__ import annotations

from dlcompiler.frontends.fx_capture import Captured, capture
from dlcompiler.frontends.fx_control import own_arguments
from dlcompiler.frontends.fx_decompositions import decompositions
from dlcompiler.frontends.fx_import import import_fx
from dlcompiler.frontends.fx_memory import View, leave_out_views, share_memory
from dlcompiler.frontends.fx_normalized import compute_normalized_again
from dlcompiler.frontends.fx_random import number_draws
from dlcompiler.frontends.fx_results import result_kinds
from dlcompiler.frontends.fx_whole import keep_recurrent_layers_whole

__all__ = [
    "Captured", "View", "capture", "compute_normalized_again", "decompositions", "import_fx", "keep_recurrent_layers_whole",
    "leave_out_views", "number_draws", "own_arguments", "result_kinds", "share_memory",
]  # fmt: skip
