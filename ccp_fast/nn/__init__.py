"""Modules that take part in training and are left out afterwards."""

from __future__ import annotations

from ccp_fast.nn.intra_batch import IntraBatchLoss, IntraBatchMessagePassing, MessagePassingLayer

__all__ = ["IntraBatchLoss", "IntraBatchMessagePassing", "MessagePassingLayer"]
