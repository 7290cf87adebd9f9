"""Build the user's net, try it on a few rows, and find its head."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from skorch import NeuralNet, NeuralNetClassifier
from skorch.callbacks import InputShapeSetter
from skorch.utils import to_tensor
from torch import Tensor

from sk_otreweight._validation import (
    check_criterion,
    check_finite_output,
    check_output_width,
    warn_narrow_features,
)
from sk_otreweight.features import (
    Head,
    find_head,
    first_output,
    return_scores_alone,
)
from sk_otreweight.inputs import batch_of, padded, take
from sk_otreweight.nets import build_net, is_bare
from sk_otreweight.processes import device_of
from sk_otreweight.wrappers import alone, autocast, eager, original

_PROBE_ROWS = 4


class PreparedNet(NamedTuple):
    """A net that is ready to be trained.

    Attributes
    ----------
    net : skorch.NeuralNet
        Initialised.
    is_trained : bool
        Whether it came trained, so that stage 1 is left out.
    head : Head or None
        Where features are read, if that was asked for.
    """

    net: NeuralNet
    is_trained: bool
    head: Head | None


def prepare_net(
    net: Any,
    X: Any,
    *,
    sizes: dict[str, int],
    verbose: int,
    head: Any,
    needs_head: bool,
) -> PreparedNet:
    """Build the net, let it see a few rows, and check what it makes of them.

    Parameters
    ----------
    net : as in OTReweightedClassifier
    X : inputs
    sizes : dict
        ``n_features``, if known, and ``n_classes``.
    verbose : int
    head : str, callable or None
    needs_head : bool
        Whether the head is to be looked for.

    Returns
    -------
    prepared : PreparedNet

    Raises
    ------
    ValueError
        If the net does not return a score per class, or its head cannot be found.
    """
    n_classes = sizes["n_classes"]
    built, is_trained = build_net(net, sizes=sizes, verbose=verbose)
    if not is_trained:
        built.initialize()
        _set_input_shapes(built, X)
    output = probe(built, X)
    check_output_width(output, n_rows=_PROBE_ROWS, n_classes=n_classes)
    check_finite_output(output)
    if output.numel() == len(output) and is_bare(net):
        built, is_trained = build_net(
            net, sizes=sizes, verbose=verbose, one_output=True
        )
        built.initialize()
        probe(built, X)
    check_criterion(
        original(built.criterion_),
        output,
        takes_log=isinstance(built, NeuralNetClassifier),
    )
    found = find_net_head(built, X, head, n_classes) if needs_head else None
    return PreparedNet(built, is_trained, found)


def _set_input_shapes(net: NeuralNet, X: Any) -> None:
    """Let skorch's callback size the module now: it would wait for the training."""
    for _, callback in net.callbacks_:
        if isinstance(callback, InputShapeSetter):
            callback.on_train_begin(net, X=X, y=None)


def probe(net: NeuralNet, X: Any) -> Tensor:
    """Return the scores of a few rows, in evaluation mode.

    If the module returns a tuple, or an object with ``.logits``, that the net's loss
    cannot read, then it is made to return the scores alone.
    """
    rows = _probe_rows(net, X)
    with eager(net), alone(net):
        output = net.evaluation_step((rows, None))
    scores = first_output(output)
    if not (scores is output or _loss_reads(net, output, rows, _PROBE_ROWS)):
        return_scores_alone(original(net.module_))
    return scores


def _loss_reads(net: NeuralNet, output: Any, X: Any, n_rows: int) -> bool:
    """Return whether the net has a loss that was written for what its module returns.

    Tried out with labels of both kinds; what a foreign loss may raise is not known.
    """
    for dtype in (torch.int64, torch.float32):
        labels = torch.zeros(n_rows, dtype=dtype, device=device_of(net))
        with suppress(Exception), torch.no_grad():
            net.get_loss(output, labels, X=X, training=False)
            return True
    return False


def find_net_head(net: NeuralNet, X: Any, head: Any, n_classes: int) -> Head:
    """Find the head of an initialised net by a few rows; see `find_head`."""
    rows = _probe_rows(net, X)
    with eager(net):
        net.module_.eval()
        found = find_head(net.module_, net.infer, rows, head)
    if head is None:
        layer = original(net.module_).get_submodule(found.name)
        warn_narrow_features(found.name, layer.in_features, n_classes=n_classes)
    return found


def replays(net: NeuralNet, head: Head, X: Any) -> bool:
    """Return whether the head alone returns what the module does for some rows."""
    rows = _probe_rows(net, X)
    with eager(net), torch.no_grad():
        net.module_.eval()
        expected = first_output(net.infer(rows))
        features = head.features(net.module_, net.infer, rows)
        with autocast(net):
            replayed = head.replay(net.module_, features)
    return torch.allclose(replayed.to(expected.dtype), expected, rtol=1e-3, atol=1e-4)


def _probe_rows(net: NeuralNet, X: Any) -> Any:
    """Return a batch of a few rows; some modules do not take a single one."""
    few = padded(take(X, slice(_PROBE_ROWS)), _PROBE_ROWS)
    return to_tensor(batch_of(net, few, slice(None)), device=device_of(net))
