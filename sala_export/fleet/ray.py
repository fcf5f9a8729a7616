"""A fleet on Ray Serve: `serve run sala_export.fleet.ray:app bundle=out.sala replicas=4 state_store=states`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message

from ..errors import RequestError
from ..extras import extras_named
from .options import FleetOptions
from .relay import Fleet, NoRoomError, ReplicaLostError, front_app
from .replica import Replica, open_replica
from .replica_metrics import merged_metrics

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
"""One replica for all requests with one session id, the next in the ring if that is full or dead."""
REPLICA_HEADER = b"x-sala-replica"
"""The name of the replica that answers. `/metrics` has it as a label."""
_REPLICAS = "replica"
_MOST_CONNECTIONS = 4096
_SAVE_SECONDS = 60
"""Time to save contexts when a replica ends, on top of that for its answers."""
_HEALTH_PERIOD_SECONDS = 5
_HEALTH_TIMEOUT_SECONDS = 30


def app(arguments: dict[str, Any]) -> Application:
    """Build the application of a fleet: fronts that take requests, and replicas that have the model.

    Args: arguments: `FleetOptions` by name.
    Raises: RequestError for arguments that are wrong, or if the cluster has no GPU and replicas need one;
        UnsupportedError without Ray.
    """
    with extras_named():
        from ray import serve

    options = FleetOptions.of(arguments)
    options.settings()  # a file of keys that cannot be read is told here, not by each replica
    _require_gpus(options)
    least, most = options.replicas
    size: dict[str, Any] = {"num_replicas": least}
    if most > least:
        size = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": options.max_sessions,
            }
        }
    replicas = serve.deployment(
        RayReplica,
        name=_REPLICAS,
        max_ongoing_requests=options.most_ongoing,
        max_queued_requests=options.max_waiting,
        ray_actor_options={"num_gpus": options.num_gpus, "num_cpus": options.num_cpus},
        graceful_shutdown_timeout_s=options.drain_seconds + _SAVE_SECONDS,
        health_check_period_s=_HEALTH_PERIOD_SECONDS,
        health_check_timeout_s=_HEALTH_TIMEOUT_SECONDS,
        request_router_config={"request_router_class": _ROUTER},
        **size,
    )
    front = serve.deployment(
        serve.ingress()(Front),
        name="front",
        num_replicas=options.fronts,
        max_ongoing_requests=_MOST_CONNECTIONS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.drain_seconds,
    )
    return front.bind(arguments, replicas.bind(arguments))


def _require_gpus(options: FleetOptions) -> None:
    import ray

    if options.num_gpus and ray.is_initialized() and not ray.cluster_resources().get("GPU"):
        raise RequestError(
            "this Ray cluster has no GPU, and each replica needs one: start Ray on machines with GPUs, or give "
            "num_gpus=0 to answer on the CPU"
        )


class RayReplica:
    """A replica as Ray Serve calls it."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it
        """Args: arguments: as of `app`. Raises: as `open_replica`."""
        from ray import serve

        self._replica: Replica = await open_replica(FleetOptions.of(arguments))
        self._name = serve.get_replica_context().replica_id.unique_id

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """As `Replica.answer`. A header of the answer tells the name of the replica."""
        async for message in self._replica.answer(scope, body):
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (REPLICA_HEADER, self._name.encode())]
                yield {**message, "headers": headers}
            else:
                yield message

    async def metrics(self) -> tuple[str, bytes]:
        """The name of this replica, and its counts."""
        return self._name, self._replica.metrics()

    async def check_health(self) -> None:
        """Ray asks this every few seconds, and replaces a replica that raises."""
        self._replica.check_health()

    async def __del__(self) -> None:
        """Ray calls this when the replica is told to stop, and its answers have ended."""
        await self._replica.close()


class Front:
    """The front as Ray Serve calls it."""

    def __init__(self, arguments: dict[str, Any], replicas: DeploymentHandle[RayReplica]) -> None:
        self._options = FleetOptions.of(arguments)
        self._replicas = replicas

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name is Ray's
        fleet = Fleet(ask=self._ask, metrics=self._metrics, is_well=self._is_well)
        return front_app(fleet, self._options.settings(), tries=self._options.tries)

    async def _ask(self, scope: dict[str, Any], body: bytes, key: str) -> AsyncIterator[Message]:
        """As `Ask`."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        answer = self._replicas.options(stream=True, session_id=key).answer.remote(scope, body)
        try:
            async for message in answer:
                yield message
        except RayActorError as error:
            raise ReplicaLostError(str(error)) from None
        except BackPressureError:
            raise NoRoomError from None
        except BaseException:
            answer.cancel()
            raise

    async def _metrics(self) -> bytes:
        from ray.exceptions import RayActorError

        found = await self._replicas.broadcast("metrics").results_async(return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, RayActorError):
                raise each
        return merged_metrics(dict(each for each in found if not isinstance(each, RayActorError)))

    async def _is_well(self) -> bool:
        """Ray's controller knows: a replica is asked for its health beside its requests, however many there are."""
        from ray import serve

        status = await asyncio.to_thread(serve.status)
        application = status.applications[serve.get_replica_context().app_name]
        return "RUNNING" in application.deployments[_REPLICAS].replica_states
