"""SpeechGPT (arXiv 2305.11000), rebuilt as a course you can run: one room a step, one notebook a
room."""

import logging
import warnings

from speechgpt_lib.surroundings import settle

__version__ = "0.2.0"
settle()

# peft imports bitsandbytes wherever it is installed, which then warns, on some CPUs, that a kernel
# of a hub can't be had: not on our lines.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# And asks transformers for what that has renamed.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
