"""Waveform measures: turn one waveform into spectrum, level and pitch, and two into how far apart they sound.

A waveform is a (samples,) array of floats, full scale at 1, by default at 16 kHz; spectra have one frame every 10 ms.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import dct
from scipy.spatial.distance import cdist

from speechgpt_lib.rates import SAMPLE_RATE

FRAME_S = 0.01
QUIETEST_DB = -120.0
_FFT, _WINDOW_S, _FLOOR = 512, 0.025, 1e-5


def log_mel(wave: np.ndarray, sample_rate: int = SAMPLE_RATE, bands: int = 40) -> np.ndarray:
    """Logarithm (base e) of mel-band amplitudes, (frames, bands): one frame every 10 ms, none if shorter than 25 ms.

    Hann windows of 25 ms, triangular bands from 0 Hz to half the sample rate, equally spaced on the scale
    mel = 2595 log10(1 + f / 700) (O'Shaughnessy 1987); amplitudes below 1e-5 are raised to it.
    """
    amplitudes = _amplitudes(_one_channel(wave), sample_rate)
    return np.log(
        np.maximum(amplitudes @ _mel_bands(bands, 2 * amplitudes.shape[1] - 2, sample_rate), _FLOOR)
    )


def mel_cepstrum(wave: np.ndarray, sample_rate: int = SAMPLE_RATE, order: int = 13) -> np.ndarray:
    """Mel cepstrum (frames, 1 + order) of `log_mel`, by a cosine transform over its bands.

    It is scaled so that log amplitude = c_0 / 2 + sum over d of c_d cos(pi d (band + 1/2) / bands).
    """
    spectrum = log_mel(wave, sample_rate)
    if not len(spectrum):
        return np.zeros((0, 1 + order))
    return dct(spectrum, type=2, axis=1)[:, : 1 + order] / spectrum.shape[1]


def mel_cepstral_distance(
    a: np.ndarray,
    b: np.ndarray,
    sample_rate: int = SAMPLE_RATE,
    align: str = "dtw",
    order: int = 13,
) -> float:
    """Mel-cepstral distortion of two waveforms, dB: mean over frame pairs of (10 / ln 10) sqrt(2 sum_d (a_d - b_d)^2).

    Kubichek 1993, "Mel-cepstral distance measure for objective speech quality assessment".  The cepstra come from a mel
    filter bank, so compare the figure only with figures of this function.  c_0, the level, is left out, and both
    waveforms are brought to one level beforehand.
    align: "dtw" pairs frames by dynamic time warping, for two utterances that differ in timing; "frames" pairs them one
        by one, for waveforms of the same number of frames (one more or less is cut off).
    Raises ValueError for waveforms shorter than one frame, or of different length under "frames".
    """
    first, second = (mel_cepstrum(_levelled(wave), sample_rate, order)[:, 1:] for wave in (a, b))
    if not len(first) or not len(second):
        raise ValueError(
            f"expected waveforms of at least 25 ms, found {len(first)} and {len(second)} frames"
        )
    if align == "frames":
        if abs(len(first) - len(second)) > 1:
            raise ValueError(
                f"frame-by-frame comparison needs equal lengths, found {len(first)} and {len(second)} frames"
            )
        frames = min(len(first), len(second))
        gaps = np.linalg.norm(first[:frames] - second[:frames], axis=1)
    elif align == "dtw":
        distances = cdist(first, second)
        gaps = distances[tuple(warping_path(distances).T)]
    else:
        raise ValueError(f"unknown alignment {align!r}: expected 'dtw' or 'frames'")
    return float(10 / np.log(10) * np.sqrt(2) * gaps.mean())


def warping_path(distances: np.ndarray) -> np.ndarray:
    """Cheapest monotone path through `distances` (n, m) from corner to corner: (steps, 2) index pairs.

    Dynamic time warping with the steps (1, 0), (0, 1) and (1, 1) of equal weight (Sakoe & Chiba 1978).
    """
    n, m = distances.shape
    cost = np.full((n + 1, m + 1), np.inf)
    cost[0, 0] = 0
    for diagonal in range(n + m - 1):  # cells of one anti-diagonal need only the two before it
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        cost[i + 1, j + 1] = distances[i, j] + np.minimum(
            np.minimum(cost[i, j + 1], cost[i + 1, j]), cost[i, j]
        )

    i, j = n - 1, m - 1
    path = [(i, j)]
    while i or j:
        before = (cost[i, j], i - 1, j - 1), (cost[i, j + 1], i - 1, j), (cost[i + 1, j], i, j - 1)
        _, i, j = min(before, key=lambda step: step[0])
        path.append((i, j))
    return np.array(path[::-1])


def loudness_db(wave: np.ndarray) -> float:
    """Root mean square level in dB of full scale: 0 for a square wave of amplitude 1; -120 for silence and below."""
    wave = _one_channel(wave)
    power = float(np.mean(wave**2)) if len(wave) else 0.0
    return max(QUIETEST_DB, 10 * float(np.log10(power))) if power > 0 else QUIETEST_DB


def f0_track(
    wave: np.ndarray,
    sample_rate: int = SAMPLE_RATE,
    lowest_hz: float = 60.0,
    highest_hz: float = 500.0,
) -> np.ndarray:
    """Fundamental frequency in Hz at every 10 ms from time 0, (samples / sample_rate / 0.01,) rounded up; 0 = unvoiced.

    Praat's autocorrelation method (Boersma 1993).  Ends of an utterance that no analysis window fits into are unvoiced.
    """
    wave = _one_channel(wave)
    track = np.zeros(-(-len(wave) // round(FRAME_S * sample_rate)))
    if len(wave) <= 3.1 / lowest_hz * sample_rate:  # Praat wants three periods of the lowest pitch
        return track
    import parselmouth  # slow to load, and no other measure needs it

    pitch = parselmouth.Sound(wave, sample_rate).to_pitch_ac(
        FRAME_S, lowest_hz, pitch_ceiling=highest_hz
    )
    # Praat centres its frames in the waveform, often half-way between ours: take the earlier of two equally near ones.
    nearest = np.ceil((np.arange(len(track)) * FRAME_S - pitch.x1) / FRAME_S - 0.5 - 1e-6).astype(
        int
    )
    inside = (nearest >= 0) & (nearest < pitch.n_frames)
    track[inside] = pitch.selected_array["frequency"][nearest[inside]]
    return track


def f0_rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference in Hz of two `f0_track`s over the frames voiced in both, paired one by one.

    The longer track is cut; NaN when no frame is voiced in both.
    """
    frames = min(len(a), len(b))
    a, b = np.asarray(a[:frames], dtype=np.float64), np.asarray(b[:frames], dtype=np.float64)
    voiced = (a > 0) & (b > 0)
    return float(np.sqrt(np.mean((a - b)[voiced] ** 2))) if voiced.any() else float("nan")


def voicing_error(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the frames of two `f0_track`s, paired one by one, that are voiced in one and unvoiced in the other.

    The longer track is cut; NaN when there is no frame.
    """
    frames = min(len(a), len(b))
    return (
        float(np.mean((np.asarray(a[:frames]) > 0) != (np.asarray(b[:frames]) > 0)))
        if frames
        else float("nan")
    )


def log_spectral_distance(a: np.ndarray, b: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Log-spectral distance of two waveforms in dB: mean over frames of the root mean square over frequencies of 20 log10 |A| / |B|.

    Gray & Markel 1976, "Distance measures for speech processing".  Frames of 25 ms every 10 ms are paired one by one (the longer waveform
    is cut), both waveforms are brought to one level, and amplitudes more than 60 dB below the loudest of both count as 60 dB below it, so
    that inaudible differences don't.  Raises ValueError for waveforms shorter than one frame.
    """
    spectra = [_amplitudes(_levelled(wave), sample_rate) for wave in (a, b)]
    frames = min(map(len, spectra))
    if not frames:
        raise ValueError(
            f"expected waveforms of at least 25 ms, found {len(spectra[0])} and {len(spectra[1])} frames"
        )
    floor = max(1e-3 * max(spectrum.max() for spectrum in spectra), _FLOOR)
    first, second = (20 * np.log10(np.maximum(spectrum[:frames], floor)) for spectrum in spectra)
    return float(np.sqrt(np.mean((first - second) ** 2, axis=1)).mean())


def _amplitudes(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """(frames, frequencies) of Hann windows of 25 ms every 10 ms; no frame if the wave is shorter than one."""
    window, hop = round(_WINDOW_S * sample_rate), round(FRAME_S * sample_rate)
    size = max(_FFT, 1 << (window - 1).bit_length())
    if len(wave) < window:
        return np.zeros((0, size // 2 + 1))
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop] * np.hanning(window)
    return np.abs(np.fft.rfft(frames, size))


def _mel_bands(bands: int, size: int, sample_rate: int) -> np.ndarray:
    """Triangular filters (size // 2 + 1, bands) with peaks at 1."""
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / sample_rate)[:, None]
    rising, falling = (
        (bins - edges[:-2]) / np.diff(edges)[:-1],
        (edges[2:] - bins) / np.diff(edges)[1:],
    )
    return np.maximum(0, np.minimum(rising, falling))


def _levelled(wave: np.ndarray) -> np.ndarray:
    """The same waveform at -20 dB of full scale; silence stays silence."""
    wave = _one_channel(wave)
    level = np.sqrt(np.mean(wave**2)) if len(wave) else 0.0
    return wave * (0.1 / level) if level > 0 else wave


def _one_channel(wave: np.ndarray) -> np.ndarray:
    wave = np.asarray(wave, dtype=np.float64)
    if wave.ndim != 1:
        raise ValueError(f"expected one channel of shape (samples,), found shape {wave.shape}")
    return wave
