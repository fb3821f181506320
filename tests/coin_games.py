"""An environment outside the package in which some groups teach nothing: `env.name: coin_games:Coins`."""

from __future__ import annotations

from envrl.types import Game, Observation, StepResult


class Coins:
    """Two turns; what was written in the second one decides, and in every second game nobody wins."""

    @staticmethod
    def games(split: str) -> list[Game]:
        return [Game(f"{split}-{n}", "coins", split, "coin", str(n), 2) for n in range(8)]

    def reset(self, game: Game, seed: int) -> Observation:
        self._left, self._pays = game.max_steps, int(game.spec) % 2 == 0
        return Observation(f"Your task is to: find a coin, {game.spec}.", ("heads", "tails"))

    def step(self, action: str) -> StepResult:
        self._left -= 1
        won = self._pays and self._left == 0 and len(action) % 2 == 0
        info = {"won": won, "task_score": float(won)}
        return StepResult(Observation("Tails.", ("heads", "tails")), float(won), self._left == 0, False, info)

    def close(self) -> None:
        pass
