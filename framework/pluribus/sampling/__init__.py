"""From logits to token ids, as pure functions of tensors.

A row's token is a function of its logits, its parameters, its seed and its position alone:
never of what shares its batch, nor of what the other rows ask for. Every function here works
on rows of [num_rows, num_ids] and none waits for the device, save ``cut`` and only there.
"""

from pluribus.sampling.adjust import Biases, History, Penalties, add_biases, penalize
from pluribus.sampling.choose import SamplingRows, cut, free, greedy, ranked
from pluribus.sampling.logprobs import Logprobs, logprobs

__all__ = [
    "Biases",
    "History",
    "Logprobs",
    "Penalties",
    "SamplingRows",
    "add_biases",
    "cut",
    "free",
    "greedy",
    "logprobs",
    "penalize",
    "ranked",
]
