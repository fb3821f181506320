"""Rebuilds the embedded policy: ``python -m envrl.policy.tiny --help``.

The checkpoint itself stands in ``tiny_checkpoint/`` and is loaded like any other model
(:func:`envrl.policy.model.load_policy`). Making it needs games and an expert, so the work is done in
:mod:`envrl.experiments.pretrain`; this module is only its stable address.
"""

import sys

if __name__ == "__main__":
    from envrl.experiments.pretrain import main

    sys.exit(main())
