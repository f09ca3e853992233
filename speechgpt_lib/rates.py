"""Rates that sound and units share: 16 kHz sound, a unit every 320 samples, 50 units a second."""

SAMPLE_RATE = 16_000  # samples a second (Hz)
HOP = 320  # samples a frame
FRAME_RATE = 50.0  # frames a second (Hz): SAMPLE_RATE / HOP
MINIMUM_SAMPLES = 400  # 25 ms: the window (receptive field) that HuBERT needs for one frame
