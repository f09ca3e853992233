import io

import matplotlib.pyplot as plt
import numpy as np

from speechgpt_lib.notebook.unit_figures import spectrogram_with_units, unit_colors


def test_a_tone_lies_at_its_frequency_and_units_at_their_time():
    wave = 0.5 * np.sin(2 * np.pi * 3000 * np.arange(16_000) / 16_000)
    fig = spectrogram_with_units(
        wave, np.array([3, 5]), np.array([20, 29]), 10, [(0.0, 0.4, "a"), (0.4, 1.0, "b")]
    )
    top, bottom = fig.axes
    picture = top.images[0].get_array()  # (frequencies, times)
    assert abs((picture.mean(1).argmax() + 0.5) / len(picture) * 6000 - 3000) < 100
    assert bottom.images[0].get_array()[0].tolist() == [3] * 20 + [5] * 29
    assert bottom.images[0].get_extent()[1] == 49 * 0.02
    assert {"a", "b"} <= {text.get_text() for text in top.texts}
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100)
    assert buffer.tell() < 150_000
    plt.close(fig)


def test_every_unit_has_a_colour_of_its_own():
    assert len({tuple(color) for color in unit_colors(200)(range(200))}) == 200
