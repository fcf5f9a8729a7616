"""The model of one process of a fleet, with all that answers requests on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from ..loading import load
from ..runtime.model import Model
from ..runtime.state_store import StateStore
from ..serving.service import Service, with_cache_limit
from .options import FleetOptions


@asynccontextmanager
async def open_service(options: FleetOptions) -> AsyncIterator[Service]:
    """Load the model, and answer requests on it until the block is left. Contexts are saved then.

    Raises: as `sala_export.load`, `StateStore` and `Service.open`.
    """
    settings = options.settings()
    store = None
    if options.state_store is not None:
        store = await asyncio.to_thread(StateStore, options.state_store, max_bytes=options.state_store_bytes)
    model = await asyncio.to_thread(_loaded, options)
    if settings.max_cache_bytes is None and (most := with_cache_limit(settings, model).max_cache_bytes) is not None:
        # One host may have all replicas.
        settings = replace(settings, max_cache_bytes=most // options.replicas[1])
    async with Service.open(model, settings, store=store) as service:
        yield service


def _loaded(options: FleetOptions) -> Model:
    return load(
        options.bundle,
        runtime=options.runtime,
        threads=0 if options.num_gpus else max(1, int(options.num_cpus)),
        cpu_math=options.cpu_math,
        weights=options.weights,
    )
