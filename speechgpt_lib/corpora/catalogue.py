"""The corpora of recorded speech: what they are, their folders, and which corpus a folder holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from speechgpt_lib.corpora.lists import chapters, files, folders, subset_folders
from speechgpt_lib.errors import UserError


@dataclass(frozen=True)
class Published:
    """A corpus as published, with its hours and licence.

    `manual`: the steps to get one that can't be fetched without an agreement.
    """

    name: str
    title: str
    hours: str
    licence: str
    layout: str
    is_here: Callable[[Path], bool]
    manual: str | None = None


def find_corpus(name: str) -> Published:
    """The corpus of that name.  Raises UserError, which names all."""
    if name not in CORPORA:
        known = ", ".join(CORPORA)
        raise UserError(f"unknown corpus {name!r}: choose {known} (speechgpt corpora list)")
    return CORPORA[name]


def require_corpus(root: Path | str, name: str) -> Path:
    """`root` as a path, if the corpus called `name` is there.

    Raises UserError, which says what is there instead, and what to try.
    """
    root, corpus = Path(root).expanduser(), find_corpus(name)
    if not root.is_dir():
        raise UserError(f"no folder at {root}: give the folder that holds {corpus.layout}")
    if corpus.is_here(root):
        return root
    inside = sorted(os.listdir(root))
    found = ", ".join(inside[:5]) + f" and {len(inside) - 5} more" * (len(inside) > 5)
    what = f"found {found or 'nothing'}; expected {corpus.layout}{_hint(root, corpus)}"
    raise UserError(f"{root} is not {corpus.title}: {what}")


def language_folders(root: Path) -> list[str]:
    """Folders of one language of Common Voice, relative to `root`; `.` where it is one itself."""
    there = (name for name in [".", *folders(root)] if (root / name / "clips").is_dir())
    return [name for name in there if files(root / name, ".tsv")]


def _has_chapters(root: Path, *suffixes: str) -> bool:
    """Whether one of the first chapters has files of each suffix."""
    first = islice(chapters(root, subset_folders(root)), 20)
    return any(all(files(root / name, suffix) for suffix in suffixes) for _, _, name in first)


def _hint(root: Path, wanted: Published) -> str:
    others = [corpus for corpus in CORPORA.values() if corpus is not wanted]
    for other in others:
        if _holds(root, other):
            return f". It looks like {other.title}: read it as {other.name}"
    # Most often the folder above or below was meant.
    above = root.resolve().parent
    near = [*(root / name for name in folders(root)[:20]), above, above.parent]
    for corpus in (wanted, *others):
        if folder := next((folder for folder in near if _holds(folder, corpus)), None):
            also = "" if corpus is wanted else f" and read it as {corpus.name}"
            return f". {folder} looks like {corpus.title}: give that folder{also}"
    return ""


def _holds(folder: Path, corpus: Published) -> bool:
    try:
        return corpus.is_here(folder)
    except OSError:  # not ours to read
        return False


_LIBRISPEECH = Published(
    "librispeech",
    "LibriSpeech",
    "982 h, with text",
    "CC BY 4.0",
    "SUBSET/SPEAKER/CHAPTER/*.flac and *.trans.txt, with subsets such as dev-clean",
    lambda root: _has_chapters(root, ".trans.txt"),
)
_COMMON_VOICE = Published(
    "common_voice",
    "Common Voice",
    "depends on release and language, with text",
    "CC0 1.0",
    "clips/*.mp3 and train.tsv, dev.tsv, test.tsv, validated.tsv, in one folder a language",
    lambda root: bool(language_folders(root)),
    """\
1. Make an account where Mozilla gives Common Voice away: commonvoice.mozilla.org leads there \
(Mozilla Data Collective).
2. Agree to the terms (CC0; nobody may try to find out who speaks), choose language and release, \
download.
3. tar -xzf cv-corpus-*.tar.gz -C DIR
4. speechgpt corpora prepare common_voice DIR/cv-corpus-RELEASE -o TABLE \
--split train --split dev --split test""",
)
_GIGASPEECH = Published(
    "gigaspeech",
    "GigaSpeech",
    "10,000 h (XL), with text",
    "Apache 2.0 for the transcripts; the audio for research only, on application",
    "GigaSpeech.json and audio/SOURCE/*/*.opus",
    lambda root: (root / "GigaSpeech.json").is_file(),
    """\
1. Fill in the form that github.com/SpeechColab/GigaSpeech links to under Download; a mail with a \
password follows.
2. git clone https://github.com/SpeechColab/GigaSpeech.git, and put the password where its README \
says.
3. utils/download_gigaspeech.sh DIR      (about 1 TB for the whole; the README tells how to fetch \
a subset)
4. speechgpt corpora prepare gigaspeech DIR -o TABLE --split XS""",
)
_LIBRI_LIGHT = Published(
    "libri_light",
    "Libri-Light",
    "57,704 h, without text",
    "public domain (LibriVox)",
    "SUBSET/SPEAKER/BOOK/*.flac, a .json with voice_activity beside each, with the subsets small, "
    "medium, large",
    lambda root: _has_chapters(root, ".json", ".flac"),
)
_LJ_SPEECH = Published(
    "lj_speech",
    "LJSpeech",
    "24 h of one speaker, with text",
    "public domain (LibriVox)",
    "metadata.csv and wavs/*.wav",
    lambda root: (root / "metadata.csv").is_file() and (root / "wavs").is_dir(),
    """\
1. Get LJSpeech-1.1.tar.bz2 (2.6 GB) from keithito.com/LJ-Speech-Dataset.
2. tar -xjf LJSpeech-1.1.tar.bz2 -C DIR
3. speechgpt corpora prepare lj_speech DIR/LJSpeech-1.1 -o TABLE""",
)
_VCTK = Published(
    "vctk",
    "VCTK",
    "44 h of 110 speakers, with text",
    "CC BY 4.0",
    "wav48_silence_trimmed/SPEAKER/*_mic1.flac (or wav48/SPEAKER/*.wav) and txt/SPEAKER/*.txt",
    lambda root: any((root / name).is_dir() for name in ("wav48_silence_trimmed", "wav48")),
    """\
1. Get VCTK-Corpus-0.92.zip (11 GB) from Edinburgh DataShare (datashare.ed.ac.uk, handle \
10283/3443).
2. unzip VCTK-Corpus-0.92.zip -d DIR
3. speechgpt corpora prepare vctk DIR -o TABLE""",
)
_ALL = (_LIBRISPEECH, _COMMON_VOICE, _GIGASPEECH, _LIBRI_LIGHT, _LJ_SPEECH, _VCTK)
CORPORA = {corpus.name: corpus for corpus in _ALL}
