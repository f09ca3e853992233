"""Names of the steps, and of the folders below a run directory in which their results lie.

A folder's first part is the notebook that makes it: `06_stage1_modality_adaptation/model`.
"""

from __future__ import annotations

NOTEBOOKS = (
    "00_start_here",
    "01_unit_extraction",
    "02_unit_vocoder",
    "03_cross_modal_instructions",
    "04_chain_of_modality_instructions",
    "05_vocabulary_expansion",
    "06_stage1_modality_adaptation",
    "07_stage2_cross_modal_finetuning",
    "08_stage3_chain_of_modality_lora",
    "09_talk_to_speechgpt",
    "10_scale_out",
)
FOLDERS = {
    "corpus": "01_unit_extraction/corpus",
    "hubert": "01_unit_extraction/hubert",
    "inventory": "01_unit_extraction/inventory",
    "units": "01_unit_extraction/units",
    "unit_grid": "01_unit_extraction/grid",
    "vocoder": "02_unit_vocoder/vocoder",
    "vocoder_evaluation": "02_unit_vocoder/evaluation",
    "cross_modal_set": "03_cross_modal_instructions/cross_modal_set",
    "text_to_unit": "04_chain_of_modality_instructions/text_to_unit",
    "voicing": "04_chain_of_modality_instructions/voicing",
    "chain_set": "04_chain_of_modality_instructions/chain_set",
    "text_model": "05_vocabulary_expansion/text_model",
    "expanded_model": "05_vocabulary_expansion/expanded_model",
    "stage1": "06_stage1_modality_adaptation/model",
    "stage2": "07_stage2_cross_modal_finetuning/model",
    "stage3": "08_stage3_chain_of_modality_lora/adapter",
    "evaluation": "09_talk_to_speechgpt/evaluation",
}


def folder_of(name: str) -> str:
    """The folder of a step, below the run directory; a name that is a folder already stays as it
    is."""
    return FOLDERS.get(name, name)


def notebook_of(name: str) -> str:
    """The notebook that makes a step."""
    return folder_of(name).split("/")[0]
