"""Environments on a Ray cluster, behind the same two calls as the local pool's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from envrl.envs.base import TextEnv
from envrl.envs.pool import EnvPool, Pool
from envrl.envs.slots import SlotResult
from envrl.errors import ConfigFault, EnvFault, EnvrlError
from envrl.types import Game

_GRACE_S = 60.0
"""What an actor may take beyond its environments' time-out, before it counts as lost."""


def require_ray() -> Any:
    """The library, which is imported only where it is used.

    Raises:
        ConfigFault: It is not installed.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise ConfigFault(
            "rollout.pool is ray, but Ray is not installed; install this package's extra `ray`, or use "
            "rollout.pool=local"
        ) from error
    return ray


class RayPool(Pool):
    """As many slots as a local pool (:class:`envrl.envs.pool.EnvPool`), held by actors over a cluster.

    Each actor holds a local pool with its share of the slots, so faults and time-outs are what they are
    there; the environments of an actor take turns, the actors work side by side. An actor or machine that
    dies ends the episodes that it held, each with a fault that says so, and the actor is made anew on what
    is left of the cluster.

    Args:
        make_env: Builds one environment; it is sent to the actors, whose machines need the same package and
            the same files of games.
        size: Number of slots, >= 1.
        timeout_s: As the local pool's; an actor that gives no answer long after it counts as lost.
        actors: Actors to spread the slots over; ``None`` takes one for each CPU of the cluster.

    Raises:
        ConfigFault: Ray is not installed or finds no cluster, or a number is outside its range.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        size: int,
        timeout_s: float | None = None,
        actors: int | None = None,
    ) -> None:
        super().__init__(size)
        if actors is not None and actors < 1:
            raise ConfigFault(f"The pool's actors are {actors}: give a number >= 1, or null for one a CPU.")
        self._ray = require_ray()
        self._joined = _join_cluster(self._ray)
        self._make_env = make_env
        self._timeout_s = timeout_s
        count = min(size, actors or max(1, int(self._ray.cluster_resources().get("CPU", 1))))
        self._share = -(-size // count)
        self._actors = [self._started(number) for number in range(-(-size // self._share))]
        self._lost: dict[int, str] = {}

    def reset(self, slot: int, game: Game, seed: int) -> SlotResult:
        """See :meth:`envrl.envs.pool.EnvPool.reset`.

        Where the actor has died since it was last asked, the episode starts in the new one.
        """
        self._check([slot])
        for last in (False, True):
            number, place = divmod(slot, self._share)
            waiting = self._actors[number].reset.remote(place, game, seed)
            self._lost.pop(slot, None)
            answer: SlotResult | str = self._answer(number, waiting)
            if not isinstance(answer, str):
                return answer
            self._replace(number, answer)
            if last:
                break
        return self._fault(slot)

    def step(self, slots: Sequence[int], actions: Sequence[str]) -> list[SlotResult]:
        """See :meth:`envrl.envs.pool.EnvPool.step`."""
        self._check(slots)
        shares: dict[int, list[tuple[int, str]]] = {}
        for slot, action in zip(slots, actions, strict=True):
            if slot not in self._lost:
                shares.setdefault(slot // self._share, []).append((slot, action))
        waiting = {
            number: self._actors[number].step.remote(
                [slot % self._share for slot, _ in share], [action for _, action in share]
            )
            for number, share in shares.items()
        }
        found: dict[int, SlotResult] = {}
        for number, call in waiting.items():
            answer = self._answer(number, call)
            if isinstance(answer, str):
                self._replace(number, answer)
            else:
                found |= {slot: one for (slot, _), one in zip(shares[number], answer, strict=True)}
        return [found[slot] if slot in found else self._fault(slot) for slot in slots]

    def close(self) -> None:
        """Ends the actors; safe to call twice."""
        if not self._closed:
            self._closed = True
            for actor in self._actors:
                self._ray.kill(actor)
            if self._joined:
                self._ray.shutdown()

    def _started(self, number: int) -> Any:
        """An actor with its share of the slots, on the machine whose turn it is among those that live."""
        first = number * self._share
        share = min(self._share, self._size - first)
        remote = self._ray.remote(EnvPool)
        # Hardly anything is reserved: where machines have gone, actors must still find a place. Of actors
        # that reserve nothing at all, Ray does not heed the wished-for machine.
        homes = self._homes()
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            homes[number % len(homes)], soft=True
        )
        options = remote.options(num_cpus=0.001, scheduling_strategy=strategy)
        return options.remote(self._make_env, share, self._timeout_s, first=first)

    def _homes(self) -> list[str]:
        """Machines that live, each as often as it has CPUs, taking turns."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        cpus = {node["NodeID"]: max(1, int(node["Resources"].get("CPU", 1))) for node in alive}
        return [home for turn in range(max(cpus.values())) for home, count in cpus.items() if count > turn]

    def _answer(self, number: int, call: Any) -> Any:
        """What an actor answers; a text that says why, if it is lost."""
        limit = None if self._timeout_s is None else self._timeout_s + _GRACE_S
        try:
            return self._ray.get(call, timeout=limit)
        except self._ray.exceptions.GetTimeoutError:
            self._ray.kill(self._actors[number])
            return f"it gave no answer within {limit} s"
        except self._ray.exceptions.RayTaskError as error:
            raise EnvrlError(f"a Ray actor with environments failed: {_first_line(error.cause)}") from error
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.RaySystemError) as error:
            return _first_line(error)

    def _replace(self, number: int, reason: str) -> None:
        """Marks the episodes of a lost actor and makes it anew."""
        first = number * self._share
        self._lost |= dict.fromkeys(range(first, min(first + self._share, self._size)), reason)
        self._actors[number] = self._started(number)

    def _fault(self, slot: int) -> SlotResult:
        text = f"Environment {slot} was lost with the Ray actor that held it ({self._lost[slot]})."
        return SlotResult(fault=EnvFault(text))


def _join_cluster(ray: Any) -> bool:
    """Joins the cluster of this machine or of ``RAY_ADDRESS``; whether it was not joined before.

    Raises:
        ConfigFault: There is none.
    """
    if ray.is_initialized():
        return False
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:
        raise ConfigFault(
            f"rollout.pool is ray, but no Ray cluster is found ({_first_line(error)}); start one by `ray "
            "start --head`, name it in RAY_ADDRESS, or use rollout.pool=local"
        ) from error
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
