"""Heads in the place of a net's last layer."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNet
from torch import nn

from sk_otreweight._validation import check_linear_head
from sk_otreweight.features import Head, ReplacedHead, put_head
from sk_otreweight.losses import CosineLinear
from sk_otreweight.wrappers import original


class CosineHead(ReplacedHead, CosineLinear):
    """Scaled cosines, beginning with the directions of a linear layer.

    Parameters
    ----------
    linear : nn.Linear
    scale : float, default=30.0
    """

    def __init__(self, linear: nn.Linear, scale: float = 30.0):
        super().__init__(linear.in_features, linear.out_features, scale)
        with torch.no_grad():
            self.weight.copy_(linear.weight)


def head_layer(net: NeuralNet, head: Head) -> nn.Module:
    """Return the layer that produces the class scores."""
    return original(net.module_).get_submodule(head.name)


def linear_head(net: NeuralNet, head: Head) -> nn.Linear:
    """Return the layer that produces the class scores.

    Raises
    ------
    ValueError
        If it is no ``nn.Linear`` with an output per class.
    """
    layer = None if head.name is None else head_layer(net, head)
    check_linear_head(layer, name=head.name)
    return layer


def replace_head(
    net: NeuralNet, head: Head, kind: type[ReplacedHead], **arguments: Any
) -> nn.Module:
    """Put another layer in the place of the last one, before the training.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised; its optimizer is made anew, with the new parameters.
    head : Head
    kind : type
        Called with the ``nn.Linear`` with K outputs, and `arguments`.

    Returns
    -------
    layer : nn.Module

    Raises
    ------
    ValueError
        If the head is no ``nn.Linear`` with an output per class.
    """
    linear_head(net, head)  # or raise
    net.module_ = put_head(original(net.module_), head.name, kind, arguments)
    net.initialize_optimizer()
    return head_layer(net, head)
