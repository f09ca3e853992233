"""A small corpus of noise with units of its own, and commands that encode it in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt_lib.units import extract
from tests.conftest import Done
from tests.units.test_features import make_encoder, noise
from tests.units.test_foreign import kmeans_of, write


@pytest.fixture
def command(command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """`command`, which encodes the shards of a corpus in this process, too."""
    monkeypatch.setattr(extract, "run_in_processes", lambda f, jobs, n: map(f, jobs))
    return command


@dataclass(frozen=True)
class Speech:
    """A folder with two corpora of noise and an encoder with centroids, and the options that name
    them."""

    folder: Path
    recipe: tuple[object, ...]
    encoder: tuple[object, ...]

    def file(self, number: int) -> Path:
        """A sound file of the first corpus."""
        return self.folder / "A" / "dev-clean" / "3" / "4" / f"3-4-{number:04d}.flac"


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    """Two corpora in LibriSpeech's layout, a fairseq checkpoint and nine centroids."""
    base = tmp_path_factory.mktemp("speech")
    for root, speaker, count in (("A", 3, 9), ("B", 5, 6)):
        chapter = base / root / "dev-clean" / str(speaker) / "4"
        chapter.mkdir(parents=True)
        names = [f"{speaker}-4-{k:04d}" for k in range(count)]
        for k, name in enumerate(names):
            wave = 0.3 * noise(9000 + 700 * k, k + speaker)
            soundfile.write(chapter / f"{name}.flac", wave, 16_000)
        lines = (f"{name} GOOD DAY NUMBER {k}\n" for k, name in enumerate(names))
        (chapter / f"{speaker}-4.trans.txt").write_text("".join(lines))
    np.save(base / "km.npy", kmeans_of(9).centroids)
    write(base / "hubert.pt", make_encoder())
    corpora = (
        "{reader: librispeech, root: A, role: [aligned, voice], held_out: 0.4}",
        "{reader: librispeech, root: B, role: unlabelled}",
    )
    changes = (
        f"data={base}",
        f"corpora=[{', '.join(corpora)}]",
        "units.clusters=9",
        "imports.inventory={encoder: hubert.pt, layer: 2, centroids: km.npy}",
    )
    sets = [option for change in changes for option in ("--set", change)]
    units = ("--encoder", base / "hubert.pt", "--layer", 2, "--kmeans", base / "km.npy")
    return Speech(base, ("--recipe", "smoke", *sets), units)
