"""Success rates that papers report, to stand beside one's own; none of them was measured here."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """One number of a paper.

    Attributes:
        env: Environment.
        model: Base model.
        method: What was trained.
        success: Success rate, percent.
        spread: Standard deviation over seeds as reported, percent; None where none was.
        source: Paper, and whether it was read there or in notes of others on it.
    """

    env: str
    model: str
    method: str
    success: float
    spread: float | None
    source: str


_SMALL, _LARGE = "Qwen2.5-1.5B-Instruct", "Qwen2.5-7B-Instruct"
_ENVRL = "EnvRL, arXiv 2606.17680"
_NOTES = "notes on EnvRL, arXiv 2606.17680"
_GIGPO = "notes on GiGPO, arXiv 2505.10978"
_PAW, _TAPO = "notes on PaW, arXiv 2606.02388", "notes on TAPO, arXiv 2607.27973"

PUBLISHED = (
    PublishedResult("alfworld", _SMALL, "PPO", 54.4, 3.1, _GIGPO),
    PublishedResult("alfworld", _SMALL, "RLOO", 69.7, 2.5, _GIGPO),
    PublishedResult("alfworld", _SMALL, "GRPO", 72.8, 3.6, _GIGPO),
    PublishedResult("alfworld", _SMALL, "GRPO + SP + ID", 77.4, None, _ENVRL),
    PublishedResult("alfworld", _SMALL, "GRPO + PaW", 77.9, None, _PAW),
    PublishedResult("alfworld", _SMALL, "GiGPO", 86.7, 1.7, _GIGPO),
    PublishedResult("alfworld", _SMALL, "GiGPO + SP + ID", 91.8, None, _NOTES),
    PublishedResult("alfworld", _SMALL, "GiGPO + PaW", 90.4, None, _PAW),
    PublishedResult("alfworld", _LARGE, "PPO", 80.4, 2.7, _GIGPO),
    PublishedResult("alfworld", _LARGE, "RLOO", 75.5, 4.6, _GIGPO),
    PublishedResult("alfworld", _LARGE, "GRPO", 77.6, 5.2, _GIGPO),
    PublishedResult("alfworld", _LARGE, "GiGPO", 90.8, 1.3, _GIGPO),
    PublishedResult("alfworld", _LARGE, "GiGPO + SP + ID", 94.5, None, _NOTES),
    PublishedResult("webshop", _SMALL, "PPO", 51.5, 2.9, _GIGPO),
    PublishedResult("webshop", _SMALL, "RLOO", 52.1, 6.7, _GIGPO),
    PublishedResult("webshop", _SMALL, "GRPO", 56.8, 3.8, _GIGPO),
    PublishedResult("webshop", _SMALL, "GRPO + SP + ID", 67.0, None, _ENVRL),
    PublishedResult("webshop", _SMALL, "GRPO + PaW", 68.6, None, _PAW),
    PublishedResult("webshop", _SMALL, "GRPO + TAPO", 66.2, None, _TAPO),
    PublishedResult("webshop", _SMALL, "GiGPO", 67.4, 4.5, _GIGPO),
    PublishedResult("webshop", _SMALL, "GiGPO + SP + ID", 74.2, None, _NOTES),
    PublishedResult("webshop", _SMALL, "GiGPO + PaW", 75.3, None, _PAW),
    PublishedResult("webshop", _SMALL, "GiGPO + TAPO", 71.7, None, _TAPO),
    PublishedResult("webshop", _LARGE, "PPO", 68.7, 5.1, _GIGPO),
    PublishedResult("webshop", _LARGE, "RLOO", 65.7, 4.0, _GIGPO),
    PublishedResult("webshop", _LARGE, "GRPO", 66.1, 3.7, _GIGPO),
    PublishedResult("webshop", _LARGE, "GiGPO", 75.2, 3.8, _GIGPO),
    PublishedResult("webshop", _LARGE, "GiGPO + SP + ID", 76.3, None, _NOTES),
)
"""Each paper's GRPO and GiGPO baselines differ a little; those of the GiGPO paper stand here. Their protocol
is not a clean one: validation games are drawn with repeats, and WebShop's goals overlap with training."""


def published_frame(env: str) -> pd.DataFrame:
    """The published results on an environment; columns ``model, method, success, spread, source``."""
    rows = [result for result in PUBLISHED if result.env == env]
    names = ["model", "method", "success", "spread", "source"]
    return pd.DataFrame([[getattr(row, name) for name in names] for row in rows], columns=names)
