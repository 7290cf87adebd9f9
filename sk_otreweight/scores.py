"""Class scores, whatever a net returns."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNet, NeuralNetClassifier
from torch import Tensor, nn

from sk_otreweight.features import first_output
from sk_otreweight.wrappers import original


def class_scores(net: NeuralNet, outputs: Any) -> Tensor:
    """Return what a softmax turns into the class probabilities, (n, K).

    Modules that return scores are taken as they are; those that return probabilities,
    by the criterion that is configured for them, at their logarithm; a single score of
    two classes is that of the second against 0.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.
    outputs : Tensor of shape (n, K), (n, 1) or (n,), or what holds it
        What the module returned.
    """
    outputs = first_output(outputs)
    criterion = original(net.criterion_)
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        second = outputs.reshape(-1)
        if isinstance(criterion, nn.BCELoss):
            return torch.stack([_log(1 - second), _log(second)], 1)
        return torch.stack([torch.zeros_like(second), second], 1)
    if isinstance(criterion, nn.NLLLoss) and isinstance(net, NeuralNetClassifier):
        return _log(outputs)
    return outputs


def is_plain_cross_entropy(net: NeuralNet) -> bool:
    """Return whether a net has cross-entropy of class scores as its loss, as it is.

    Not with class weights, label smoothing or a label to ignore, nor in a `get_loss` of
    the user: what these are for would be lost with another loss in their place.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.
    """
    criterion = original(net.criterion_)
    if type(net).get_loss not in (NeuralNet.get_loss, NeuralNetClassifier.get_loss):
        return False
    if type(criterion) not in (nn.CrossEntropyLoss, nn.NLLLoss):
        return False
    return (
        criterion.weight is None
        and criterion.ignore_index < 0
        and getattr(criterion, "label_smoothing", 0) == 0
    )


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
