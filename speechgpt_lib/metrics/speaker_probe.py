"""How well a simple classifier tells who spoke from the units alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score


def speaker_probe(
    units: Sequence[np.ndarray], speakers: Sequence[str], count: int, seed: int = 0, folds: int = 4
) -> float:
    """Accuracy of logistic regression from how often each unit occurs in an utterance to its speaker, on utterances it has not seen.

    Speakers that weigh the same give 1 / speakers by chance.  Units that are free of the speaker come near that; purity asks a single
    frame, the probe asks an utterance, so it is the stricter test.

    Args:
        units: one (frames,) array of ids below `count` an utterance; speakers: for each utterance who speaks.

    Raises ValueError where a speaker has fewer utterances than there are folds.
    """
    names, who = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    fewest = np.bincount(who).min()
    if len(names) < 2 or fewest < folds:
        raise ValueError(
            f"a probe needs two speakers or more with {folds} utterances each, found {len(names)} and {fewest}"
        )
    shares = np.stack([np.bincount(u, minlength=count) / max(len(u), 1) for u in units])
    shares = (shares - shares.mean(0)) / (shares.std(0) + 1e-9)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(
        cross_val_score(LogisticRegression(C=0.1, max_iter=500), shares, who, cv=split).mean()
    )
