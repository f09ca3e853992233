"""The corpora of recorded speech: what they are, how their folders look, and which corpus a folder holds."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechgpt_lib.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """`hours` and `licence` are as published; `manual` holds the steps to get a corpus that can't be fetched without an agreement."""

    name: str
    title: str
    hours: str
    licence: str
    layout: str
    is_here: Callable[[Path], bool]
    manual: str | None = None


def folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted; hidden ones don't count."""
    return sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def files(root: Path, suffix: str) -> list[str]:
    """Names of the files in `root` that end in `suffix`, sorted; hidden ones (macOS leaves `._name` beside `name`) don't count."""
    return sorted(
        e.name
        for e in os.scandir(root)
        if e.name.endswith(suffix) and not e.name.startswith(".") and not e.is_dir()
    )


def subset_folders(root: Path) -> list[str]:
    """Folders that hold speakers, whose names are numbers: the subsets of LibriSpeech and Libri-Light."""
    return [
        name for name in folders(root) if any(inner.isdigit() for inner in folders(root / name))
    ]


def language_folders(root: Path) -> list[str]:
    """Folders of one language of Common Voice in `root`, relative to it; `.` where `root` is one itself."""
    return [
        name
        for name in [".", *folders(root)]
        if (root / name / "clips").is_dir() and files(root / name, ".tsv")
    ]


def _third_level(root: Path) -> Iterator[Path]:
    for subset in subset_folders(root):
        for speaker in folders(root / subset):
            if speaker.isdigit():
                yield from (
                    root / subset / speaker / inner for inner in folders(root / subset / speaker)
                )


def _is_librispeech(root: Path) -> bool:
    return any(files(folder, ".trans.txt") for folder in itertools.islice(_third_level(root), 20))


def _is_libri_light(root: Path) -> bool:
    return any(
        files(folder, ".json") and files(folder, ".flac")
        for folder in itertools.islice(_third_level(root), 20)
    )


def _is_lj_speech(root: Path) -> bool:
    return (root / "metadata.csv").is_file() and (root / "wavs").is_dir()


def _is_vctk(root: Path) -> bool:
    return any((root / name).is_dir() for name in ("wav48_silence_trimmed", "wav48"))


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "librispeech",
            "LibriSpeech",
            "982 h, with text",
            "CC BY 4.0",
            "SUBSET/SPEAKER/CHAPTER/*.flac and *.trans.txt, with subsets such as dev-clean",
            _is_librispeech,
        ),
        Corpus(
            "common_voice",
            "Common Voice",
            "depends on release and language, with text",
            "CC0 1.0",
            "clips/*.mp3 and train.tsv, dev.tsv, test.tsv, validated.tsv, in one folder a language",
            lambda root: bool(language_folders(root)),
            "1. Make an account where Mozilla gives Common Voice away: commonvoice.mozilla.org leads there (Mozilla Data Collective).\n"
            "2. Agree to the terms (CC0; nobody may try to find out who speaks), choose language and release, download.\n"
            "3. tar -xzf cv-corpus-*.tar.gz -C DIR\n"
            "4. speechgpt corpora prepare common_voice DIR/cv-corpus-RELEASE -o TABLE --split train --split dev --split test",
        ),
        Corpus(
            "gigaspeech",
            "GigaSpeech",
            "10,000 h (XL), with text",
            "Apache 2.0 for the transcripts; the audio for research only, on application",
            "GigaSpeech.json and audio/SOURCE/*/*.opus",
            lambda root: (root / "GigaSpeech.json").is_file(),
            "1. Fill in the form that github.com/SpeechColab/GigaSpeech links to under Download; a mail with a password follows.\n"
            "2. git clone https://github.com/SpeechColab/GigaSpeech.git, and put the password where its README says.\n"
            "3. utils/download_gigaspeech.sh DIR      (about 1 TB for the whole; the README tells how to fetch a subset)\n"
            "4. speechgpt corpora prepare gigaspeech DIR -o TABLE --split XS",
        ),
        Corpus(
            "libri_light",
            "Libri-Light",
            "57,704 h, without text",
            "public domain (LibriVox)",
            "SUBSET/SPEAKER/BOOK/*.flac, a .json with voice_activity beside each, with the subsets small, medium, large",
            _is_libri_light,
        ),
        Corpus(
            "lj_speech",
            "LJSpeech",
            "24 h of one speaker, with text",
            "public domain (LibriVox)",
            "metadata.csv and wavs/*.wav",
            _is_lj_speech,
            "1. Get LJSpeech-1.1.tar.bz2 (2.6 GB) from keithito.com/LJ-Speech-Dataset.\n"
            "2. tar -xjf LJSpeech-1.1.tar.bz2 -C DIR\n"
            "3. speechgpt corpora prepare lj_speech DIR/LJSpeech-1.1 -o TABLE",
        ),
        Corpus(
            "vctk",
            "VCTK",
            "44 h of 110 speakers, with text",
            "CC BY 4.0",
            "wav48_silence_trimmed/SPEAKER/*_mic1.flac (or wav48/SPEAKER/*.wav) and txt/SPEAKER/*.txt",
            _is_vctk,
            "1. Get VCTK-Corpus-0.92.zip (11 GB) from Edinburgh DataShare (datashare.ed.ac.uk, handle 10283/3443).\n"
            "2. unzip VCTK-Corpus-0.92.zip -d DIR\n"
            "3. speechgpt corpora prepare vctk DIR -o TABLE",
        ),
    )
}


