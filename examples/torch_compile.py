"""dlcompiler as a backend of torch.compile: one more argument, then ask what was done."""

from __future__ import annotations

import models
import torch

import dlcompiler

model, inputs = models.encoder()
compiled = torch.compile(model, backend="dlcompiler")

with torch.no_grad():
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)
    # a second batch size: compiled once more, now with the batch as a symbol, and never again
    for batch in (2, 3, 5):
        tokens = torch.randint(0, 1000, (batch, 128))
        torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-4, atol=1e-4)

for report in dlcompiler.reports():
    print(report, end="\n\n")

# Options go through torch; a misspelt one is an error that says what was meant.
try:
    torch.compile(model, backend="dlcompiler", options={"strct": True})(*inputs)
except torch._dynamo.exc.BackendCompilerFailed as error:
    print(error.inner_exception)
