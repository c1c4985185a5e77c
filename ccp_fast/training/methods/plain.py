"""The loss alone, within the batch or to proxies that it owns."""

from __future__ import annotations

from ccp_fast.training.methods.base import Method


class Plain(Method):
    """Minimise the loss."""

    title = ""
