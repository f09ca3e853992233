"""Independent speech judge: a waveform → the words that another recogniser (pocketsphinx) hears.

The judge knows the language that may be spoken, never the sentence that was meant.  It comes in two
strictnesses: `template_judge` only hears sentences that a grammar allows, `bigram_judge` hears any
order of known words and prefers the word pairs of given sentences.  Neither is perfect on perfect
speech, so report both beside their own word error rate on the recordings (the "ceiling").

Decoding does not depend on what was decoded before: cepstral means are those of one utterance.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE

SHORTEST = SAMPLE_RATE // 10  # samples: no word of English is shorter than 0.1 s
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below it there is nothing to amplify
PEAK, NOISE = 0.5, 1e-4  # what every utterance is brought to
# A grammar's last pass over the word lattice forgets where sentences may end ("the dog is red
# and"): left out, the search itself minds it.  Wider beams than usual make up for that pass.
WHOLE_SENTENCES = {"bestpath": False, "beam": 1e-60, "pbeam": 1e-60, "wbeam": 1e-40}


def grammar_from_templates(
    templates: Sequence[str],
    slots: Mapping[str, Sequence[str]],
    opened: Sequence[str] = (),
    openings: Sequence[str] = (),
) -> str:
    """JSGF grammar of all sentences that templates such as `"the {animal} is {color}"` can make.

    Each slot takes any of its words, independently, so the grammar also allows nonsense.  `opened`
    are templates that may follow one of `openings` (templates too; empty ones are skipped).
    Raises ValueError for a slot without words, or without any template.
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


def template_judge(grammar: str) -> SpeechJudge:
    """A judge that hears only what the JSGF text `grammar` allows (see `grammar_from_templates`).

    It hears whole sentences or nothing: speech cut off in the middle, or noise, comes out empty.
    """
    return SpeechJudge("template", grammar)


def bigram_judge(sentences: Iterable[str], words: Iterable[str] = ()) -> SpeechJudge:
    """A judge that hears any sequence of the words in `sentences` and `words`.

    The bigrams of `sentences` weigh what is likely.  Pass training sentences only: a judge that has
    read the held-out ones would know them.
    """
    return SpeechJudge("bigram", bigram_arpa(sentences, words))


def missing_words(words: Iterable[str]) -> list[str]:
    """The `words` that the judge's dictionary (CMUdict) lacks, sorted: it could never hear them."""
    wanted = set(words)
    return sorted(wanted - set(_pronunciations(wanted)))


@dataclass
class SpeechJudge:
    """A recogniser and the language it listens for; made by `template_judge` or `bigram_judge`.

    `kind` is "template" or "bigram", `language` JSGF or ARPA text.  Raises UserError where
    pocketsphinx is not installed or its dictionary lacks a word of the language.
    """

    kind: str
    language: str
    decoder: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        grammar = self.kind == "template"
        words = _jsgf_words(self.language) if grammar else _arpa_words(self.language)
        if absent := missing_words(words):
            raise UserError(
                f"the {self.kind} judge cannot hear {', '.join(absent)}: not in pocketsphinx's "
                "dictionary; use other words, or leave these sentences out of the judged set"
            )
        with tempfile.TemporaryDirectory() as folder:  # the library reads files only
            language, dictionary = Path(folder) / "language", Path(folder) / "words.dict"
            language.write_text(self.language, encoding="utf-8")
            lines = [line for spoken in _pronunciations(words).values() for line in spoken]
            dictionary.write_text("\n".join([*lines, ""]), encoding="utf-8")
            options = {"dict": str(dictionary), "cmn": "batch", "loglevel": "FATAL"}
            if grammar:
                options |= {"jsgf": str(language), "lm": None, **WHOLE_SENTENCES}
            else:
                options |= {"lm": str(language)}
            self.decoder = _pocketsphinx().Decoder(**options)

    def transcribe(self, wave: np.ndarray) -> str:
        """The words heard in float samples (n,) at 16 kHz, in lower case with single spaces.

        Empty for silence and for anything shorter than 0.1 s.  Loudness does not matter.
        Raises ValueError unless `wave` is one channel of finite numbers.
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


def _pocketsphinx() -> Any:
    try:
        import pocketsphinx
    except ImportError as error:
        raise UserError(
            "the speech judge needs pocketsphinx, which is not installed: "
            "pip install -e '.[judge]', or do without the measures that judge audio"
        ) from error
    return pocketsphinx


def _pronunciations(words: Iterable[str]) -> dict[str, list[str]]:
    """The dictionary's lines for `words`: a decoder with these alone starts ten times faster."""
    wanted, found = set(words), defaultdict(list)
    path = Path(_pocketsphinx().get_model_path("en-us/cmudict-en-us.dict"))
    for line in path.read_text(encoding="utf-8").splitlines():
        word = line.partition(" ")[0].partition("(")[0]
        if word in wanted:
            found[word].append(line)
    return found


def _jsgf_words(grammar: str) -> list[str]:
    body = re.sub(r"#JSGF[^;]*;|\bgrammar\s+[^;]*;|\bpublic\b|<[^>]*>|/[\d.]+/", " ", grammar)
    return re.sub(r"[|()\[\]=;*+]", " ", body).split()


def _arpa_words(model: str) -> list[str]:
    unigrams = model.partition("\\1-grams:")[2].partition("\\2-grams:")[0]
    return [word for word in unigrams.split()[1::3] if word not in ("<s>", "</s>")]


def _prepare(wave: np.ndarray) -> np.ndarray | None:
    """16-bit samples of fixed peak, with silence around and a little noise; None if inaudible."""
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise ValueError(f"the judge expects one channel (samples,), found shape {wave.shape}")
    if len(wave) < SHORTEST:
        return None
    if not np.isfinite(wave).all():
        raise ValueError("the judge found NaN or infinity in a waveform: has the vocoder diverged?")
    peak = float(np.abs(wave).max())
    if peak < SILENCE_PEAK:
        return None
    padded = np.pad(wave * (PEAK / peak), SHORTEST)
    # Digital silence has no logarithm.  The noise is the same for every utterance, so the judge
    # stays deterministic.
    padded += NOISE * np.random.default_rng(0).standard_normal(len(padded), dtype=np.float32)
    return np.clip(np.round(padded * 32767), -32768, 32767).astype(np.int16)
