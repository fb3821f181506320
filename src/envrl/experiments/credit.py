"""From the configured algorithm to the advantages of an iteration's turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from envrl.losses.advantages import grpo_advantages, reinforce_pp_advantages, rloo_advantages
from envrl.losses.gigpo import anchor_groups, gigpo_advantages
from envrl.losses.returns import discounted_returns, generalised_advantages
from envrl.rollout.credit import AdvantageFn, Credit, PerTurn
from envrl.rollout.rows import TokenRow
from envrl.training.settings import Algorithm, LossSettings

Rows = Sequence[TokenRow]


def advantage_function(loss: LossSettings) -> AdvantageFn:
    """Computes advantages as the settings say."""
    algorithm = _ALGORITHMS[loss.algorithm]
    return lambda rows, values: algorithm(rows, values, loss)


def _grpo(rows: Rows, values: PerTurn | None, loss: LossSettings) -> Credit:
    return Credit(_of_each_turn(rows, _grpo_rows(rows, loss)))


def _rloo(rows: Rows, values: PerTurn | None, loss: LossSettings) -> Credit:
    scores, groups, trajectories = _columns(rows)
    found = rloo_advantages(scores, groups, trajectories, normalisation=loss.normalisation)
    return Credit(_of_each_turn(rows, found))


def _reinforce_pp(rows: Rows, values: PerTurn | None, loss: LossSettings) -> Credit:
    scores, _, trajectories = _columns(rows)
    found = reinforce_pp_advantages(
        scores, trajectories, normalisation=loss.normalisation, scale_by_std=loss.scale_by_std
    )
    return Credit(_of_each_turn(rows, found), metrics={"rollout/score_mean": float(scores.mean())})


def _gigpo(rows: Rows, values: PerTurn | None, loss: LossSettings) -> Credit:
    """Both levels; a turn's own penalty is taken off its own step score, not off those before it."""
    settings, turns = loss.gigpo, [(row, turn) for row in rows for turn in row.turns]
    returns = discounted_returns(
        _wide([turn.reward for _, turn in turns]),
        torch.tensor([row.trajectory for row, _ in turns]),
        gamma=settings.gamma,
    )
    step_groups = torch.tensor(
        anchor_groups(
            [turn.anchor for _, turn in turns],
            [row.group for row, _ in turns],
            similarity=settings.similarity,
        )
    )
    of_turn = torch.tensor([number for number, row in enumerate(rows) for _ in row.turns])
    found = gigpo_advantages(
        _grpo_rows(rows, loss)[of_turn],
        returns - _wide([turn.penalty for _, turn in turns]),
        step_groups,
        omega=settings.omega,
        scale_by_std=loss.scale_by_std,
    )
    sizes = torch.bincount(step_groups).double()
    metrics = {
        "rollout/step_group_size": float(sizes.mean()),
        "rollout/lone_step_share": float((sizes == 1).double().sum() / len(turns)),
    }
    return Credit(_per_turn(rows, found), metrics=metrics)


def _ppo(rows: Rows, values: PerTurn | None, loss: LossSettings) -> Credit:
    """Advantages over the critic, centred (and scaled) over all turns of the iteration."""
    assert values is not None
    turns = [(row, turn) for row in rows for turn in row.turns]
    said = _wide([v for of_row in values for v in of_row])
    found = generalised_advantages(
        _wide([turn.reward - turn.penalty for _, turn in turns]),
        said,
        torch.tensor([row.trajectory for row, _ in turns]),
        gamma=loss.ppo.gamma,
        lam=loss.ppo.gae_lambda,
    )
    whitened = reinforce_pp_advantages(
        found.advantages, torch.arange(len(turns)), normalisation="rows", scale_by_std=loss.scale_by_std
    )
    spread = float(found.returns.var(correction=0))
    unexplained = float((found.returns - said).var(correction=0))
    metrics = {
        "rollout/value_mean": float(said.mean()),
        "rollout/explained_variance": 1 - unexplained / spread if spread > 0 else 0.0,
    }
    return Credit(_per_turn(rows, whitened), _per_turn(rows, found.returns), metrics)


_ALGORITHMS: dict[Algorithm, Callable[[Rows, PerTurn | None, LossSettings], Credit]] = {
    "grpo": _grpo,
    "gigpo": _gigpo,
    "rloo": _rloo,
    "reinforce++": _reinforce_pp,
    "ppo": _ppo,
}


def _grpo_rows(rows: Rows, loss: LossSettings) -> Tensor:
    return grpo_advantages(*_columns(rows), normalisation=loss.normalisation, scale_by_std=loss.scale_by_std)


def _columns(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Score, group and trajectory of every row."""
    return (
        _wide([r.score for r in rows]),
        torch.tensor([r.group for r in rows]),
        torch.tensor([r.trajectory for r in rows]),
    )


def _wide(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _of_each_turn(rows: Rows, found: Tensor) -> PerTurn:
    """Every turn of a row gets the row's number."""
    return tuple((n,) * len(row.turns) for row, n in zip(rows, found.tolist(), strict=True))


def _per_turn(rows: Rows, found: Tensor) -> PerTurn:
    """Numbers of all turns in one line, dealt out to their rows."""
    line = iter(found.tolist())
    return tuple(tuple(islice(line, len(row.turns))) for row in rows)
