"""dlcompiler.compile: an LSTM that torch.compile does not trace, saved to one file and loaded to run on NumPy arrays."""

from __future__ import annotations

import tempfile
from pathlib import Path

import models
import numpy as np
import torch

import dlcompiler

model, inputs = models.classifier()
batch = torch.export.Dim("batch", min=1, max=512)
compiled = dlcompiler.compile(model, inputs, dynamic_shapes=({0: batch},))

with torch.no_grad():
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
    other = torch.randint(0, 1000, (3, 64))
    torch.testing.assert_close(compiled(other), model(other), rtol=1e-4, atol=1e-5)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "classifier.dlc"
    compiled.save(path)
    print(f"saved {path.stat().st_size} bytes")
    loaded = dlcompiler.load(path)
    tokens = inputs[0].numpy()
    probabilities = loaded(tokens)
    print(f"{loaded!r} gives {type(probabilities).__name__}{list(probabilities.shape)}")
    np.testing.assert_allclose(probabilities, compiled(tokens), rtol=1e-5, atol=1e-6)

try:
    compiled(torch.zeros(2, 64))
except dlcompiler.ir.errors.InputError as error:
    print(f"a wrong input: {error}")
