"""What makes a kernel's file a program: `python kernel.py` runs it on small random inputs and says what came out."""

from __future__ import annotations

from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.kernel import Buffer, Kernel

EXAMPLE_SIZE = 64  # for sizes that are not known
STEP = "step"  # the argument that says how often a kernel that is started several times in a row has been started before


def main_section(name: str, kernel: Kernel, grid: Dim, constants: dict[str, int], warps: int, repeats: Dim | None = None) -> str:
    """The text after a kernel's function. Without a GPU it needs TRITON_INTERPRET=1, and says so."""
    sizes = "".join(f"    {s} = {EXAMPLE_SIZE}\n" for s in kernel.size_symbols)
    buffers = "".join(f"    {b.name} = {_tensor(b)}\n" for b in kernel.buffers)
    step = [STEP] if repeats is not None else []
    arguments = ", ".join([*(b.name for b in kernel.buffers), *kernel.size_symbols, *step])
    start = f"{name}[({_c_text(grid)},)]({arguments}{''.join(f', {k}={v}' for k, v in constants.items())}, num_warps={warps})"
    if repeats is not None:
        start = f"for {STEP} in range({_c_text(repeats)}):\n            {start}"
    outputs = "".join(
        f'    print("{b.name}", list({b.name}.shape), "mean", {b.name}.double().mean().item(), '
        f'"NaN", int({b.name}.double().isnan().sum()))\n'
        for b in kernel.buffers
        if b.role == "out"
    )
    return f"""

if __name__ == "__main__":
    # on small random inputs: `python FILE` on a machine with a GPU, `TRITON_INTERPRET=1 python FILE` on any other
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
{sizes}{buffers}
    def run():
        {start}

    run()
{outputs}    if device == "cuda":
        print("milliseconds", triton.testing.do_bench(run))
"""


def _c_text(dim: Dim) -> str:
    return index_text(dim, {}).replace("_floor_div", "(lambda a, b: a // b)").replace("_remainder", "(lambda a, b: a % b)")


def _tensor(buffer: Buffer) -> str:
    """Text that makes memory for a buffer: numbers of a normal distribution, or small whole ones."""
    reach = " + ".join(["1", *(f"({_c_text(n)} - 1) * ({_c_text(s)})" for n, s in zip(buffer.shape, buffer.strides))])
    if all(isinstance(d, int) for d in (*buffer.shape, *buffer.strides)):
        reach = str(1 + sum((n - 1) * s for n, s in zip(buffer.shape, buffer.strides)))
    dtype = {"f": "float", "b": "bfloat"}.get(buffer.dtype.name[0], "uint" if buffer.dtype.name[0] == "u" else "int")
    dtype = "bool" if buffer.dtype.kind == "bool" else "uint8" if buffer.dtype.is_narrow else f"{dtype}{buffer.dtype.bits}"
    if buffer.role == "out":
        return f"torch.zeros({reach}, dtype=torch.{dtype}, device=device)"
    if buffer.dtype.is_float:
        return f"torch.randn({reach}, device=device).to(torch.{dtype})"
    return f"torch.randint(0, 2, ({reach},), device=device).to(torch.{dtype})"
