"""What an OPT takes, counted from its architecture: what ``decoder`` will allocate."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus import ModelSpec, Share
from pluribus.units import item_size
from pluribus_opt.config import POSITION_OFFSET, OPTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OPTBlueprint:
    """See pluribus.Blueprint.

    Attributes:
        name: what logs call the model.
        architecture: of the decoder.
        num_token_ids: the tokenizer's; the vocabulary where it is not known.
        is_random: whether the weights are made up rather than read.
        weights: what matrices of layers are kept in; None for the dtype of all else.
    """

    name: str
    architecture: OPTConfig
    num_token_ids: int
    is_random: bool
    weights: str | None = None

    @property
    def spec(self) -> ModelSpec:
        """What the rest of the system must know."""
        architecture = self.architecture
        return ModelSpec(
            name=self.name,
            num_layers=architecture.num_hidden_layers,
            hidden_size=architecture.hidden_size,
            num_heads=architecture.num_attention_heads,
            head_dim=architecture.head_dim,
            vocab_size=architecture.vocab_size,
            num_token_ids=self.num_token_ids,
            max_length=architecture.max_position_embeddings,
            eos_token_ids=architecture.eos_token_ids,
            pad_token_id=architecture.pad_token_id,
            dtype=architecture.dtype,
            weights=self.weights,
            num_parameters=architecture.num_parameters,
            num_layer_parameters=architecture.num_layer_parameters,
            num_head_parameters=architecture.num_head_parameters,
            notes=("random weights: model.checkpoint=random",) if self.is_random else (),
        )

    def weight_bytes(self, share: Share, dtype: str, device_type: str) -> int:
        """Return the bytes of a rank's weights, exactly."""
        num_weights = self._num_weights(share)
        has_one_table = share.is_first and share.is_last and self.architecture.tie_word_embeddings
        if device_type == "cpu" and dtype == "float32" and has_one_table:
            # Products want it in another order than looking rows up does; see OPTDecoder.pack.
            num_weights += self._table_weights(share)
        if self.weights is None:
            return num_weights * item_size(dtype)
        return num_weights * item_size(dtype) - self._saved_bytes(share, dtype, device_type)

    def _saved_bytes(self, share: Share, dtype: str, device_type: str) -> int:
        """Return what eight-bit weights save a rank; see ``OPTDecoder``."""
        matrices = self._layer_matrices(share)
        num_numbers = sum(rows * columns for rows, columns in matrices)
        scales = 4 * sum(rows for rows, _ in matrices)
        saved = len(share.layers) * (num_numbers * (item_size(dtype) - 1) - scales)
        if device_type == "cuda" and share.layers:
            # There is one place where a matrix is made plain for many rows.
            saved -= max(rows * columns for rows, columns in matrices) * item_size(dtype)
        return saved

    def _num_weights(self, share: Share) -> int:
        num_weights = len(share.layers) * self._layer_weights(share)
        if share.is_first:
            num_weights += self._embedding_weights(share)
        if share.is_last:
            num_weights += self._head_weights(share)
        return num_weights

    def stored_bytes(self, share: Share) -> int:
        """Return how much of the checkpoint a rank reads."""
        if self.is_random:
            return 0
        return self._num_weights(share) * item_size(self.architecture.dtype)

    def activation_bytes(self, share: Share, num_tokens: int, dtype: str) -> int:
        """Return the most that is alive at once in a step of so many tokens.

        That is in a layer, beside its input and what its norm made of that: queries, keys and
        values, the queries scaled, and what they attended to, in pieces and joined; or the wide
        layer before and after its activation.
        """
        hidden_size = self.architecture.hidden_size
        attention = 6 * self._width(share)
        feed_forward = 2 * _part(share, self.architecture.ffn_dim)
        numbers = 2 * hidden_size + max(attention, feed_forward, hidden_size)
        return num_tokens * numbers * item_size(dtype)

    def _width(self, share: Share) -> int:
        """Return the width of the rank's heads together."""
        return _part(share, self.architecture.num_attention_heads) * self.architecture.head_dim

    def _layer_weights(self, share: Share) -> int:
        # A bias has a number for each row, also where the rows are cut: it is added at their end.
        num_weights = sum(
            rows * (columns + self.architecture.enable_bias)
            for rows, columns in self._layer_matrices(share)
        )
        return num_weights + 2 * self._norm_weights()

    def _layer_matrices(self, share: Share) -> list[tuple[int, int]]:
        """Return the rows and columns of each linear of a layer."""
        hidden_size = self.architecture.hidden_size
        width, ffn = self._width(share), _part(share, self.architecture.ffn_dim)
        return [
            (3 * width, hidden_size),
            (hidden_size, width),
            (ffn, hidden_size),
            (hidden_size, ffn),
        ]

    def _embedding_weights(self, share: Share) -> int:
        config = self.architecture
        positions = (config.max_position_embeddings + POSITION_OFFSET) * config.hidden_size
        return self._table_weights(share) + positions + self._projection_weights()

    def _head_weights(self, share: Share) -> int:
        config = self.architecture
        has_table_already = share.is_first and config.tie_word_embeddings
        table = 0 if has_table_already else self._table_weights(share)
        norm = self._norm_weights() if config.has_final_layer_norm else 0
        return table + norm + self._projection_weights()

    def _table_weights(self, share: Share) -> int:
        """Every rank has equally many rows, the last ones' tails being empty."""
        config = self.architecture
        return -(-config.vocab_size // share.tensor_size) * config.word_embed_proj_dim

    def _projection_weights(self) -> int:
        config = self.architecture
        return config.word_embed_proj_dim * config.hidden_size * config.has_projections

    def _norm_weights(self) -> int:
        return 2 * self.architecture.hidden_size * self.architecture.layer_norm_elementwise_affine


def _part(share: Share, total: int) -> int:
    start, end = share.span(total)
    return end - start
