"""Fits with seeds; run by test_determinism.py.

``python determinism_worker.py THREADS FILE`` writes a hash of what each came to, and
its probabilities, on so many threads.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from nets_for_tests import NormDropoutMLP, SmallMLP, long_tailed_digits, small_net

from sk_otreweight import BASELINES, OTReweightedClassifier

# A bias before a batch normalisation has gradients of rounding errors alone, which Adam
# makes as large as all others.
CHAOTIC = "dropout and batch normalisation"
FITS = {
    "closed form": {},
    "vector": {"weights": "vector"},
    "net": {"weights": "net", "meta_set": "random"},
    "drawn meta rows": {"weights": "attention", "finetune": "head"},
    "draws": {"sampling": "square_root", "loss": "logit_adjusted"},
    "restart": {"restart": True},
}


def digest(clf):
    """Return a hash of all that was learned."""
    found = hashlib.blake2b(digest_size=16)
    for value in clf.net_.module_.state_dict().values():
        found.update(value.numpy().tobytes())
    found.update(clf.sample_weight_.tobytes())
    return found.hexdigest()


def main(threads, path):
    torch.set_num_threads(int(threads))
    data, found = long_tailed_digits(0), {}
    fits = {
        name: OTReweightedClassifier(max_epochs=2, random_state=0, **params)
        for name, params in FITS.items()
    }
    for name in ("bbn", "meta_weight_net", "metasaug"):
        fits[name] = BASELINES[name](max_epochs=2, random_state=0)
    fits[CHAOTIC] = OTReweightedClassifier(max_epochs=2, random_state=0)
    for name, clf in fits.items():
        module = NormDropoutMLP if name == CHAOTIC else SmallMLP
        clf.set_params(net=small_net(module, max_epochs=2))
        meta = None if name == "drawn meta rows" else data.meta
        clf.fit(data.X, data.y, meta=meta)
        probabilities = clf.predict_proba(data.X[:20])
        found[name] = {"hash": digest(clf), "probabilities": probabilities.tolist()}
    assert np.isfinite(probabilities).all()
    Path(path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
