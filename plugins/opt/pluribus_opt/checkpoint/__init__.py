"""OPT checkpoints: find one, read what describes it, then stream its tensors.

``resolve`` finds a checkpoint by bundled name, path or Hugging Face repo id and imports no torch;
``Source.open`` maps the weights; ``Checkpoint.read_into`` copies what one rank needs.
"""

from __future__ import annotations

from pluribus_opt.checkpoint.reader import Checkpoint, TensorInfo
from pluribus_opt.checkpoint.source import Source, fetch_tokenizer, is_local, resolve

__all__ = ["Checkpoint", "Source", "TensorInfo", "fetch_tokenizer", "is_local", "resolve"]
