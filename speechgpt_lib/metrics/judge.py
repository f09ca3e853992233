"""Independent speech judge: a waveform → the words that another recogniser (pocketsphinx) hears.

The judge knows the language that may be spoken, never the sentence that was meant, nor what was
said before.  `template_judge` only hears sentences that a grammar allows, `bigram_judge` any order
of known words, preferably the word pairs of given sentences.  Neither is perfect on perfect speech,
so report both beside their own word error rate on the recordings (the "ceiling").
"""

import math
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.runs.processes import end_with_parent

SHORTEST = SAMPLE_RATE // 10  # samples: no word of English is shorter than 0.1 s
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below it there is nothing to amplify
PEAK, NOISE = 0.5, 1e-4  # what every utterance is brought to
# A grammar's last pass over the word lattice forgets where sentences may end ("the dog is red
# and"): left out, the search itself minds it.  Wider beams than usual make up for that pass.
WHOLE_SENTENCES = {"bestpath": False, "beam": 1e-60, "pbeam": 1e-60, "wbeam": 1e-40}


class Judge(Protocol):
    """Whatever turns waves, (samples,) at 16 kHz, into the words that it hears."""

    def transcribe(self, wave: np.ndarray) -> str:
        """What is heard; "" for silence."""

    def transcribe_many(self, waves: Iterable[np.ndarray]) -> list[str]:
        """What is heard in each, in order."""


def grammar_from_templates(
    templates: Sequence[str], slots: dict, opened: Sequence[str] = (), openings: Sequence[str] = ()
) -> str:
    """JSGF grammar of all sentences that templates such as `"the {animal} is {color}"` can make.

    `slots`: name → words, of which each is allowed anywhere, so the grammar also makes nonsense.
    `opened` are templates that may follow one of `openings` (templates too; empty ones are
    skipped).  Raises ValueError for a slot without words, or without any template.
    """
    if not [*templates, *opened]:
        raise ValueError("a grammar needs at least one template, found none")
    openings = [text for text in dict.fromkeys(openings) if text.strip()]
    names = re.findall(r"\{(\w+)\}", " ".join([*templates, *opened, *openings]))
    if empty := sorted({name for name in names if not slots.get(name)}):
        known = f"known slots: {', '.join(slots)}"
        raise ValueError(f"templates use the slots {', '.join(empty)} without words; {known}")

    def rules(texts: Iterable[str]) -> list[str]:
        return [re.sub(r"\{(\w+)\}", r"<\1>", text) for text in dict.fromkeys(texts)]

    lines = ["#JSGF V1.0;", "grammar judge;"]
    lines += [f"<{name}> = ( {' | '.join(slots[name])} );" for name in dict.fromkeys(names)]
    optional = ""
    if openings and opened:
        lines.append(f"<an_opening> = ( {' | '.join(rules(openings))} );")
        optional = "[ <an_opening> ] "
    sentences = rules(templates) + [optional + rule for rule in rules(opened)]
    lines.append("public <a_sentence> = " + "\n  | ".join(sentences) + " ;")
    return "\n".join(lines) + "\n"


