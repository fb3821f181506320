"""What was measured of an iteration, and the table that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from iteration_spans import ROLLOUT, UPDATE


@dataclass(frozen=True)
class Roofs:
    """What the machine can do: floating-point operations and bytes a second, both divided by 10⁹."""

    gflops: float
    gigabytes: float


@dataclass(frozen=True, slots=True)
class Profile:
    """An iteration of a case, means over the timed ones.

    Attributes:
        case: Its name.
        seconds: CPU seconds by span; on a GPU those of the clock.
        gflops: 10⁹ floating-point operations by span that were computed, of the first iteration.
        model_gflops: 10⁹ operations that its rows need by hand (:class:`flops.ModelSize`).
        decode_gigabytes: 10⁹ bytes that decoding had to read.
        other_s: Seconds outside all spans: Lightning, data loader.
        action_tokens: Tokens that the policy wrote, per iteration.
        update_tokens: Tokens in the update's rows, padding included, per iteration.
        useful_tokens: The same without padding.
    """

    case: str
    seconds: dict[str, float]
    gflops: dict[str, float]
    model_gflops: float
    decode_gigabytes: float
    other_s: float
    action_tokens: float
    update_tokens: float
    useful_tokens: float

    @property
    def total_s(self) -> float:
        """Seconds of an iteration."""
        return sum(self.seconds.values()) + self.other_s

    @property
    def update_rate(self) -> float:
        """Tokens of the update's rows, padding not counted, per second of the update."""
        return self.useful_tokens / sum(self.seconds[name] for name in UPDATE)

    def utilisation(self, roofs: Roofs) -> float:
        """Share of the roof that operations which were computed reach over the whole iteration."""
        return sum(self.gflops.values()) / self.total_s / roofs.gflops

    def model_flops_utilisation(self, roofs: Roofs) -> float:
        """The same of operations that its rows need by hand; sharing makes it larger, even than 1."""
        return self.model_gflops / self.total_s / roofs.gflops

    def decode_bandwidth(self, roofs: Roofs) -> float:
        """Share of the memory's roof that decoding reaches; weights that stay in a cache may pass it."""
        return self.decode_gigabytes / self.seconds["decode"] / roofs.gigabytes

    def plain(self, roofs: Roofs) -> dict[str, Any]:
        """What is written down of it."""
        return asdict(self) | {
            "total_s": self.total_s,
            "update_tokens_per_s": self.update_rate,
            "utilisation": self.utilisation(roofs),
            "model_flops_utilisation": self.model_flops_utilisation(roofs),
            "decode_gigabytes_per_s": self.decode_gigabytes / self.seconds["decode"],
            "decode_bandwidth_utilisation": self.decode_bandwidth(roofs),
        }


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {label} | " + " | ".join(cells) + " |"


def _shares(profiles: Sequence[Profile]) -> list[str]:
    """Shares of the time by span."""
    lines = []
    for part, spans in (("rollout", ROLLOUT), ("update", UPDATE)):
        whole = [f"{sum(p.seconds[n] for n in spans) / p.total_s:.1%}" for p in profiles]
        lines.append(_row(f"**{part}**", whole))
        for name in spans:
            lines.append(_row(f"{part}: {name}", [f"{p.seconds[name] / p.total_s:.1%}" for p in profiles]))
    return [*lines, _row("other (Lightning)", [f"{p.other_s / p.total_s:.1%}" for p in profiles])]


def _rates(profiles: Sequence[Profile], roofs: Roofs) -> list[str]:
    """How near the roofs the dense work runs."""
    lines = []
    for name in (*ROLLOUT, *UPDATE):
        if any(p.gflops[name] > 0 for p in profiles):
            cells = [
                f"{p.gflops[name] / p.seconds[name]:.1f}" if p.seconds[name] > 0 else "" for p in profiles
            ]
            lines.append(_row(f"GFLOP/s: {name}", cells))
    used = [p.utilisation(roofs) for p in profiles]
    return [
        *lines,
        _row("GFLOP/s in all", [f"{share * roofs.gflops:.1f}" for share in used]),
        _row(f"utilisation (roof {roofs.gflops:.0f} GFLOP/s)", [f"{share:.1%}" for share in used]),
        _row(
            "model FLOPs utilisation (the same roof)",
            [f"{p.model_flops_utilisation(roofs):.1%}" for p in profiles],
        ),
        _row(
            f"decode: share of the memory's roof ({roofs.gigabytes:.0f} GB/s)",
            [f"{p.decode_bandwidth(roofs):.1%}" for p in profiles],
        ),
    ]


def table(profiles: Sequence[Profile], roofs: Roofs, unit: str = "CPU s") -> str:
    """Markdown: shares of the time by span, and how near the roofs the dense work runs."""
    share = "share of CPU time" if unit == "CPU s" else "share of the time"
    return "\n".join(
        [
            _row(share, [p.case for p in profiles]),
            "| --- |" + " ---: |" * len(profiles),
            _row(f"{unit} an iteration", [f"{p.total_s:.2f}" for p in profiles]),
            *_shares(profiles),
            *_rates(profiles, roofs),
            _row("tokens written", [f"{p.action_tokens:,.0f}" for p in profiles]),
            _row(f"update tokens a {unit}", [f"{p.update_rate:,.0f}" for p in profiles]),
            _row(
                "padding that is not computed",
                [f"{1 - p.useful_tokens / p.update_tokens:.1%}" for p in profiles],
            ),
        ]
    )