def find_corpus(name: str) -> Corpus:
    if name not in CORPORA:
        raise UserError(
            f"unknown corpus {name!r}: choose {', '.join(CORPORA)} (speechgpt corpora list)"
        )
    return CORPORA[name]


def require_corpus(root: Path | str, name: str) -> Path:
    """`root` as a path, if the corpus called `name` is there; else a UserError that says what is there instead, and what to try."""
    root, corpus = Path(root).expanduser(), find_corpus(name)
    if not root.is_dir():
        raise UserError(f"no folder at {root}: give the folder that holds {corpus.layout}")
    if corpus.is_here(root):
        return root
    inside = sorted(os.listdir(root))
    found = (
        ", ".join(inside[:5]) + (f" and {len(inside) - 5} more" if len(inside) > 5 else "")
        if inside
        else "nothing"
    )
    raise UserError(
        f"{root} is not {corpus.title}: found {found}; expected {corpus.layout}{_hint(root, corpus)}"
    )


def chosen_splits(
    asked: str | Sequence[str] | None, there: Sequence[str], where: Path
) -> list[str]:
    """The splits asked for in the order of `there` (all of them for None), or a UserError that names those that are there."""
    if asked is None:
        return list(there)
    wanted = {asked} if isinstance(asked, str) else set(asked)
    if unknown := sorted(wanted - set(there)):
        raise UserError(
            f"no split {', '.join(unknown)} in {where}: there are {', '.join(there) or 'none'}"
        )
    return [name for name in there if name in wanted]


def _hint(root: Path, wanted: Corpus) -> str:
    others = [corpus for corpus in CORPORA.values() if corpus is not wanted]
    for other in others:
        if _holds(root, other):
            return f". It looks like {other.title}: try --corpus {other.name}"
    # Most often the folder above or below was meant.
    near = [
        *(root / name for name in folders(root)[:20]),
        root.resolve().parent,
        root.resolve().parent.parent,
    ]
    for corpus in (wanted, *others):
        for folder in near:
            if _holds(folder, corpus):
                also = "" if corpus is wanted else f" with --corpus {corpus.name}"
                return f". {folder} looks like {corpus.title}: give that folder{also}"
    return ""


def _holds(folder: Path, corpus: Corpus) -> bool:
    try:
        return corpus.is_here(folder)
    except OSError:  # not ours to read
        return False
