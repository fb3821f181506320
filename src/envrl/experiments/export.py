"""Writes a trained policy as one model in Hugging Face format: ``python -m envrl.experiments.export --help``.

    python -m envrl.experiments.export --run mlruns/studies/quick/runs/grpo/seed_0 --out my_policy

``AutoModelForCausalLM.from_pretrained("my_policy")`` loads it, and so does ``--policy.model my_policy``. The
adapters alone, as peft loads them, stand in the run's folder ``adapter`` once it is finished; ``--adapter``
writes them of an unfinished run too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from envrl.errors import ConfigFault, DataFault
from envrl.experiments.config import config_from
from envrl.experiments.console import guarded, one_line, parse_or_fault
from envrl.experiments.resume import CHECKPOINT, completed_iterations, read_checkpoint
from envrl.experiments.trained import trained_config, trained_policy


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m envrl.experiments.export",
        description="Write a trained policy, its adapters merged into the model, in Hugging Face format.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a trained run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--adapter", action="store_true", help="write the adapters alone, in peft format")

    def command() -> int:
        options = parse_or_fault(lambda: parser.parse_args(arguments))
        iteration = export(options.run, options.out, adapter_alone=options.adapter)
        what = "adapters" if options.adapter else "model"
        print(f"wrote the {what} of {options.run} after {iteration} iterations to {options.out}")
        return 0

    return guarded(command)


def export(run: Path, out: Path, *, adapter_alone: bool = False) -> int:
    """Writes the policy of a run's checkpoint; returns the iterations it was trained for.

    Raises:
        ConfigFault: The folder to write holds something, or there are no adapters to write alone.
        DataFault: The run has no readable configuration or checkpoint, or the folder can't be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigFault(f"'{out}' is there already and not an empty folder; name another one for --out")
    config = config_from(trained_config(run))
    if adapter_alone and not config.policy.lora.enabled:
        raise ConfigFault(f"'{run}' trained all weights and has no adapters; leave out --adapter")
    checkpoint = read_checkpoint(run / CHECKPOINT)
    policy = trained_policy(config, checkpoint)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if adapter_alone:
            policy.save_adapter(out)
        else:
            policy.save_merged(out)
    except (OSError, SafetensorError) as error:
        raise DataFault(f"can't write to '{out}' ({one_line(error)}); name another --out") from error
    return completed_iterations(checkpoint)


if __name__ == "__main__":
    sys.exit(main())