def bigram_arpa(sentences: Iterable[str], words: Iterable[str] = ()) -> str:
    """Bigram language model of `sentences` (words separated by spaces) in the ARPA text format.

    Interpolated Witten-Bell smoothing (Witten & Bell 1991; Chen & Goodman 1999): with c(h) words
    after h, of which T(h) are distinct, P(w|h) = (c(hw) + T(h) P(w)) / (c(h) + T(h)), and the
    back-off weight of h is T(h) / (c(h) + T(h)).  One is added to the count behind each P(w), so
    that `words` which no sentence contains can be heard too.  Raises ValueError without any word.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for spoken in filter(None, map(str.split, sentences)):
        pairs.update(zip(["<s>", *spoken], [*spoken, "</s>"], strict=True))
    if not pairs:
        raise ValueError("a bigram model needs at least one word, found none")

    unigrams = Counter(dict.fromkeys(words, 1))
    after, distinct_after = Counter(), Counter()  # c(h) and T(h)
    for (history, word), count in pairs.items():
        unigrams[word] += count + (word not in unigrams)
        after[history] += count
        distinct_after[history] += 1
    total = sum(unigrams.values())
    backoff = {h: distinct_after[h] / (after[h] + distinct_after[h]) for h in after}

    lines = ["\\data\\", f"ngram 1={len(unigrams) + 1}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    lines.append(f"-99 <s> {math.log10(backoff['<s>']):.6f}")
    for word, count in sorted(unigrams.items()):
        weight = math.log10(backoff.get(word, 1))
        lines.append(f"{math.log10(count / total):.6f} {word} {weight:.6f}")
    lines += ["", "\\2-grams:"]
    for (history, word), count in sorted(pairs.items()):
        kinds = distinct_after[history]
        share = (count + kinds * unigrams[word] / total) / (after[history] + kinds)
        lines.append(f"{math.log10(share):.6f} {history} {word}")
    return "\n".join([*lines, "", "\\end\\", ""])


def template_judge(grammar: str) -> "SpeechJudge":
    """A judge that hears whole sentences of the JSGF text `grammar`, or nothing, as of noise."""
    body = re.sub(r"#JSGF[^;]*;|\bgrammar\s+[^;]*;|\bpublic\b|<[^>]*>|/[\d.]+/", " ", grammar)
    words = re.sub(r"[|()\[\]=;*+]", " ", body).split()
    return SpeechJudge("template", grammar, words, "jsgf", lm=None, **WHOLE_SENTENCES)


def bigram_judge(sentences: Iterable[str], words: Iterable[str] = ()) -> "SpeechJudge":
    """A judge that hears any sequence of the words in `sentences` and `words`.

    Pass training sentences only: their bigrams weigh, so a judge of held-out ones would know them.
    """
    sentences, words = list(sentences), list(words)
    spoken = [*words, *" ".join(sentences).split()]
    return SpeechJudge("bigram", bigram_arpa(sentences, words), spoken, "lm")


class SpeechJudge:
    """A recogniser that listens for one language; made by `template_judge` or `bigram_judge`.

    `language` is JSGF or ARPA text of `words`, `option` what pocketsphinx calls it.  Raises
    UserError where pocketsphinx is not installed or its dictionary (CMUdict) lacks a word.
    """

    def __init__(self, kind: str, language: str, words: Iterable[str], option: str, **options: Any):
        try:
            import pocketsphinx
        except ImportError as error:
            found = "the speech judge needs pocketsphinx, which is not installed"
            cure = "pip install -e '.[judge]', or do without the measures that judge audio"
            raise UserError(f"{found}: {cure}") from error
        # A dictionary of these words alone: with it a decoder starts ten times faster.
        wanted, found = set(words), {}
        path = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"))
        for line in path.read_text(encoding="utf-8").splitlines():
            word = line.partition(" ")[0].partition("(")[0]
            if word in wanted:
                found.setdefault(word, []).append(line)
        if absent := sorted(wanted - found.keys()):
            lacks = f"cannot hear {', '.join(absent)}: not in pocketsphinx's dictionary"
            raise UserError(f"the {kind} judge {lacks}; use others, or judge no such sentences")
        self.made_of = kind, language, sorted(wanted), option, dict(options)
        with tempfile.TemporaryDirectory() as folder:  # the library reads files only
            text, dictionary = Path(folder) / "language", Path(folder) / "words.dict"
            text.write_text(language, encoding="utf-8")
            lines = "\n".join([line for spoken in found.values() for line in spoken])
            dictionary.write_text(f"{lines}\n", encoding="utf-8")
            options |= {"dict": str(dictionary), option: str(text)}
            self.decoder = pocketsphinx.Decoder(cmn="batch", loglevel="FATAL", **options)

    def __reduce__(self) -> tuple:
        """A decoder can't go to another process: there it is made anew."""
        return _made_again, self.made_of

    def transcribe(self, wave: np.ndarray) -> str:
        """The words heard in float samples (n,) at 16 kHz, of any loudness, in lower case.

        Empty for silence and for anything shorter than 0.1 s.  Raises ValueError unless `wave` is
        one channel of finite numbers.
        """
        pcm = _prepare(wave)
        if pcm is None:
            return ""
        self.decoder.reinit_feat()  # forget the last utterance's noise, else the order matters
        self.decoder.start_utt()
        self.decoder.process_raw(pcm.tobytes(), full_utt=True)
        self.decoder.end_utt()
        heard = self.decoder.hyp()
        # the dictionary numbers second pronunciations: "the(2)"
        return " ".join(re.sub(r"\(\d+\)", "", heard.hypstr).split()) if heard else ""

    def transcribe_many(self, waves: Iterable[np.ndarray]) -> list[str]:
        """`transcribe` for each of `waves`, in order."""
        return [self.transcribe(wave) for wave in waves]


def _made_again(kind: str, language: str, words: list[str], option: str, options: dict):
    return SpeechJudge(kind, language, words, option, **options)


_KEPT: dict[str, Judge] = {}  # of a process that hears for another


def keep(judges: dict[str, Judge]) -> None:
    """Be a process that hears by these judges, until the one that wants it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _KEPT.update(judges)


def hear(name: str, wave: np.ndarray) -> str:
    """In such a process: what the judge of that name hears in a wave."""
    return _KEPT[name].transcribe(wave)


def audible(wave: np.ndarray) -> np.ndarray | None:
    """The wave as float32; None for silence and for anything shorter than 0.1 s.

    Raises ValueError unless it is one channel of finite numbers.
    """
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise ValueError(f"the judge expects one channel (samples,), found shape {wave.shape}")
    if len(wave) < SHORTEST:
        return None
    if not np.isfinite(wave).all():
        raise ValueError("the judge found NaN or infinity in a waveform: has the vocoder diverged?")
    return wave if float(np.abs(wave).max()) >= SILENCE_PEAK else None


def _prepare(wave: np.ndarray) -> np.ndarray | None:
    """16-bit samples of fixed peak, with silence around and a little noise; None if inaudible."""
    wave = audible(wave)
    if wave is None:
        return None
    padded = np.pad(wave * (PEAK / float(np.abs(wave).max())), SHORTEST)
    # Digital silence has no logarithm; the same noise for every utterance keeps it repeatable.
    padded += NOISE * np.random.default_rng(0).standard_normal(len(padded), dtype=np.float32)
    return np.clip(np.round(padded * 32767), -32768, 32767).astype(np.int16)
