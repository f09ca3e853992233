"""The two judges of the lab world: one hears whole sentences of its grammar, one any sequence of its words."""

from __future__ import annotations

import random

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.lab import all_answers
from speechgpt_lib.metrics.judge import (
    SpeechJudge,
    bigram_judge,
    grammar_from_templates,
    template_judge,
)


def lab_judges() -> tuple[SpeechJudge, SpeechJudge]:
    """(template judge, bigram judge).  Neither is told what was meant to be said."""
    closed = [*world.STATEMENTS, *(answer for _, answer in world.QUESTIONS.values())]
    closed += [world.QUESTIONS[kind][0] for kind in world.CONTEXT_KINDS]
    opened = [world.QUESTIONS[kind][0] for kind in world.KNOWLEDGE_KINDS]
    grammar = grammar_from_templates(
        closed, world.SLOTS, opened=opened, openings=[o for o in world.OPENINGS if o]
    )
    return template_judge(grammar), bigram_judge(_sentences(), words=world.vocabulary())


def _sentences(count: int = 6000) -> list[str]:
    """Sentences of training only: the bigram judge never read a held-out one."""
    rng = random.Random("bigram judge")
    found = list(all_answers())
    while len(found) < count:
        text = (
            world.sample_statement(rng) if rng.random() < 0.4 else world.sample_question(rng).text
        )
        if not world.is_held_out(text):
            found.append(text)
    return found
