"""Names of the steps, and of the folders below a run directory in which their results lie.

A folder's first part is the notebook that makes it: `06_stage1_modality_adaptation/model`.
"""

from __future__ import annotations

# Notebook → its steps, each with its folder where that has another name.
_MADE = {
    "00_start_here": "",
    "01_unit_extraction": "corpus hubert readings inventory units unit_grid=grid",
    "02_unit_vocoder": "vocoder vocoder_evaluation=evaluation",
    "03_cross_modal_instructions": "cross_modal_set",
    "04_chain_of_modality_instructions": "text_to_unit voicing chain_set",
    "05_vocabulary_expansion": "text_model expanded_model",
    "06_stage1_modality_adaptation": "minimal_pairs stage1=model",
    "07_stage2_cross_modal_finetuning": "stage2=model",
    "08_stage3_chain_of_modality_lora": "stage3=adapter",
    "09_talk_to_speechgpt": "evaluation",
    "10_scale_out": "",
    "11_your_own_voice": "",
}
NOTEBOOKS = tuple(_MADE)
FOLDERS = {
    step.split("=")[0]: f"{notebook}/{step.split('=')[-1]}"
    for notebook, steps in _MADE.items()
    for step in steps.split()
}


def folder_of(name: str) -> str:
    """The folder of a step, below the run directory; a name that is a folder stays as it is."""
    return FOLDERS.get(name, name)


def notebook_of(name: str) -> str:
    """The notebook that makes a step."""
    return folder_of(name).split("/")[0]
