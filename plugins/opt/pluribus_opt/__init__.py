"""Meta's OPT language models."""

from __future__ import annotations

from collections.abc import Mapping

from pluribus import Model, hookimpl


@hookimpl
def register_models() -> Mapping[str, type[Model]]:
    from pluribus_opt.model import OPTModel

    return {"opt": OPTModel}
