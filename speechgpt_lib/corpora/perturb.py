"""Speech → the same words, as if by another throat, in another room, through another microphone.

Our synthesiser buzzes, and its voices differ in little but pitch and formants.  A wave is taken
apart, frame by frame, into its spectral envelope (the throat) and what excites it (the cords); both
are changed at random and put together again, so that time, and so every phone, stays where it is.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from speechgpt_lib.rates import SAMPLE_RATE

FFT, STEP = 512, 256  # samples of a window, and from one to the next
BINS = FFT // 2 + 1


def perturb(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 samples (n,) at 16 kHz → another version of them, of the same length and level."""
    if not (level := float(wave.std())):
        return wave
    spectrum = _frames(wave)  # (frames, bins), complex
    loudness = np.log(np.abs(spectrum) + 1e-5 * FFT * level)
    throat = _smooth(loudness, int(rng.integers(20, 45)))
    cords = spectrum * np.exp(-throat)
    throat = _warped(throat, np.exp(rng.uniform(-0.22, 0.22)))
    contrast = rng.uniform(-0.2, 0.2)
    throat += contrast * (throat - throat.mean(1, keepdims=True))
    throat += _filter(rng) + _drift(rng, len(throat))
    breath = np.clip(_curve(rng, 0.25, 2) + rng.uniform(-0.2, 1.0), 0, 1)
    throat = np.exp(throat)
    made = np.sqrt(1 - breath) * cords * throat
    hiss = np.exp(_curve(rng, 1.0, 3)) * float(np.sqrt(np.mean(np.square(throat))))
    hiss *= 10 ** (-rng.uniform(15, 55) / 20)
    made += _noise(rng, made.shape) * (np.sqrt(breath) * throat + hiss)
    out = _wave(made, len(wave))
    if rng.random() < 0.4:
        out = _convolved(out, _room(rng))
    return (out * (level / max(float(out.std()), 1e-9))).astype(np.float32)


def _frames(wave: np.ndarray) -> np.ndarray:
    padded = np.pad(wave.astype(np.float32), (FFT - STEP, FFT + (-len(wave)) % STEP))
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::STEP]
    return rfft(windows * _window())


def _wave(spectrum: np.ndarray, length: int) -> np.ndarray:
    parts = irfft(spectrum, FFT) * _window()  # overlap and add
    out = np.zeros((len(parts) + FFT // STEP, STEP), np.float32)
    for k in range(FFT // STEP):
        out[k : k + len(parts)] += parts[:, k * STEP : (k + 1) * STEP]
    return out.ravel()[FFT - STEP :][:length]


@functools.cache
def _window() -> np.ndarray:
    """Its square, over and over, adds up to 1."""
    return np.sin(np.pi * np.arange(FFT) / FFT).astype(np.float32)


def _smooth(size: np.ndarray, kept: int) -> np.ndarray:
    """Log magnitudes (frames, bins) without their harmonics: the first `kept` cepstral numbers."""
    cepstrum = irfft(size, FFT)
    cepstrum[:, kept : FFT - kept + 1] = 0
    return rfft(cepstrum).real


def _warped(envelope: np.ndarray, factor: float) -> np.ndarray:
    """Formants at `factor` times their frequency; what was above 8 kHz is that at 8 kHz."""
    source = np.minimum(np.arange(BINS, dtype=np.float32) / factor, BINS - 1)
    below = np.minimum(source.astype(int), BINS - 2)
    share = (source - below).astype(np.float32)
    return envelope[:, below] * (1 - share) + envelope[:, below + 1] * share


@functools.cache
def _mel_position() -> np.ndarray:
    hertz = np.linspace(0, SAMPLE_RATE / 2, BINS)
    mel = np.log1p(hertz / 700)
    return (mel / mel[-1]).astype(np.float32)


def _curve(rng: np.random.Generator, spread: float, terms: int) -> np.ndarray:
    """A smooth random curve over frequency (bins,): a few cosines of the mel scale."""
    k = np.arange(1, terms + 1)
    waves = np.cos(np.pi * k[:, None] * _mel_position())
    return ((rng.standard_normal(terms) * spread) @ waves).astype(np.float32)


def _filter(rng: np.random.Generator) -> np.ndarray:
    """Log gain (bins,) of a microphone: a smooth equaliser, now and then a narrow band."""
    gain = _curve(rng, 0.45, 5)
    hertz = np.linspace(0, SAMPLE_RATE / 2, BINS)
    for _ in range(rng.integers(0, 3)):  # bands that aren't heard (SpecAugment)
        middle, wide = rng.random(), rng.uniform(0, 0.08)
        gain = gain - 3 * (np.abs(_mel_position() - middle) < wide)
    if rng.random() < 0.3:
        low, high = rng.uniform(50, 350), rng.uniform(3200, 7800)
        gain = gain - np.clip((low - hertz) / low * 3, 0, 3) - np.clip((hertz - high) / 300, 0, 4)
    return gain.astype(np.float32)


def _drift(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Log gains (frames, bins) that wander: no sound of a mouth comes twice the same."""
    knots = np.arange(0, frames + 10, 10)  # every 0.16 s
    curves = np.stack([_curve(rng, 0.35, 5) for _ in knots])
    place = np.arange(frames) / 10
    below = place.astype(int)
    share = (place - below)[:, None].astype(np.float32)
    return curves[below] * (1 - share) + curves[below + 1] * share


def _noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Complex numbers of mean square 1."""
    parts = rng.standard_normal((*shape, 2), np.float32) * np.float32(np.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


def _convolved(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    n = next_fast_len(len(wave) + len(response), real=True)
    return irfft(rfft(wave, n) * rfft(response, n), n)[: len(wave)]


def _room(rng: np.random.Generator) -> np.ndarray:
    """An impulse response: the direct sound, then noise that fades by 60 dB in 0.1 to 0.5 s."""
    fades, wet = rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.5)
    time = np.arange(int(0.6 * fades * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * np.exp(-6.9 * time / fades)
    tail[: int(0.002 * SAMPLE_RATE)] = 0
    tail *= wet / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail.astype(np.float32)
