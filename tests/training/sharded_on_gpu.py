"""One sharded process on a GPU, for `test_gpu.py`: losses, checkpoint in parts, joined weights.

Argument: a folder with a saved model in `model`.  Writes `losses.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from speechgpt_lib.language_model.model import CausalLoss, load_model, load_sharded, save_model
from speechgpt_lib.training.checkpoints import find_checkpoint
from speechgpt_lib.training.optimizers import make_optimizers
from speechgpt_lib.training.parts import load_in_parts, save_in_parts
from tests.builders import few_steps
from tests.training.sharded_worker import batch_at

DEVICE = torch.device("cuda", 0)


def losses_of(scorer: CausalLoss, optimizers: dict, steps: range, precision: str) -> list[float]:
    found = []
    for step in steps:
        ids, weights = (tensor.to(DEVICE) for tensor in batch_at(step, 0, 1))
        enabled = precision == "bf16"
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            loss, weight = scorer(ids, weights)
        (loss / weight).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        found.append((loss / weight).item())
    return found


def main(folder: Path) -> None:
    meeting = {"init_method": f"file://{folder}/meeting", "rank": 0, "world_size": 1}
    distributed.init_process_group("nccl", device_id=DEVICE, **meeting)
    losses = {}
    for precision in ("no", "bf16"):
        model, vocabulary = load_model(folder / "model")
        alone = CausalLoss(model.to(DEVICE)).train()
        own = make_optimizers([alone], few_steps(8))
        losses[f"alone {precision}"] = losses_of(alone, own, range(8), precision)
        scorer, _ = load_sharded(folder / "model", DEVICE, precision)
        own = make_optimizers([scorer.train()], few_steps(8))
        first = losses_of(scorer, own, range(4), precision)
        checkpoints = folder / f"checkpoints-{precision}"
        save_in_parts(checkpoints, 4, {"model": scorer}, own)
        resumed, _ = load_sharded(folder / "model", DEVICE, precision)
        own = make_optimizers([resumed.train()], few_steps(8))
        load_in_parts(find_checkpoint(checkpoints).path, {"model": resumed}, own)
        losses[f"sharded {precision}"] = first + losses_of(resumed, own, range(4, 8), precision)
        save_model(resumed.model, vocabulary, folder / f"joined-{precision}")
        joined, _ = load_model(folder / f"joined-{precision}")
        kept = resumed.model.state_dict()
        losses[f"joined {precision}"] = max(
            (tensor - kept[name].full_tensor().cpu()).abs().max().item()
            for name, tensor in joined.state_dict().items()
        )
    distributed.destroy_process_group()
    (folder / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
