"""The model: its start as an induction circuit, its loss, its batches and its decoding."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import chain_row, cross_modal_row
from speechgpt_lib.language_model import planning
from speechgpt_lib.language_model.adapters import add_lora, load_adapter, save_adapter
from speechgpt_lib.language_model.documents import document_rows, question_prompt
from speechgpt_lib.language_model.generation import answer, generate, speak, transcribe
from speechgpt_lib.language_model.model import CausalLoss
from speechgpt_lib.language_model.rows import EpochBatches, TokenRow, collate, row_to_tokens
from speechgpt_lib.language_model.stages import Replay, stage2_plan, unit_perplexity
from speechgpt_lib.recipes.schema import LoraSettings
from tests.builders import lab_corpora, tiny_language_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary(20)


def test_it_starts_with_heads_that_look_back_a_fixed_distance() -> None:
    model = tiny_language_model(VOCABULARY, hidden_size=192, heads=6)
    ids = question_prompt(VOCABULARY, "the dog is red and the cat is blue what color is the dog")
    looked_at = attention_maps(model, ids)[0]
    for back in range(5):
        looked = looked_at[back, 6:].argmax(-1)
        assert (torch.arange(6, len(ids)) - looked == back).float().mean() > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_it_starts_as_an_induction_circuit(seed: int) -> None:
    """In a random text said twice, each token looks at what followed it the first time."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randperm(VOCABULARY.size - 40, generator=generator)[:12] + 5
    ids = [1, *words.tolist(), *words.tolist()]
    again = torch.arange(16, 25)
    found = {}
    for start in (True, False):
        shape = {"hidden_size": 192, "heads": 6, "induction_start": start}
        model = tiny_language_model(VOCABULARY, seed, **shape)
        found[start] = attention_maps(model, ids)[1][0, again, again - 11].mean().item()
    assert found[True] > 0.45 and found[False] < 0.1


