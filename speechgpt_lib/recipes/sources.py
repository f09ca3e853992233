"""The sections of a recipe that say what comes from outside: speech to learn from, and results that are imported."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from speechgpt_lib.recipes.section import Count, Section

Role = Literal["aligned", "unlabelled", "voice", "test"]


class LabCorpus(Section):
    """Sentences of the lab world, spoken here by eSpeak NG: every role in one corpus."""

    reader: Literal["lab"] = "lab"
    target_voice: str = Field("Female1", description="the voice that answers")
    aligned_voices: tuple[str, ...] = ()
    unlabelled_voices: tuple[str, ...] = ()
    held_out_voice: str = "Male2"
    target_statements: int = Field(0, ge=0)
    target_questions: int = Field(0, ge=0)
    aligned_statements: int = Field(0, ge=0, description="per aligned voice")
    aligned_questions: int = Field(0, ge=0, description="per aligned voice")
    unlabelled_sentences: int = Field(0, ge=0, description="per unlabelled voice")
    test_sentences: int = Field(0, ge=0, description="held-out sentences a voice, half questions")

    @model_validator(mode="after")
    def voices_differ(self) -> LabCorpus:
        voices = [self.target_voice, *self.aligned_voices, *self.unlabelled_voices]
        voices.append(self.held_out_voice)
        if len(set(voices)) != len(voices):
            raise ValueError(f"each voice may have one role only, found {voices}")
        return self


class DiskCorpus(Section):
    """Recorded speech below the folder `root`, in the layout that it is published in."""

    reader: Literal["librispeech", "common_voice", "gigaspeech", "libri_light", "lj_speech", "vctk"]
    root: str = Field(description="the corpus' folder; a relative one lies below `data`")
    splits: tuple[str, ...] | None = Field(None, description="as the corpus names them; null: all")
    role: tuple[Role, ...] = Field(
        ("aligned",),
        min_length=1,
        description="aligned: speech with text; unlabelled: units only; voice: what the vocoder "
        "learns to speak like; test: held out. One or several",
    )
    held_out: float = Field(0.0, ge=0, lt=1, description="share of the sentences that are test")
    utterances: Count | None = Field(None, description="at most so many, chosen by their ids")
    longest_s: float = Field(7200.0, gt=0, description="longer utterances (s) are left out")
    decode: bool = Field(False, description="look at every sample beforehand, not at headers only")
    max_bad_share: float = Field(0.05, ge=0, le=1, description="more unreadable ones are an error")
    options: dict[str, bool | float | str | list[str]] = Field(
        default_factory=dict, description="the reader's own, such as whole_files for libri_light"
    )

    @field_validator("role", mode="before")
    @classmethod
    def one_role_is_a_list(cls, role: object) -> object:
        return (role,) if isinstance(role, str) else role

    @model_validator(mode="after")
    def test_stands_alone(self) -> DiskCorpus:
        if "test" in self.role and len(self.role) > 1:
            raise ValueError(f"role test stands alone, found {list(self.role)}: use held_out")
        if {"aligned", "unlabelled"} <= set(self.role):
            raise ValueError("role is aligned or unlabelled, not both")
        return self


Corpus = Annotated[LabCorpus | DiskCorpus, Field(discriminator="reader")]


class InventoryImport(Section):
    """A unit encoder and its centroids, as others published them."""

    encoder: str = Field(description="fairseq's .pt, or a folder or hub name of transformers")
    layer: Count
    centroids: str = Field(description="scikit-learn's .bin, .npy or .safetensors")


class VocoderImport(Section):
    """A unit HiFi-GAN of fairseq."""

    checkpoint: str
    config: str


class TextToUnitImport(Section):
    """A text-to-unit transformer of fairseq."""

    checkpoint: str
    tokenizer: str = Field(description="spm.model")
    dictionary: str | None = Field(None, description="dict.unit.txt, compared with the checkpoint")


class Imports(Section):
    """Results that are not made here: step → the file or folder that it is imported from.

    A path alone is a folder of this project's own format (a step's folder of another run).
    """

    inventory: str | InventoryImport | None = None
    vocoder: str | VocoderImport | None = None
    text_to_unit: str | TextToUnitImport | None = None
    cross_modal_set: str | None = Field(None, description="the released JSONL, or a set's folder")
    chain_set: str | None = Field(None, description="the released JSONL, or a set's folder")
    text_model: str | None = Field(None, description="folder of a LLaMA in transformers' format")
    stage2: str | None = Field(None, description="folder of a model with units in its vocabulary")
    stage3: str | None = Field(None, description="folder of a LoRA adapter of that stage-2 model")
