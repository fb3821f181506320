"""What a trained run has left: its configuration and its policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from envrl.errors import DataFault
from envrl.experiments.config import RunConfig
from envrl.experiments.plain import LARGEST_YAML, read_yaml
from envrl.untrusted import read_text

if TYPE_CHECKING:
    from envrl.policy.model import Policy


def trained_config(run: Path) -> dict[str, Any]:
    """Configuration a run was trained with.

    Raises:
        DataFault: The folder has no readable ``config.yaml``.
    """
    path = run / "config.yaml"
    try:
        content = read_yaml(read_text(path, LARGEST_YAML))
    except OSError as error:
        raise DataFault(
            f"'{run}' is no folder of a trained run: {path} can't be read ({error.strerror}); "
            "give a folder such as mlruns/studies/quick/runs/grpo/seed_0"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise DataFault(f"{path} is broken: it holds no mapping; train that run anew")
    return content


def trained_policy(config: RunConfig, checkpoint: Mapping[str, Any]) -> Policy:
    """The configured policy with a checkpoint's trained weights.

    Raises:
        DataFault: The checkpoint is one of another model or of other adapters.
        PolicyFault: The base model can't be loaded.
    """
    from envrl.policy.model import load_policy

    policy = load_policy(config.embodied)
    load_weights(policy, checkpoint, config)
    return policy


def load_weights(policy: Policy, checkpoint: Mapping[str, Any], config: RunConfig) -> None:
    """Puts a checkpoint's trained weights into the policy; the frozen ones come from the base model.

    Raises:
        DataFault: The checkpoint is one of another model or of other adapters.
    """
    saved = checkpoint["state_dict"].items()
    # What else was trained beside the policy (a critic) does not act.
    weights = {name.removeprefix("policy."): w for name, w in saved if name.startswith("policy.")}
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if different := sorted(trained ^ set(weights)):
        reason = f"{different[0]} is only in one of them"
    else:
        try:
            policy.load_state_dict(weights, strict=False)
            return
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
    raise DataFault(
        f"the checkpoint does not fit the model '{config.policy.model}' and its adapters ({reason}); "
        "leave out --policy options, or train that run anew"
    )