def attention_maps(model, ids: list[int]) -> list[torch.Tensor]:
    """One (heads, tokens, tokens) map a layer."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return [layer[0] for layer in model(torch.tensor([ids]), output_attentions=True).attentions]


def test_too_few_heads_for_that_start_are_refused() -> None:
    with pytest.raises((UserError, ValueError), match="induction_start"):
        tiny_language_model(VOCABULARY, heads=4)


def test_the_loss_is_the_weighted_mean_of_what_counts() -> None:
    model = tiny_language_model(VOCABULARY)
    rows = [TokenRow([1, 5, 6, 7], [0, 0, 1.0, 5.0]), TokenRow([1, 8], [0, 2.0])]
    ids, weights = collate(rows)
    with torch.inference_mode():
        total, weight = CausalLoss(model)(ids, weights)
        expected = 0.0
        for row in rows:
            logs = torch.log_softmax(model(torch.tensor([row.ids])).logits[0], -1)
            counted = zip(row.ids[1:], row.weights[1:], strict=True)
            expected -= sum(w * logs[k, i] for k, (i, w) in enumerate(counted))
    assert weight == 8 and total.item() == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_the_loss_of_some_positions_at_a_time_is_that_of_all(compute, monkeypatch) -> None:
    model = tiny_language_model(VOCABULARY)
    ids = torch.randint(5, VOCABULARY.size, (3, 400))
    weights = torch.rand(3, 400) * (torch.rand(3, 400) > 0.2)
    found = []
    for at_once in (1 << 25, 1):  # all, and 256
        monkeypatch.setattr(planning, "LOGITS_AT_ONCE", at_once)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=compute == torch.bfloat16):
            loss, weight = CausalLoss(model)(ids, weights)
        loss.backward()
        found.append((loss.item(), weight.item(), [p.grad.clone() for p in model.parameters()]))
    (loss, weight, gradients), (again, same, others) = found
    assert again == pytest.approx(loss, rel=1e-6) and same == weight
    near = {"rtol": 1e-4, "atol": 1e-4} if compute == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, **near)


def test_answers_count_and_text_counts_more() -> None:
    row = cross_modal_row("asr", "Write it.", "the dog", np.array([1, 2]))
    tokens = row_to_tokens(row, VOCABULARY, "answer", 5.0)
    prompt, reply = VOCABULARY.encode_row(row)
    assert tokens.weights == [0.0] * len(prompt) + [5.0] * len(reply)
    spoken = cross_modal_row("tts", "Say it.", "the dog", np.array([1, 2]))
    weights = row_to_tokens(spoken, VOCABULARY, "answer", 5.0).weights
    assert weights[-5:] == [5.0, 1.0, 1.0, 5.0, 5.0]
    learned = len(prompt) + len(reply) - 1
    assert row_to_tokens(row, VOCABULARY, "all").weights == [0.0] + [1.0] * learned


def rows_of_length(epoch: int, step: int) -> list[TokenRow]:
    counts = [k % 30 + 1 for k in range(50)]
    return [
        TokenRow([1] + [100 * epoch + k + 3] * n, [0.0] + [1.0] * n) for k, n in enumerate(counts)
    ]


def test_batches_depend_on_the_step_alone_and_cover_an_epoch() -> None:
    first, second = (EpochBatches(rows_of_length, 200, seed=0) for _ in range(2))
    order = [first(step) for step in range(12)]
    for step in (7, 2, 11, 0):
        assert torch.equal(second(step)[0], order[step][0])
    size = len(first._plan(0, 0))
    seen = [int(row[1]) for step in range(size) for row in first(step)[0]]
    assert sorted(seen) == [k + 3 for k in range(50)]


def test_ranks_share_a_batch_without_overlap() -> None:
    batches = EpochBatches(rows_of_length, 200, seed=0)
    whole = batches(3)[0][:, 1].tolist()
    parts = [batches(3, rank, 2)[0][:, 1].tolist() for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_rows_that_are_too_long_or_missing_are_refused() -> None:
    with pytest.raises(UserError, match="reads 16"):
        EpochBatches(lambda epoch, step: [TokenRow([1] * 17, [1.0] * 17)], 100, 0, block=16)(0)
    with pytest.raises(UserError, match="no rows"):
        EpochBatches(lambda epoch, step: [], 100, 0)(0)


@pytest.mark.slow
def test_documents_never_hold_a_held_out_question() -> None:
    corpora = lab_corpora()
    rows = document_rows(VOCABULARY, corpora.documents(random.Random(0), 600))
    texts = [VOCABULARY.decode_text(row.ids).split(" ;")[0] for row in rows]
    held_out = {question.text for question in corpora.held_out_questions(400)}
    assert held_out and not held_out & set(texts)
    assert all(len(row.ids) == len(row.weights) for row in rows)


def test_decoding_in_batches_equals_one_by_one_and_stops() -> None:
    model = tiny_language_model(VOCABULARY, seed=3)
    texts = ("what is two plus two", "hello", "the dog is red and the cat is blue")
    prompts = [question_prompt(VOCABULARY, text) for text in texts]
    together = generate(model, VOCABULARY, prompts, 12)
    assert together == [generate(model, VOCABULARY, [p], 12)[0] for p in prompts]
    with torch.no_grad():  # a model that always says <eoa>
        table = model.get_input_embeddings().weight
        table[VOCABULARY.marker("<eoa>")] = 100 * table[:3].sum(0)
        always = generate(model, VOCABULARY, prompts, 12)
    assert all(len(ids) <= 12 for ids in always)
    with pytest.raises(UserError, match="reads 1024"):
        generate(model, VOCABULARY, [[5] * 1020], 4)


def test_an_untrained_model_still_answers_in_shape() -> None:
    model = tiny_language_model(VOCABULARY)
    units = np.array([1, 2, 3])
    assert isinstance(transcribe(model, VOCABULARY, [units], 48)[0].text, str)
    assert speak(model, VOCABULARY, ["the dog"], 60)[0].units.ndim == 1
    chains = answer(model, VOCABULARY, [units, "where is anna"], 80, reply="text")
    assert len(chains) == 2 and not chains[0].wellformed
    with pytest.raises(UserError, match="speech or text"):
        answer(model, VOCABULARY, [units], 80, reply="song")


def test_an_answer_that_meets_its_limit_is_reported_as_cut() -> None:
    model, units = tiny_language_model(VOCABULARY), np.array([1, 2, 3])
    says(model, VOCABULARY.encode_text("dog")[0])  # always, so it never comes to its end
    assert transcribe(model, VOCABULARY, [units], 5)[0].cut
    assert speak(model, VOCABULARY, ["the dog"], 5)[0].cut
    assert answer(model, VOCABULARY, [units], 5, reply="text")[0].cut
    says(model, VOCABULARY.marker("<eoa>"))
    assert not transcribe(model, VOCABULARY, [units], 5)[0].cut
    assert not speak(model, VOCABULARY, ["the dog"], 5)[0].cut
    assert not answer(model, VOCABULARY, [units], 5, reply="text")[0].cut


def says(model, token: int) -> None:
    """Makes the model say `token` whatever it reads: the last state is the same everywhere."""
    with torch.no_grad():
        width = model.config.hidden_size
        model.model.norm.weight.zero_()
        head = torch.nn.Linear(width, model.config.vocab_size)
        head.weight.zero_()
        head.bias.zero_()
        head.bias[token] = 1.0
        model.lm_head = head


def test_perplexity_of_a_uniform_model_is_the_size_of_the_vocabulary() -> None:
    model = tiny_language_model(VOCABULARY)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    perplexity = unit_perplexity(model, VOCABULARY, [np.array([1, 2, 3])])
    assert perplexity == pytest.approx(VOCABULARY.size, rel=1e-3)


@pytest.mark.parametrize(
    ("speaking_share", "own"), [(1.0, 4 + 4), (2.0, 2 + 4), (0.5, 8 + 4), (0.1, 9 + 0)]
)
def test_stage2_balances_listening_and_speaking_rows(speaking_share: float, own: int) -> None:
    listening = [cross_modal_row("asr", "Write.", "the dog", np.array([1, 2]))] * 9
    speaking = [cross_modal_row("tts", "Say.", "the dog", np.array([1, 2]))] * 4
    shares = {"text": 0.5, "units": 0.25}
    encoded = [[row_to_tokens(row, VOCABULARY) for row in rows] for rows in (listening, speaking)]
    replay = Replay(VOCABULARY, lab_corpora(), shares, [np.array([1])])
    plan = stage2_plan(encoded, replay, speaking_share, 0)
    assert len(plan(0, 0)) == own + round(own * 0.5) + round(own * 0.25)


def test_an_adapter_reloads_as_it_was(tmp_path) -> None:
    model = tiny_language_model(VOCABULARY)
    adapted = add_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.0), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_adapter(adapted, tmp_path)
    _, ids = VOCABULARY.encode_row(chain_row("text_text", "why", "so"))
    with torch.inference_mode():
        expected = adapted.eval()(torch.tensor([ids])).logits
        loaded = load_adapter(tiny_language_model(VOCABULARY), tmp_path)
        assert torch.allclose(loaded(torch.tensor([ids])).logits, expected, atol=1e-4)
    with pytest.raises(UserError, match="notebook 08"):
        load_adapter(tiny_language_model(VOCABULARY), tmp_path / "none")
    with pytest.raises(UserError, match="targets"):
        add_lora(tiny_language_model(VOCABULARY), LoraSettings(targets=("wings",)), seed=0)
