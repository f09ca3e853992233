"""Independent speech judge: turns a waveform into the words that another recogniser (pocketsphinx) hears in it.

The judge knows the language that may be spoken, never the sentence that was meant.  It comes in two strictnesses:
`template_judge` only hears sentences that a grammar allows, `bigram_judge` hears any order of known words and prefers
the word pairs of given sentences.  Neither is perfect on perfect speech, so report both beside their own word error
rate on the recordings themselves (the "ceiling").

Decoding does not depend on what was decoded before: cepstral means are taken over each utterance alone.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE

SHORTEST_S = 0.1  # no word of English is shorter
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below it there is nothing to amplify
_PADDING = SAMPLE_RATE // 10
_PEAK, _NOISE = 0.5, 1e-4
# A grammar's last pass over the word lattice forgets where sentences may end ("the dog is red and"): left out, the search itself
# minds it.  Beams a little wider than usual make up for that pass.
_WHOLE = {"bestpath": False, "beam": 1e-60, "pbeam": 1e-60, "wbeam": 1e-40}


def grammar_from_templates(
    templates: Sequence[str],
    slots: Mapping[str, Sequence[str]],
    opened: Sequence[str] = (),
    openings: Sequence[str] = (),
) -> str:
    """JSGF grammar of all sentences that templates such as `"the {animal} is {color}"` can make.

    templates: sentences as lower-case words and `{slot}` marks.
    slots: the words that each slot may take; slots are independent, so the grammar also allows nonsense.
    opened: further templates, which may be preceded by one of `openings` (templates too; empty ones are skipped).
    Raises ValueError for a slot without words or when there is no template at all.
    """
    if not [*templates, *opened]:
        raise ValueError("a grammar needs at least one template, found none")

    def rule(template: str) -> str:
        return re.sub(r"\{(\w+)\}", r"<\1>", template)

    openings = [text for text in dict.fromkeys(openings) if text.strip()]
    names = re.findall(r"\{(\w+)\}", " ".join([*templates, *opened, *openings]))
    if empty := sorted({name for name in names if not slots.get(name)}):
        raise ValueError(
            f"templates use the slots {', '.join(empty)}, which have no words; known slots: {', '.join(slots)}"
        )

    lines = ["#JSGF V1.0;", "grammar judge;"]
    lines += [f"<{name}> = ( {' | '.join(slots[name])} );" for name in dict.fromkeys(names)]
    sentences = [rule(template) for template in dict.fromkeys(templates)]
    if openings and opened:
        lines.append(f"<an_opening> = ( {' | '.join(map(rule, openings))} );")
        sentences += [f"[ <an_opening> ] {rule(template)}" for template in dict.fromkeys(opened)]
    else:
        sentences += [rule(template) for template in dict.fromkeys(opened)]
    lines.append("public <a_sentence> = " + "\n  | ".join(sentences) + " ;")
    return "\n".join(lines) + "\n"


def bigram_arpa(sentences: Iterable[str], words: Iterable[str] = ()) -> str:
    """Bigram language model of `sentences` (words separated by spaces) in the ARPA text format, base-10 logarithms.

    Interpolated Witten-Bell smoothing (Witten & Bell 1991; Chen & Goodman 1999): with c(h) words after h, of which T(h)
    are distinct, P(w|h) = (c(hw) + T(h) P(w)) / (c(h) + T(h)), and the back-off weight of h is T(h) / (c(h) + T(h)).
    One is added to the count behind each P(w), so that `words` which no sentence contains can be heard as well.
    Raises ValueError when there is no word.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for sentence in sentences:
        if spoken := sentence.split():
            pairs.update(zip(["<s>", *spoken], [*spoken, "</s>"], strict=True))
    if not pairs:
        raise ValueError("a bigram model needs at least one word, found none")

    unigrams = Counter({word: 1 for word in words})
    after, distinct_after, continuations = Counter(), Counter(), defaultdict(list)
    for (history, word), count in sorted(pairs.items()):
        unigrams[word] += count + (word not in unigrams)
        after[history] += count
        distinct_after[history] += 1
        continuations[history].append(word)
    total = sum(unigrams.values())
    backoff = {h: distinct_after[h] / (after[h] + distinct_after[h]) for h in after}

    lines = ["\\data\\", f"ngram 1={len(unigrams) + 1}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    lines.append(f"-99 <s> {math.log10(backoff['<s>']):.6f}")
    for word in sorted(unigrams):
        lines.append(
            f"{math.log10(unigrams[word] / total):.6f} {word} {math.log10(backoff.get(word, 1)):.6f}"
        )
    lines += ["", "\\2-grams:"]
    for history in sorted(continuations):
        for word in continuations[history]:
            count = pairs[history, word] + distinct_after[history] * unigrams[word] / total
            lines.append(
                f"{math.log10(count / (after[history] + distinct_after[history])):.6f} {history} {word}"
            )
    return "\n".join([*lines, "", "\\end\\", ""])


def template_judge(grammar: str) -> SpeechJudge:
    """Judge that hears only what the JSGF text `grammar` allows (see `grammar_from_templates`).

    It hears whole sentences or nothing: speech cut off in the middle, or noise, comes out empty.
    """
    return SpeechJudge("template", grammar)


def bigram_judge(
    sentences: Iterable[str], words: Iterable[str] = (), work: Path | None = None
) -> SpeechJudge:
    """Judge that hears any sequence of the words in `sentences` and of `words`, weighted by the bigrams of `sentences`.

    Pass training sentences only: a judge that has read the held-out ones would know them.
    work: folder in which the model is kept as `bigram.arpa` for people to look at; None keeps no file.
    """
    model = bigram_arpa(sentences, words)
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        unfinished = work / "bigram.arpa.partial"
        unfinished.write_text(model, encoding="utf-8")
        unfinished.replace(work / "bigram.arpa")
    return SpeechJudge("bigram", model)


def missing_words(words: Iterable[str]) -> list[str]:
    """The `words` that the judge's pronunciation dictionary (CMUdict) lacks, sorted: it could never hear them."""
    wanted = set(words)
    return sorted(wanted - set(_pronunciations(wanted)))


@dataclass
class SpeechJudge:
    """A recogniser and the language it listens for; made by `template_judge` or `bigram_judge`.

    kind: "template" or "bigram".  language: JSGF or ARPA text.
    Raises UserError when pocketsphinx is not installed or its dictionary lacks a word of the language.
    """

    kind: str
    language: str
    decoder: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = (
            _jsgf_words(self.language) if self.kind == "template" else _arpa_words(self.language)
        )
        if absent := missing_words(words):
            raise UserError(
                f"the {self.kind} judge cannot hear {', '.join(absent)}: not in pocketsphinx's dictionary, which has "
                "every word of the lab world; use other words, or leave these sentences out of the judged set"
            )
        with tempfile.TemporaryDirectory() as folder:  # the library reads files only
            language, dictionary = Path(folder) / "language", Path(folder) / "words.dict"
            language.write_text(self.language, encoding="utf-8")
            lines = [line for spoken in _pronunciations(words).values() for line in spoken]
            dictionary.write_text("\n".join([*lines, ""]), encoding="utf-8")
            source = (
                {"jsgf": str(language), "lm": None, **_WHOLE}
                if self.kind == "template"
                else {"lm": str(language)}
            )
            self.decoder = _pocketsphinx().Decoder(
                dict=str(dictionary), cmn="batch", loglevel="FATAL", **source
            )

    def transcribe(self, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
        """The words heard in `wave`, (samples,) floats, at `sample_rate` Hz: lower case, separated by single spaces.

        Empty for silence and for anything shorter than 0.1 s.  Loudness does not matter.
        Raises ValueError unless `wave` is one channel of finite numbers.
        """
        pcm = _prepare(wave, sample_rate)
        if pcm is None:
            return ""
        self.decoder.reinit_feat()  # forget the last utterance's noise estimate: else results depend on the order
        self.decoder.start_utt()
        self.decoder.process_raw(pcm.tobytes(), full_utt=True)
        self.decoder.end_utt()
        heard = self.decoder.hyp()
        # the dictionary numbers second pronunciations: "the(2)"
        return " ".join(re.sub(r"\(\d+\)", "", heard.hypstr).split()) if heard else ""

    def transcribe_many(
        self, waves: Sequence[np.ndarray], sample_rate: int = SAMPLE_RATE, processes: int = 1
    ) -> list[str]:
        """`transcribe` for each of `waves`, in order; `processes` > 1 shares them among that many processes."""
        processes = min(processes, len(waves))
        if processes <= 1:
            return [self.transcribe(wave, sample_rate) for wave in waves]
        # Spawned, not forked: a fork of a process whose torch threads hold a lock can hang.
        transcribe = functools.partial(_transcribe_elsewhere, self.kind, self.language, sample_rate)
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            return list(pool.imap(transcribe, waves, chunksize=4))


@functools.lru_cache(maxsize=1)
def _judge_here(kind: str, language: str) -> SpeechJudge:
    """The judge of this worker process, made once: it holds a decoder, which can't be sent there."""
    return SpeechJudge(kind, language)


def _transcribe_elsewhere(kind: str, language: str, sample_rate: int, wave: np.ndarray) -> str:
    return _judge_here(kind, language).transcribe(wave, sample_rate)


def _pocketsphinx() -> Any:
    try:
        import pocketsphinx
    except ImportError as error:
        raise UserError(
            "the speech judge needs pocketsphinx, which is not installed: pip install -e '.[judge]', "
            "or do without the measures that judge audio"
        ) from error
    return pocketsphinx


def _pronunciations(words: Iterable[str]) -> dict[str, list[str]]:
    """The dictionary's lines for those of `words` that it has; a decoder with these alone starts ten times faster."""
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


def _prepare(wave: np.ndarray, sample_rate: int) -> np.ndarray | None:
    """16-bit samples at 16 kHz: fixed peak, silence around, a whisper of noise; None when nothing is audible."""
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise ValueError(
            f"the judge expects one channel of shape (samples,), found shape {wave.shape}"
        )
    if len(wave) < SHORTEST_S * sample_rate:
        return None
    if not np.isfinite(wave).all():
        raise ValueError(
            "the judge expects finite samples, found NaN or infinity: has the vocoder diverged?"
        )
    if sample_rate != SAMPLE_RATE:
        wave = soxr.resample(wave, sample_rate, SAMPLE_RATE)
    peak = float(np.abs(wave).max())
    if peak < SILENCE_PEAK:
        return None
    padded = np.pad(wave * (_PEAK / peak), _PADDING)
    # digital silence has no logarithm; the noise is the same for every utterance, so the judge stays deterministic
    padded += _NOISE * np.random.default_rng(0).standard_normal(len(padded), dtype=np.float32)
    return np.clip(np.round(padded * 32767), -32768, 32767).astype(np.int16)
