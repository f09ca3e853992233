"""What all steps of a run share: their names, how a training is driven, and the speech they learn from or are measured on.

The steps themselves stand in `pipeline.py`, those of the vocoder in `vocoder/steps.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.instructions import sets
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.extract import UnitRow, read_units
from speechgpt_lib.units.inventory import UnitInventory

CORPUS = "01_unit_extraction/corpus"
HUBERT = "01_unit_extraction/hubert"
INVENTORY = "01_unit_extraction/inventory"
UNITS = "01_unit_extraction/units"
UNIT_GRID = "01_unit_extraction/grid"
VOCODER = "02_unit_vocoder/vocoder"
VOCODER_EVALUATION = "02_unit_vocoder/evaluation"
CROSS_MODAL_SET = "03_cross_modal_instructions/cross_modal_set"
TEXT_TO_UNIT = "04_chain_of_modality_instructions/text_to_unit"
VOICING_EVALUATION = "04_chain_of_modality_instructions/voicing"
CHAIN_SET = "04_chain_of_modality_instructions/chain_set"
TEXT_MODEL = "05_vocabulary_expansion/text_model"
EXPANDED = "05_vocabulary_expansion/expanded_model"
STAGE1 = "06_stage1_modality_adaptation/model"
STAGE2 = "07_stage2_cross_modal_finetuning/model"
STAGE3 = "08_stage3_chain_of_modality_lora/adapter"

OnLog = Callable[[dict], None] | None


def training_options(run: Run, on_log: OnLog) -> TrainingOptions:
    """How this run drives all its trainings."""
    recipe = run.recipe
    return TrainingOptions(recipe.seed, resolve_device(recipe.device), recipe.processes, on_log)


def training_speech(corpus: Step, count: int, seed: int) -> list:
    """A seeded sample of training utterances over all voices, with their sound."""
    identities = [
        u.id for u in read_utterances(corpus.path, where={"split": ["train", "unlabelled"]})
    ]
    chosen = set(sets.shuffled(identities, seed)[:count])
    return list(read_utterances(corpus.path, audio=True, where={"id": chosen}))


def held_out_units(run: Run, inventory_id: str | None) -> list[UnitRow]:
    """Held-out utterances in the voices of training, shuffled."""
    return sets.shuffled(
        list(read_units(run.require(UNITS).path, inventory_id, {"split": "test"})), run.recipe.seed
    )


def inventory_of(run: Run) -> UnitInventory:
    return UnitInventory.load(run.require(INVENTORY).path)
