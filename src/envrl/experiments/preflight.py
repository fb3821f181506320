"""What can be known before anything is written: that the model is there and the hardware fits."""

from __future__ import annotations

from envrl.envs.ray_pool import require_ray
from envrl.errors import ConfigFault, PolicyFault
from envrl.experiments.config import RunConfig
from envrl.experiments.games import GameSets, game_sets
from envrl.policy.server import connect
from envrl.policy.settings import EMBEDDED, model_source


def preflight(config: RunConfig) -> GameSets:
    """Refuses a run that can't begin, and makes its games where they are not there yet.

    The embedded policy needs no model library for it, so that a study is not held up.

    Raises:
        ConfigFault: The generator can't make such rooms, or there is no such accelerator.
        DataFault: Official games are asked for and not there, or the panel overlaps with training.
        PolicyFault: The model can't be found or read, the hardware can't do what was asked, or the server
            that is to draw the tokens can't be reached or serves another model.
    """
    policy = config.embodied
    model_source(policy.model)
    if config.train.accelerator == "gpu":
        _require_gpu(config.train.devices)
    if config.rollout.pool == "ray":
        require_ray()
    if config.optim.eight_bit:
        _require_eight_bit_optimiser()
    if policy.model not in EMBEDDED or policy.quantised:
        from envrl.policy.model import check_policy

        check_policy(policy)
    if config.sampling.server.url is not None:
        connect(config.sampling, config.base_source)
    return game_sets(config.env, config.evaluation, config.rollout.games)


def _require_gpu(devices: int) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigFault("train.accelerator is gpu, but torch finds none; use auto or cpu")
    if devices > torch.cuda.device_count():
        raise ConfigFault(
            f"train.devices is {devices}, but torch finds {torch.cuda.device_count()} GPUs on this machine; "
            "use as many as there are"
        )


def _require_eight_bit_optimiser() -> None:
    """Makes one update of a parameter large enough to be quantised, on the device training will use."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from bitsandbytes.optim import AdamW8bit

        parameter = torch.nn.Parameter(torch.ones(4096, device=device))
        parameter.grad = torch.ones_like(parameter)
        AdamW8bit([parameter], lr=1e-3).step()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PolicyFault(
            f"optim.eight_bit is set, but bitsandbytes can't make an update on this machine's {device} "
            f"({reason}); set optim.eight_bit=false or use a supported GPU"
        ) from error
