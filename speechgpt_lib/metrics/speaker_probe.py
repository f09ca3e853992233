"""How well a simple classifier tells who spoke from the units alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score


def speaker_probe(
    units: Sequence[np.ndarray], speakers: Sequence[str], count: int, seed: int = 0, folds: int = 4
) -> float:
    """Cross-validated accuracy of telling the speaker from how often each unit occurs.

    The classifier is a logistic regression on whole utterances: one (frames,) array of ids below
    `count` and one speaker each.  Chance is 1 / speakers where all speak equally often.  Purity
    asks a single frame, the probe an utterance, so it is the stricter test.  Raises ValueError
    where a speaker has fewer utterances than there are folds.
    """
    names, who = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    fewest = np.bincount(who).min()
    if len(names) < 2 or fewest < folds:
        wanted = f"two speakers or more with {folds} utterances each"
        raise ValueError(f"a probe needs {wanted}, found {len(names)} and {fewest}")
    shares = np.stack([np.bincount(u, minlength=count) / max(len(u), 1) for u in units])
    shares = (shares - shares.mean(0)) / (shares.std(0) + 1e-9)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    classifier = LogisticRegression(C=0.1, max_iter=500)
    return float(cross_val_score(classifier, shares, who, cv=split).mean())
