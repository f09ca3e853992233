"""Recipes: one YAML file fixes everything a run depends on; this schema says what may stand in it.

A wrong type or an impossible combination is an error that names the key and what is allowed there.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from speechgpt_lib.rates import HOP
from speechgpt_lib.recipes.section import Count, Fraction, Natural, Part, Positive, Section, Share
from speechgpt_lib.recipes.sources import Corpus, Imports, LabCorpus


class Optimization(Section):
    """How one training is driven.  `steps` are optimizer steps, fractions are of `steps`."""

    steps: Count
    learning_rate: Positive
    matrix_learning_rate: Positive | None = None  # if set, Muon drives the weight matrices, at this
    matrix_weight_decay: Share = 0.5  # with little, matrices grow until LoRA can't move them
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    weight_decay: Share = 0.01
    accumulation: Count = 1  # parts of a batch that a process computes one by one, to save memory
    warmup: Natural = 40  # steps from 0 to the full learning rate
    schedule: Literal["linear", "cosine"] = "linear"  # how the learning rate falls after `hold`
    hold: Fraction = 0.4  # share of the steps before the linear decay sets in
    floor: Part = 0.03  # share of the learning rate at the last step
    clip: Positive = 1.0  # largest gradient norm
    precision: Literal["auto", "no", "bf16"] = "auto"  # no: fp32; auto: bf16 where it is computed
    sharding: Literal["none", "full"] = "none"  # full: weights, moments over processes (FSDP2)
    save_every_s: Positive = 60.0  # seconds between checkpoints
    compile: bool | Literal["auto"] = False  # layers; auto: where there is a C++ compiler
    keep: Count = 2  # checkpoints kept, the newest ones
    most_tokens: Count | None = None  # end after so many (without padding), even if steps are left
    most_hours: Positive | None = None  # stop (and save) after so many; started again it goes on
    log_every: Count = 10

    @model_validator(mode="after")
    def muon_is_whole(self) -> Optimization:
        """Refuses Muon where matrices are shared out."""
        if self.sharding == "full" and self.matrix_learning_rate:
            why = "Muon needs whole matrices"
            raise ValueError(f"sharding: full excludes matrix_learning_rate: {why}")
        return self


class Attending(Section):
    """Attention splits the width evenly over its heads; rotary positions want it even in each."""

    rotary: ClassVar[bool] = False

    @model_validator(mode="after")
    def heads_fit(self) -> Attending:
        """Refuses a width that its heads can't share."""
        step = self.heads * (2 if self.rotary else 1)
        if self.hidden_size % step:
            found = f"hidden_size is {self.hidden_size} with {self.heads} heads"
            raise ValueError(f"{found}, it must be a multiple of {step}")
        return self


class HubertSettings(Attending):
    """Geometry and pre-training of the unit encoder (Hsu et al. 2021)."""

    conv_widths: tuple[Count, ...] = (32, 32, 48, 48, 64, 64, 64)
    hidden_size: Count = 160
    layers: Count = 4
    heads: Count = 4
    feed_forward: Count = 640
    mask_probability: float = Field(0.065, gt=0, lt=1)  # share of frames that start a masked span
    mask_length: Count = 10
    unmasked_weight: Part = 0.5  # weight of the loss on frames that are not masked
    target_clusters: Count = 100
    iterations: Literal[1, 2] = 1  # 2: another encoder learns clusters of the first's `layer`
    crop_seconds: Positive = 1.5
    batch_size: Count = 16
    utterances: Count = 4000  # how many utterances the crops are taken from
    optimization: Optimization

    @model_validator(mode="after")
    def convolutions_fit(self) -> HubertSettings:
        """Refuses widths that the convolutions don't have."""
        width, count = self.hidden_size, len(self.conv_widths)  # see units/hubert.py
        if width % 8:
            raise ValueError(f"hidden_size is {width}, it must be a multiple of 8")
        if count != 7:
            raise ValueError(f"conv_widths has {count} widths, it must have 7")
        return self


class HearingSettings(Section):
    """How the encoder learns to hear past voices, once its units are made (units/hearing.py)."""

    utterances: Count = 2000  # of others, which the target voice says again
    own_utterances: Count = 500  # of the target voice
    others_share: Fraction = 0.7  # of the crops
    perturbed: Part = 0.6  # share of crops from another throat and room
    crops: Count = 16  # of a batch
    crop_seconds: Positive = 1.5
    optimization: Optimization


