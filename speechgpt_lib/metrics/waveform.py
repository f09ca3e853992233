"""Waveform measures: spectrum and pitch of a waveform, and how far apart two waveforms sound.

A waveform is a (samples,) array of floats at 16 kHz, full scale at 1; there is a frame every 10 ms.
"""

import functools

import numpy as np

from speechgpt_lib.rates import SAMPLE_RATE

WINDOW, STEP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms
BANDS, ORDER = 40, 13  # of the mel spectrum, of the cepstrum
LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0  # of a voice
FLOOR = 1e-5  # amplitudes below it count as this


def log_mel(wave: np.ndarray) -> np.ndarray:
    """Logarithm (base e) of mel-band amplitudes, (frames, 40); no frame if shorter than 25 ms.

    Hann windows of 25 ms, triangular bands from 0 Hz to 8 kHz, equally spaced on the scale
    mel = 2595 log10(1 + f / 700) (O'Shaughnessy 1987); amplitudes below 1e-5 are raised to it.
    """
    return np.log(np.maximum(_amplitudes(_one_channel(wave)) @ _mel_bands(), FLOOR))


def mel_cepstral_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mel-cepstral distortion of two waveforms in dB, their frames paired by time warping.

    It is the mean over frame pairs of (10 / ln 10) sqrt(2 sum_d (a_d - b_d)^2), d from 1 to 13
    (Kubichek 1993, "Mel-cepstral distance measure for objective speech quality assessment"), with
    `log_mel` = c_0 / 2 + sum_d c_d cos(pi d (band + 1/2) / bands): compare it only with figures of
    this function.  Both are brought to one level; ValueError where one is shorter than a frame.
    """
    from scipy.fft import dct  # a quarter of a second to load, and few measure this
    from scipy.spatial.distance import cdist

    cepstra = (dct(log_mel(_levelled(wave)))[:, 1 : 1 + ORDER] / BANDS for wave in (a, b))
    distances = cdist(*cepstra)
    gaps = distances[tuple(warping_path(distances).T)]
    return float(10 / np.log(10) * np.sqrt(2) * gaps.mean())


def warping_path(distances: np.ndarray) -> np.ndarray:
    """Cheapest monotone path through `distances` (n, m), corner to corner: (steps, 2) index pairs.

    Dynamic time warping by steps (1, 0), (0, 1), (1, 1) of equal weight (Sakoe & Chiba 1978).
    """
    n, m = distances.shape
    cost = np.full((n + 1, m + 1), np.inf)
    cost[0, 0] = 0
    for diagonal in range(n + m - 1):  # cells of one anti-diagonal need only the two before it
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        cheapest = np.minimum(np.minimum(cost[i, j + 1], cost[i + 1, j]), cost[i, j])
        cost[i + 1, j + 1] = distances[i, j] + cheapest
    i, j = n - 1, m - 1
    path = [(i, j)]
    while i or j:
        before = (cost[i, j], i - 1, j - 1), (cost[i, j + 1], i - 1, j), (cost[i + 1, j], i, j - 1)
        _, i, j = min(before, key=lambda step: step[0])
        path.append((i, j))
    return np.array(path[::-1])


def f0_track(wave: np.ndarray) -> np.ndarray:
    """Fundamental frequency in Hz at every 10 ms from time 0, (samples / 160,) rounded up.

    Praat's autocorrelation method (Boersma 1993).  0 is unvoiced, and so are the ends of an
    utterance that no analysis window fits into.
    """
    wave = _one_channel(wave)
    track = np.zeros(-(-len(wave) // STEP))
    if len(wave) <= 3.1 / LOWEST_HZ * SAMPLE_RATE:  # Praat wants three periods of the lowest pitch
        return track
    import parselmouth  # slow to load, and no other measure needs it

    step, sound = STEP / SAMPLE_RATE, parselmouth.Sound(wave, SAMPLE_RATE)
    pitch = sound.to_pitch_ac(step, LOWEST_HZ, pitch_ceiling=HIGHEST_HZ)
    # Praat's frames are often half-way between ours: take the earlier of two equally near ones.
    nearest = np.ceil((np.arange(len(track)) * step - pitch.x1) / step - 0.5 - 1e-6).astype(int)
    inside = (nearest >= 0) & (nearest < pitch.n_frames)
    track[inside] = pitch.selected_array["frequency"][nearest[inside]]
    return track


def f0_rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference in Hz of two `f0_track`s over the frames voiced in both.

    Frames are paired one by one, the longer track is cut; NaN where no frame is voiced in both.
    """
    frames = min(len(a), len(b))
    a, b = a[:frames], b[:frames]
    voiced = (a > 0) & (b > 0)
    return float(np.sqrt(np.mean((a - b)[voiced] ** 2))) if voiced.any() else float("nan")


def voicing_error(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the frames of two `f0_track`s that are voiced in one and unvoiced in the other.

    Frames are paired one by one, the longer track is cut; NaN where there is no frame.
    """
    frames = min(len(a), len(b))
    return float(np.mean((a[:frames] > 0) != (b[:frames] > 0))) if frames else float("nan")


def log_spectral_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Log-spectral distance of two waveforms in dB, frames paired one by one (the longer is cut).

    It is the mean over frames of the root mean square over frequencies of 20 log10 |A| / |B| (Gray
    & Markel 1976, "Distance measures for speech processing").  Both are brought to one level, and
    amplitudes count as at most 60 dB below the loudest of both, so that inaudible differences
    don't.  ValueError where one is shorter than a frame.
    """
    first, second = (_amplitudes(_levelled(wave)) for wave in (a, b))
    frames = min(len(first), len(second))
    floor = max(1e-3 * max(first.max(), second.max()), FLOOR)
    first, second = (20 * np.log10(np.maximum(x[:frames], floor)) for x in (first, second))
    return float(np.sqrt(np.mean((first - second) ** 2, axis=1)).mean())


def _amplitudes(wave: np.ndarray) -> np.ndarray:
    """(frames, 257) of Hann windows of 25 ms every 10 ms; no frame if the wave is shorter."""
    if len(wave) < WINDOW:
        return np.zeros((0, FFT // 2 + 1))
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::STEP] * np.hanning(WINDOW)
    return np.abs(np.fft.rfft(frames, FFT))


@functools.cache
def _mel_bands() -> np.ndarray:
    """Triangular filters (257, 40) with peaks at 1."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling))


def _levelled(wave: np.ndarray) -> np.ndarray:
    """The same waveform at -20 dB of full scale; silence stays silence; refuses less than 25 ms."""
    wave = _one_channel(wave)
    if len(wave) < WINDOW:
        raise ValueError(f"expected a waveform of at least 25 ms, found {len(wave)} samples")
    level = np.sqrt(np.mean(wave**2))
    return wave * (0.1 / level) if level > 0 else wave


def _one_channel(wave: np.ndarray) -> np.ndarray:
    wave = np.asarray(wave, dtype=np.float64)
    if wave.ndim != 1:
        raise ValueError(f"expected one channel of shape (samples,), found shape {wave.shape}")
    return wave
