"""The policy: model with adapters, chat markup, sampler, and the embedded checkpoint."""

import logging

# peft imports bitsandbytes, which on processors with AVX512-BF16 warns at every start that it would rather
# fetch compiled code for 4-bit layers from a hub. Nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