class ExtractionSettings(Section):
    """How a corpus becomes units."""

    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: misses are counted
    batch_seconds: Share = 0.0  # padded audio in a batch; 0: by device
    long_audio: Literal["exact", "release"] = "exact"  # release: chunks of 100 s, as published
    max_bad_share: Part = 0.05  # more unreadable ones are an error


class UnitSettings(Section):
    """The encoder, its layer, and the number of units."""

    hubert: HubertSettings
    layer: Count
    clusters: int = Field(gt=1)  # K, the size of the unit inventory
    kmeans_frames: Count = 60_000
    hearing: HearingSettings | None = None
    extraction: ExtractionSettings = ExtractionSettings()


class DurationSettings(Section):
    """The duration predictor: as published when left at the defaults."""

    convolutions: Count = 2  # each after the second reaches twice as far as the one before
    dropout: Fraction = 0.5
    longest: Natural = 0  # predict the probability of 1, 2 … frames and take the median; 0: a log


class VocoderSettings(Section):
    """Unit HiFi-GAN: geometry as published when left at the defaults."""

    embedding: Count = 128
    channels: Count = 512
    upsample_rates: tuple[Count, ...] = (5, 4, 4, 2, 2)
    upsample_kernels: tuple[Count, ...] = (11, 8, 8, 4, 4)
    # samples a frame of an inverse STFT that takes the place of the last stages (0: none)
    inverse_stft_hop: Natural = 0
    frame_blocks: Natural = 0  # ConvNeXt blocks at 50 Hz before the first stage
    resblock_kernels: tuple[Count, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[Count, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    discriminator_channels: Count = 32  # width of the first discriminator layer
    discriminator_rate: Positive = 1.0  # their learning rate as a share of the generator's
    judged: Natural = 0  # waves of a batch, in each process, that discriminators hear (0: all)
    segment_frames: Count = 32
    batch_size: Count = 16
    adversarial_from: Part = 0.8  # share of the steps before the discriminators join
    utterances: Count = 2500
    all_voices: bool = False  # train on every voice with a speaker embedding, not the target alone
    compare: bool = False  # train the last steps a second time without discriminators, to compare
    durations: DurationSettings = DurationSettings()
    optimization: Optimization
    duration_optimization: Optimization

    @model_validator(mode="after")
    def lists_fit(self) -> VocoderSettings:
        """Refuses lists that don't belong together."""
        if len(self.upsample_kernels) != len(self.upsample_rates):
            raise ValueError("upsample_kernels needs one kernel per upsample rate")
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            raise ValueError("resblock_dilations needs one group per resblock kernel")
        if self.inverse_stft_hop % 2:
            raise ValueError(f"inverse_stft_hop is {self.inverse_stft_hop}, it must be even")
        return self

    @property
    def hop(self) -> int:
        """Samples that a frame of 20 ms becomes."""
        return math.prod(self.upsample_rates) * (self.inverse_stft_hop or 1)


class TextToUnitSettings(Attending):
    """Encoder–decoder that turns text into units."""

    pieces: Natural = 0  # size of the text tokenizer; with no more pieces than characters it spells
    hidden_size: Count = 96
    layers: Count = 2
    heads: Count = 4
    feed_forward: Count = 256
    dropout: Fraction = 0.0
    beams: Count = 1
    tokens_per_batch: Count = 1000  # units, padding included
    optimization: Optimization


Chain = Literal["speech_speech", "speech_text", "text_speech", "text_text"]
Voicer = Literal["text_to_unit", "tts"]  # the text-to-unit model, or a synthesiser and extractor


class InstructionSettings(Section):
    """How the two sets of SpeechInstruct are built and read."""

    templates: Literal["paper", "release"] = "paper"
    chain_shares: dict[Chain, Share] = dict(
        speech_speech=0.4, speech_text=0.2, text_speech=0.2, text_text=0.2
    )
    maximum_response_words: Count = 35
    pairing: Literal["one", "both"] = "both"  # of a pair, transcript or speech is asked, or both
    held_out_share: Fraction = 0.002  # share of a corpus' sentences that are kept out of training
    questions_from: Voicer = "text_to_unit"  # what voices written questions (paper: text_to_unit)
    answers_from: Voicer = "text_to_unit"  # the same for the answers
    synthesiser: str = "espeak"  # for tts: espeak, or a command that writes {wav}
    synthesiser_voice: str | None = None  # eSpeak's; null: the voice that answers in the lab
    speaking: Literal["target", "all"] = "target"  # which voices' pairs are asked for speech
    descriptions: str | None = None  # folder with asr.txt and tts.txt instead of the shipped ones
    dialogues: str | None = None  # moss-002-sft-data (file or folder): more written dialogues
    classroom: bool = False  # leave out dialogues that are unsafe for classrooms
    written_dialogues: Natural = 800  # without speech of their own, voiced as questions_from says
    loss: Literal["all", "answer"] = "answer"
    text_weight: Positive = 1.0  # of a text token in the loss beside a unit (there are far more)

    @model_validator(mode="after")
    def shares_add_up(self) -> InstructionSettings:
        """Refuses shares of the chain formats that don't add up to 1."""
        total = sum(self.chain_shares.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"chain_shares add up to {total:.3f}, they must add up to 1")
        others = ", ".join(n for n, s in self.chain_shares.items() if s and n != "speech_speech")
        if self.templates == "release" and others:
            only = "templates: release has speech_speech only"
            raise ValueError(f"chain_shares has {others}; {only}")
        return self


class LanguageModelSettings(Attending):
    """The text LLM: a small LLaMA trained here, or the shape of the one that is imported."""

    rotary: ClassVar[bool] = True
    vocabulary: int = Field(1600, gt=300)  # size of the text tokenizer's vocabulary
    hidden_size: Count = 192
    layers: Count = 4
    heads: Count = 6
    feed_forward: Count = 512
    rope_theta: Positive = 10_000.0
    # where new tokens start: the mean of the old ones plus noise, or units at projected centroids
    new_embeddings: Literal["mean", "centroids"] = "mean"
    multiple: Count = Field(1, le=256)  # the number of embeddings is rounded up to it, for hardware
    induction_start: bool = True  # start as induction circuits (see language_model/model.py)
    tokens_per_batch: Count = 2000
    optimization: Optimization

    @model_validator(mode="after")
    def induction_fits(self) -> LanguageModelSettings:
        """Refuses an induction start in a model too small for it."""
        if self.induction_start and (self.heads < 5 or self.layers < 2):
            found = f"found {self.heads} and {self.layers}: raise them or set it to false"
            raise ValueError(f"induction_start needs at least 5 heads and 2 layers, {found}")
        return self


class StageSettings(Section):
    """How one stage makes batches of its rows, and learns."""

    tokens_per_batch: Count = 2000
    # none: rows of like length side by side; isolated: several in a block, none sees another;
    # concatenated: cut wherever a block is full (the release's stage 1)
    packing: Literal["none", "isolated", "concatenated"] = "none"
    # auto: written out on a CPU, packed rows each by itself; flash (if installed) or sdpa on a GPU
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    block: Count = 1024  # tokens of a block, and of the longest row
    checkpointing: bool = False  # compute what lies within layers again: less memory, more time
    # longer rows: refused, left out, or cut with their end marker kept; both are counted
    too_long: Literal["error", "drop", "truncate"] = "error"
    replay: dict[Literal["text", "units"], Share] = {}  # earlier stages' rows, as share of own
    optimization: Optimization


class Stage2Settings(StageSettings):
    """Stage 2, which also mixes its tasks."""

    speaking: Positive = 1.0  # speaking rows for every listening row


class LoraSettings(Section):
    """The adapters of stage 3 (Hu et al. 2021, arXiv 2106.09685)."""

    rank: Count = 8
    alpha: Count = 16
    dropout: Fraction = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    # how the frozen weights are stored while adapters learn; int8 and 4bit need bitsandbytes
    base: Literal["fp32", "bf16", "int8", "4bit"] = "fp32"
    new_tokens: bool = False  # train embeddings of units and markers too, saved with the adapter


class Stage3Settings(StageSettings):
    """Stage 3, which trains adapters alone."""

    lora: LoraSettings = LoraSettings()


class GenerationSettings(Section):
    """Most tokens of each kind of answer; one that meets its limit is counted as cut."""

    transcript: Count = 48
    speech: Count = 320  # units of a spoken sentence
    spoken_answer: Count = 384  # a whole chain that ends in speech
    written_answer: Count = 80  # a whole chain that ends in text
    text: Count = 16  # the text model's answer to a written question


class InferenceSettings(Section):
    """How the finished model is held in memory while it answers."""

    # bytes a weight: 4, 2, 1, 1/2; the last two need bitsandbytes
    weights: Literal["fp32", "bf16", "int8", "4bit"] = "fp32"


class EvaluationSettings(Section):
    """How many held-out items each figure is taken from."""

    asr_utterances: Count = 200
    tts_sentences: Count = 100
    questions_per_kind: Count = 40
    resynthesis_utterances: Count = 60
    vocoder_utterances: Count = 40
    voicing_sentences: Count = 48  # by which ways of voicing are compared
    stage1_utterances: Count = 200  # whose perplexity stage 1 reports
    stage_utterances: Count = 64  # that stages 2 and 3 transcribe and answer
    text_questions: Count = 20  # written ones of every kind
    examples: Count = 14  # answers whose sound is kept beside the report
    bootstrap_draws: Count = 1000
    # Whisper beside the judges that know a grammar: auto (the model that is installed, if one is),
    # a name of faster-whisper's in the local cache, a folder, or none
    open_judge: str = Field("auto", min_length=1)


class VoiceSettings(Section):
    """How a finished run is adapted to a person's voice (notebook 11)."""

    kept_aside: Fraction = 0.125  # share of the recordings that only measure
    crops: Count = 16  # of a batch of the encoder, each of `crop_seconds`
    crop_seconds: Positive = 1.6
    voice_share: Fraction = 0.5  # of the crops, and of the listening rows of stage 2
    versions: Count = 6  # of each recording, changed at random, that stage 2 hears
    own_utterances: Count = 300  # of the run's own voices, beside them
    test_utterances: Count = 60  # held-out ones by which the old voices are measured
    listening: Optimization = Optimization(steps=240, learning_rate=2e-3, warmup=20)
    tokens_per_batch: Count = 1000
    stage2: Optimization = Optimization(steps=150, learning_rate=5e-4, warmup=10)
    speaking: Optimization = Optimization(steps=200, learning_rate=5e-4, warmup=10)


class Recipe(Section):
    """A whole run.  `name` is the name of the YAML file it comes from."""

    name: str
    summary: str
    seed: Natural = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    needs: tuple[str, ...] = ()  # what must be had beforehand, in words; empty: all is made here
    processes: Count = 1  # processes every training runs in
    data: str = "."  # where relative paths of corpora and imports start
    corpora: Annotated[tuple[Corpus, ...], Field(min_length=1)]
    imports: Imports = Imports()
    units: UnitSettings
    vocoder: VocoderSettings
    instructions: InstructionSettings
    text_to_unit: TextToUnitSettings
    language_model: LanguageModelSettings
    stage1: StageSettings
    stage2: Stage2Settings
    stage3: Stage3Settings
    generation: GenerationSettings = GenerationSettings()
    inference: InferenceSettings = InferenceSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    minimal_pairs: Count = 80  # of each kind, in notebook 06
    voice: VoiceSettings = VoiceSettings()

    @property
    def lab(self) -> LabCorpus | None:
        """The lab world, where it is one of the corpora: its sentences can be spoken here."""
        return next((c for c in self.corpora if isinstance(c, LabCorpus)), None)

    @model_validator(mode="after")
    def encoder_fits(self) -> Recipe:
        """Refuses a layer that our own encoder does not have, and units of another length."""
        layer, depth = self.units.layer, self.units.hubert.layers
        if self.imports.inventory is None and layer > depth:
            raise ValueError(f"units.layer is {layer} but the encoder has {depth} layers")
        hop = self.vocoder.hop
        if self.imports.inventory is None and hop != HOP:
            found = f"vocoder.upsample_rates (times inverse_stft_hop) multiply to {hop}"
            raise ValueError(f"{found}, they must make {HOP}")
        return self
