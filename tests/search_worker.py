"""A search by way of a joblib backend; run by test_search.py.

``python search_worker.py BACKEND FILE`` writes the scores without a backend and with
one, which is a dask cluster of this machine, ray or processes.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import joblib
from nets_for_tests import small_net
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from sk_otreweight import OTReweightedClassifier, make_long_tailed


def search():
    X, y = load_digits(n_class=4, return_X_y=True)
    X = X.astype("float32") / 16
    data = make_long_tailed(X, y, imbalance_factor=20, random_state=0)
    net = small_net(max_epochs=3)
    clf = OTReweightedClassifier(net, max_epochs=2, random_state=0)
    grid = {"reg": [0.01, 0.1], "finetune": ["head", "all"]}
    found = GridSearchCV(clf, grid, cv=2, scoring="balanced_accuracy")
    found.fit(data.X, data.y, meta=(data.X_meta, data.y_meta))
    return list(found.cv_results_["mean_test_score"])


def enter(backend, stack):
    """Start what a backend needs, until the stack is left."""
    if backend == "dask":
        from dask.distributed import Client, LocalCluster

        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        )
        stack.enter_context(Client(stack.enter_context(cluster)))
    if backend == "ray":
        import ray
        from ray.util.joblib import register_ray

        register_ray()
        ray.init(num_cpus=2, include_dashboard=False)
        stack.callback(ray.shutdown)
    stack.enter_context(joblib.parallel_config(backend, n_jobs=2))


def main(backend, path):
    here = search()
    with ExitStack() as stack:
        enter(backend, stack)
        there = search()
    Path(path).write_text(json.dumps([here, there]))


if __name__ == "__main__":
    main(*sys.argv[1:])
