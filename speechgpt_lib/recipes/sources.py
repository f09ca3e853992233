"""What comes from outside, as sections of a recipe: speech to learn from, imported results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from speechgpt_lib.recipes.section import Count, Fraction, Natural, Part, Positive, Section

Role = Literal["aligned", "unlabelled", "voice", "test"]


class LabCorpus(Section):
    """Sentences of the lab world, spoken here by eSpeak NG: every role in one corpus."""

    reader: Literal["lab"] = "lab"
    target_voice: str = "Female1"  # the voice that answers
    aligned_voices: tuple[str, ...] = ()
    unlabelled_voices: tuple[str, ...] = ()
    held_out_voice: str = "Male2"
    target_statements: Natural = 0
    target_questions: Natural = 0
    aligned_statements: Natural = 0  # per aligned voice
    aligned_questions: Natural = 0  # per aligned voice
    unlabelled_sentences: Natural = 0  # per unlabelled voice
    many_statements: Natural = 0  # aligned, each by a speaker of its own, in another room
    many_questions: Natural = 0
    test_sentences: Natural = 0  # held-out sentences a voice, half questions

    @model_validator(mode="after")
    def voices_differ(self) -> LabCorpus:
        """Refuses a voice with two roles."""
        others = (*self.aligned_voices, *self.unlabelled_voices, self.held_out_voice)
        voices = [self.target_voice, *others]
        if len(set(voices)) != len(voices):
            raise ValueError(f"each voice may have one role only, found {voices}")
        return self


class DiskCorpus(Section):
    """Recorded speech below the folder `root`, in the layout that it is published in."""

    reader: Literal["librispeech", "common_voice", "gigaspeech", "libri_light", "lj_speech", "vctk"]
    root: str  # the corpus' folder; a relative one lies below `data`
    splits: tuple[str, ...] | None = None  # as the corpus names them; null: all
    # aligned: speech with text; unlabelled: units only; voice: for the vocoder; test: held out
    role: tuple[Role, ...] = Field(("aligned",), min_length=1)
    held_out: Fraction = 0.0  # share of the sentences that are test
    utterances: Count | None = None  # at most so many, chosen by their ids
    longest_s: Positive = 7200.0  # longer utterances (s) are left out
    decode: bool = False  # look at every sample beforehand, not at headers only
    max_bad_share: Part = 0.05  # more unreadable ones are an error
    options: dict[str, bool | float | str | list[str]] = {}  # the reader's own, as whole_files

    @field_validator("role", mode="before")
    @classmethod
    def one_role_is_a_list(cls, role: object) -> object:
        """Takes a single role for a list of one."""
        return (role,) if isinstance(role, str) else role

    @model_validator(mode="after")
    def test_stands_alone(self) -> DiskCorpus:
        """Refuses test speech that is also learned from."""
        if "test" in self.role and len(self.role) > 1:
            raise ValueError(f"role test stands alone, found {list(self.role)}: use held_out")
        if {"aligned", "unlabelled"} <= set(self.role):
            raise ValueError("role is aligned or unlabelled, not both")
        return self


Corpus = Annotated[LabCorpus | DiskCorpus, Field(discriminator="reader")]


class InventoryImport(Section):
    """A unit encoder and its centroids, as others published them."""

    encoder: str  # fairseq's .pt, or a folder or hub name of transformers
    layer: Count
    centroids: str | None = None  # .bin, .npy, .safetensors; null: k-means on this run's speech


class VocoderImport(Section):
    """A unit HiFi-GAN of fairseq."""

    checkpoint: str
    config: str


class TextToUnitImport(Section):
    """A text-to-unit transformer of fairseq."""

    checkpoint: str
    tokenizer: str  # spm.model
    dictionary: str | None = None  # dict.unit.txt, compared with the checkpoint


# An imported stage → the steps that are not needed then.
REPLACED = {
    "stage2": ("text_model", "expanded_model", "stage1", "cross_modal_set", "minimal_pairs"),
    "stage3": ("text_to_unit", "voicing", "chain_set"),
}


class Imports(Section):
    """Results that are not made here: step → the file or folder that it is imported from.

    A path alone is a folder of this project's own format (a step's folder of another run).
    """

    inventory: str | InventoryImport | None = None
    vocoder: str | VocoderImport | None = None
    text_to_unit: str | TextToUnitImport | None = None
    cross_modal_set: str | None = None  # the released JSONL, or a set's folder
    chain_set: str | None = None  # the released JSONL, or a set's folder
    # folder of a language model in transformers' format, or on the hub: OWNER/NAME@REVISION
    text_model: str | None = None
    any_size: bool = False  # take that model as it is; else language_model tells its sizes
    stage2: str | None = None  # the same of a model with units in its vocabulary
    stage3: str | None = None  # the same of a LoRA adapter of that stage-2 model

    def used(self, exclude: dict | None = None) -> dict[str, object]:
        """Step → its source, without those that an imported stage leaves without a purpose."""
        found = self.model_dump(exclude={"any_size": True} | (exclude or {}))
        for stage, before in REPLACED.items():
            if found[stage] is not None:
                found = {name: None if name in before else s for name, s in found.items()}
        return found
