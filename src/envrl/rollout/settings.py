"""Settings of rollouts and of the rows made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from envrl.errors import ConfigFault


@dataclass(frozen=True)
class RolloutSettings:
    """How much is collected in an iteration, and how it is laid out."""

    layout: Literal["steps", "transcript"] = "transcript"
    """steps: one row per environment step with a windowed history (the published protocol);
    transcript: one row per episode, a conversation that grows."""
    games: int = 8
    """Games (groups) of an iteration."""
    episodes_per_game: int = 8
    """Episodes of each game: the size of a group."""
    format_penalty: float = 0.1
    """Subtracted from the score of a step whose answer did not follow the format."""
    win_reward: float = 10.0
    """Score of a won episode; environments answer 1 for a win, this scales it."""
    refill_rounds: int = 0
    """Times that groups whose episodes all have the same return are replaced by other, newly played games
    (DAPO's dynamic sampling); what is flat after the last round stays. 0 keeps every group."""
    mask_overlong: bool = False
    """Leave answers that were cut off at sampling.max_new_tokens out of the policy's loss (DAPO's overlong
    filtering); they still count in scores."""
    overlong_buffer: int = 0
    """Last tokens below the limit of an answer, over which the score falls step by step (DAPO's soft
    overlong punishment); 0 lets it be."""
    overlong_penalty: float = 1.0
    """Subtracted from the score of a step whose answer reaches the limit, in proportion within the buffer."""
    overlong_limit: int | None = None
    """The limit, in tokens of an answer; null is sampling.max_new_tokens."""
    at_once: int | None = None
    """Most episodes played at the same time, which bounds the memory of the sampler's cache; one that ends
    makes room for the next. null plays all episodes of an iteration at once, and 128 of a panel."""
    env_timeout_s: float | None = None
    """Seconds after which a step of an environment counts as hung; None waits forever."""
    pool: Literal["local", "ray"] = "local"
    """Where environments are. local: in this process; ray: in actors spread over a Ray cluster
    (devices.md)."""

    def __post_init__(self) -> None:
        for name in ("games", "episodes_per_game"):
            if getattr(self, name) < 1:
                raise ConfigFault(f"rollout.{name} is {getattr(self, name)}; use at least 1")
        if self.at_once is not None and self.at_once < 1:
            raise ConfigFault(
                f"rollout.at_once is {self.at_once}; use at least 1, or null to play all episodes at once"
            )
        if self.overlong_buffer < 0:
            raise ConfigFault(
                f"rollout.overlong_buffer is {self.overlong_buffer}; use 0 (off) or more tokens"
            )
        if self.overlong_penalty < 0:
            raise ConfigFault(f"rollout.overlong_penalty is {self.overlong_penalty}; use 0 or more")
        if self.overlong_limit is not None and self.overlong_limit < max(1, self.overlong_buffer):
            raise ConfigFault(
                f"rollout.overlong_buffer is {self.overlong_buffer}, longer than the limit of "
                f"{self.overlong_limit} tokens an answer; use a shorter buffer"
            )
        if self.refill_rounds < 0:
            raise ConfigFault(f"rollout.refill_rounds is {self.refill_rounds}; use 0 (never) or more")
        if self.format_penalty < 0:
            raise ConfigFault(f"rollout.format_penalty is {self.format_penalty}; use 0 or more")
        if self.env_timeout_s is not None and self.env_timeout_s <= 0:
            raise ConfigFault(
                f"rollout.env_timeout_s is {self.env_timeout_s}; use a positive number of seconds or null"
            )


Control = Literal["none", "shuffle_episode", "drop_action", "replace_action", "matched_tokens"]
"""What is altered in an auxiliary objective's rows, see :attr:`AuxiliaryRows.control`."""


@dataclass(frozen=True)
class AuxiliaryRows:
    """Which transitions the auxiliary objectives see, and in which rows."""

    sp_rows: Literal["policy", "questions"] = "policy"
    """policy: read state prediction off the observation tokens of the policy rows (transcript layout
    only, no extra pass); questions: one row per transition."""
    max_transitions: int | None = None
    """Most transitions of an iteration asked in question rows, of each kind; None asks about all."""
    skip_terminal: bool = False
    """Leave out an episode's last transition."""
    skip_noops: bool = False
    """Leave out transitions after which the policy sees what it saw before, or `Nothing happens.`."""
    shuffle_targets: bool = False
    """Control: every question gets the answer of another transition of the batch."""
    control: Control = "none"
    """Controls. shuffle_episode: answers of other transitions of the same episode; drop_action: SP without
    the action; replace_action: SP with another admissible action; matched_tokens: as many target tokens,
    copied from what the question shows, so that there is nothing to learn about the environment."""
    data: Literal["own", "random"] = "own"
    """Episodes that questions are about: the policy's own, or as many of random admissible actions in the
    same games (sp_rows=questions only)."""

    @property
    def altered(self) -> bool:
        """Rows of the auxiliary objectives are not what the policy lived through."""
        return self.shuffle_targets or self.control != "none"

    def __post_init__(self) -> None:
        if self.shuffle_targets and self.control != "none":
            raise ConfigFault(
                f"auxiliary.shuffle_targets is set beside auxiliary.control={self.control}, which alters the "
                "same targets; choose one of them"
            )
        if self.data == "random" and self.sp_rows == "policy":
            raise ConfigFault(
                "auxiliary.data=random asks about episodes that are no policy rows; set "
                "auxiliary.sp_rows=questions"
            )
        if self.max_transitions is not None and self.max_transitions < 1:
            raise ConfigFault(
                f"auxiliary.max_transitions is {self.max_transitions}; use at least 1, null for all, or "
                "weight 0 to switch the objective off"
            )


@dataclass(frozen=True)
class BatchSettings:
    """How an iteration's rows become updates."""

    updates: int = 1
    """Optimiser updates on the rows of one iteration; episodes are split over them."""
    micro_batches: int = 4
    """Forward/backward passes an update is accumulated from; changes memory and speed, not the result."""
    epochs: int = 1
    """Passes over an iteration's rows."""
    alternate: int = 0
    """0: every update has all terms. n: updates have the policy's terms alone, and after every n of them
    comes an extra update on the same rows (TAPO: 4)."""
    extra: Literal["auxiliary", "policy"] = "auxiliary"
    """Terms of that extra update; policy is the control with as many updates and no auxiliary objective."""
    skip_flat: bool = True
    """Leave rows whose advantages are all 0 (groups whose episodes did equally well) out of updates where no
    term needs them: entropy and KL coefficient 0, no ppo, no weighted objective that reads policy rows. The
    same gradient from fewer tokens. false computes and measures every row."""

    def __post_init__(self) -> None:
        for name in ("updates", "micro_batches", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigFault(f"batch.{name} is {getattr(self, name)}; use at least 1")
        if self.alternate < 0:
            raise ConfigFault(
                f"batch.alternate is {self.alternate}; use 0 (all terms in every update) or the number of "
                "policy updates before an extra one, e.g. 4"
            )
        if self.extra != "auxiliary" and self.alternate == 0:
            raise ConfigFault(
                f"batch.extra is {self.extra}, but there are no extra updates; set batch.alternate=4"
            )

    def extra_follows(self, iteration: int, update: int) -> bool:
        """Whether an extra update follows an iteration's ``update``, both counted from 0.

        Ordinary updates are counted over the whole run, so an extra one may come every few iterations.
        """
        done = iteration * self.epochs * self.updates + update + 1
        return self.alternate > 0 and done % self.alternate == 0

    def batches_in(self, iteration: int) -> int:
        """Micro-batches of an iteration, those of extra updates included."""
        ordinary = self.epochs * self.updates
        extra = sum(self.extra_follows(iteration, update) for update in range(ordinary))
        return (ordinary + extra) * self.micro_batches
