"""KV caches and response caches that ship with the framework."""

from __future__ import annotations

from collections.abc import Mapping

from pluribus import KVCache, ResponseCache, hookimpl


@hookimpl
def register_kv_caches() -> Mapping[str, type[KVCache]]:
    """Offer ``cache/kv=paged`` and ``cache/kv=contiguous``."""
    from pluribus_caches.kv.contiguous import ContiguousKVCache
    from pluribus_caches.kv.paged import PagedKVCache

    return {"contiguous": ContiguousKVCache, "paged": PagedKVCache}


@hookimpl
def register_response_caches() -> Mapping[str, type[ResponseCache]]:
    """Offer ``cache/response=lru`` and ``cache/response=none``."""
    from pluribus_caches.response.lru import LRUResponseCache
    from pluribus_caches.response.none import NoResponseCache

    return {"lru": LRUResponseCache, "none": NoResponseCache}
