"""Each published loss, said in this package's functional API.

A recipe takes the API (`ccp_fast.functional` or `ccp_fast.reference`), a case, embeddings and proxies as
tensors that may require gradients, and returns the scalar loss. Differences of convention (a margin's sign, a
temperature, a divisor) are written here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ccp_fast import reference
from ccp_fast.reference.pairs import normalise
from golden import Case

Recipe = Callable[[Any, Case, Tensor, "Tensor | None", Tensor], Tensor]  # (F, case, emb, proxies, labels)


def recipe(case: Case) -> Recipe:
    return RECIPES[case.name.split("/")[0], case.meta["class"]]


def sharpness(case: Case) -> float:
    """The largest factor before a similarity inside exp."""
    if case.name.startswith("pml/") and case.meta["class"] in PML_SCALES:
        return PML_SCALES[case.meta["class"]](case)
    factors = ("alpha", "beta", "attr_alpha", "attr_beta", "softmax_scale", "attr_lambda_softmax", "la")
    return max([1.0, *(float(case.flags[key]) for key in factors if key in case.flags)])


def has_columns(case: Case) -> bool:
    """Is `weight` [D, C·K], a centre a column, class after class?"""
    return "(D, " in case.meta["layout"]


# ---- ccp-dml: TensorFlow, proxies [K·C, D] tiled: proxy j has label j mod C


def _tf_references(case: Case, proxies: Tensor | None, labels: Tensor) -> dict[str, Any]:
    if proxies is None:
        return {"references": None}
    classes = int(case["proxy_labels"].max()) + 1
    if int(labels.max()) >= classes:  # only labelled references may lack a sample's class
        return {"references": proxies, "reference_labels": torch.from_numpy(case["proxy_labels"]).long()}
    return {"references": proxies.unflatten(0, (-1, classes)).transpose(0, 1)}


def _tf_normalize(flags: dict[str, Any]) -> str | None:
    if not flags["normalize_embeddings"]:
        return None
    return "ball" if flags["lipschitz_cont"] else "unit"


def _tf_shared(case: Case, proxies: Tensor | None, labels: Tensor) -> dict[str, Any]:
    return {
        **_tf_references(case, proxies, labels),
        "labels": labels,
        "normalize": _tf_normalize(case.flags),
        "anchor": "proxy" if case.flags["proxy_anchor"] and proxies is not None else "sample",
    }


def tf_c1(F: Any, case: Case, emb: Tensor, proxies: Tensor | None, labels: Tensor) -> Tensor:
    return _tf_c1(F, emb, case.flags["attr_margin"], _tf_shared(case, proxies, labels))


def _tf_c1(F: Any, emb: Tensor, margin: float, shared: dict[str, Any]) -> Tensor:
    """The hinge of the positives is (1 − s − 1e-5)₊."""
    hinges = {"distance": "cosine", "pos_margin": 1e-5, "neg_margin": margin}
    return F.contrastive(emb, **shared, **hinges, reduction="anchor_mean")


def tf_c2(F: Any, case: Case, emb: Tensor, proxies: Tensor | None, labels: Tensor) -> Tensor:
    flags = case.flags
    near, far = flags["attr_pos_margin"], flags["attr_neg_margin"]
    if flags["use_intra_proxy_pairs"]:  # the proxies stand before the batch, each a positive of itself
        assert proxies is not None
        proxy_labels = torch.from_numpy(case["proxy_labels"]).long()
        everyone, every_label = torch.cat([proxies, emb]), torch.cat([proxy_labels, labels])
        return F.contrastive(everyone, proxies, every_label, proxy_labels, pos_margin=near, neg_margin=far)
    if flags["distance_function"] == "cos":  # its distance is −s, so (−s − near)₊ and (far + s)₊
        hinges = {"distance": "cosine", "pos_margin": 1 + near, "neg_margin": -far}
    else:
        hinges = {"distance": "l2", "pos_margin": near, "neg_margin": far}
    reduction = "active_mean" if flags["avg_nonzero_only"] else "mean"
    return F.contrastive(emb, **_tf_shared(case, proxies, labels), **hinges, reduction=reduction)


def tf_triplet(F: Any, case: Case, emb: Tensor, proxies: Tensor | None, labels: Tensor) -> Tensor:
    """Averaged over the nonzero triplets; else over the whole cube, or over the triplets if it lists them."""
    flags, shared = case.flags, _tf_shared(case, proxies, labels)
    margin = flags["attr_margin"]
    if flags["avg_nonzero_only"]:
        return F.triplet(emb, **shared, margin=margin)
    if not flags["attr_triplets_from_mat"]:
        return F.triplet(emb, **shared, margin=margin, reduction="mean")
    rows, columns = len(emb), len(emb if proxies is None else proxies)
    return F.triplet(emb, **shared, margin=margin, reduction="sum") / (rows * columns**2)


def tf_multi_similarity(F: Any, case: Case, emb: Tensor, proxies: Tensor | None, labels: Tensor) -> Tensor:
    """The class overwrites proxy_anchor with False."""
    flags = case.flags
    shared = _tf_shared(case, proxies, labels) | {"anchor": "sample"}
    return F.multi_similarity(
        emb, **shared, alpha=flags["attr_alpha"], beta=flags["attr_beta"], base=flags["attr_lambd"]
    )


def tf_proxy_anchor(F: Any, case: Case, emb: Tensor, proxies: Tensor | None, labels: Tensor) -> Tensor:
    """Divides the negative part by the number of proxies with a negative, not by all."""
    flags = case.flags
    shared = _tf_shared(case, proxies, labels)
    return F.proxy_anchor(
        emb, **shared, alpha=flags["attr_alpha"], margin=flags["attr_delta"], reduction="active_mean"
    )


def tf_proxy_nca(F: Any, case: Case, emb: Tensor, proxies: Tensor | None, labels: Tensor) -> Tensor:
    """Its logits are λ·s; −d²/T is 2·s/T up to a constant between unit vectors."""
    temperature = 2 / case.flags["attr_lambda_softmax"]
    return F.proxy_nca(emb, **_tf_shared(case, proxies, labels), temperature=temperature)


def tf_soft_triple(F: Any, case: Case, emb: Tensor, proxies: Tensor | None, labels: Tensor) -> Tensor:
    """gamma multiplies; the centres' distances are √(2 − 2·w·w') of raw proxies."""
    assert proxies is not None
    flags = case.flags
    shared = _tf_shared(case, proxies, labels) | {"anchor": "sample"}
    named = {"scale": flags["attr_lambda_softmax"], "margin": flags["attr_delta_margin"]}
    value = F.soft_triple(emb, **shared, **named, gamma=1 / flags["attr_gamma"], tau=0.0)
    if flags["attr_tau_reg"] == 0:
        return value
    return value + flags["attr_tau_reg"] * _spread_by_products(shared["references"], eps=0.0)


def tf_ccp(F: Any, case: Case, emb: Tensor, proxies: Tensor | None, labels: Tensor) -> Tensor:
    """0.1 · the loss within the batch, norms always clamped (ball), + 1.0 · the loss against the proxies."""
    flags = case.flags
    pair = {"references": None, "labels": labels, "normalize": "ball"}
    proxy = _tf_shared(case, proxies, labels)
    parts = [_tf_named(F, flags["function"], flags["params"], emb, shared) for shared in (pair, proxy)]
    return flags["loss_weight"] * parts[0] + flags["ccp_weight"] * parts[1]


def _tf_named(F: Any, function: str, params: dict[str, Any], emb: Tensor, shared: dict[str, Any]) -> Tensor:
    if function == "contrastive":
        return F.contrastive(emb, **shared, **params)
    if function == "original_contrastive":
        return _tf_c1(F, emb, params["margin"], shared)
    if function == "triplet":
        return F.triplet(emb, **shared, margin=params["margin"])
    assert function == "multi_similarity"
    alpha, beta, base = (params[f"{name}_margin"] for name in ("alpha", "beta", "lambda"))
    return F.multi_similarity(emb, **shared | {"anchor": "sample"}, alpha=alpha, beta=beta, base=base)


# ---- PyTorch originals: weight [C, D], one proxy a class, unit vectors


def official_proxy_anchor(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    """A sample without a proxy is a negative of every proxy."""
    assert weight is not None
    named = {"alpha": case.flags["alpha"], "margin": case.flags["mrg"]}
    if int(labels.max()) >= len(weight):
        return F.proxy_anchor(emb, weight, labels, torch.arange(len(weight)), **named)
    return F.proxy_anchor(emb, weight[:, None], labels, **named)


def official_proxy_nca(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    """Scales unit vectors by `scale` before the squared distance."""
    variant = {"ProxyNCA_prob": "plus_plus", "ProxyNCA_classic": "original"}[case.meta["class"]]
    temperature = 1 / case.flags["scale"] ** 2
    assert weight is not None
    named = {"temperature": temperature, "variant": variant}
    if int(labels.max()) >= len(weight):
        return F.proxy_nca(emb, weight, labels, torch.arange(len(weight)), **named)
    return F.proxy_nca(emb, weight[:, None], labels, **named)


def official_soft_triple(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    """Takes embeddings as they are; adds 1e-5 under the root of the centres' distances."""
    flags = case.flags
    assert weight is not None
    centres = normalise(_columns(weight, flags["cN"]), "unit")
    named = {"scale": flags["la"], "gamma": flags["gamma"], "margin": flags["margin"], "tau": flags["tau"]}
    value = F.soft_triple(emb, centres, labels, **named, normalize=None)
    if flags["K"] == 1:
        return value
    return value + flags["tau"] * (_spread_by_products(centres, eps=1e-5) - reference.centre_spread(centres))


def _columns(weight: Tensor, classes: int) -> Tensor:
    """[D, C·K], class after class, as [C, K, D]."""
    return weight.T.unflatten(0, (classes, -1))


def _spread_by_products(centres: Tensor, eps: float) -> Tensor:
    """Σ_{c, k<k'} √(eps + 2 − 2·w·w') / (C·K·(K−1))."""
    classes, size, _ = centres.shape
    if size == 1:
        return centres.new_zeros(())
    first, second = torch.triu_indices(size, size, offset=1)
    products = (centres[:, first] * centres[:, second]).sum(2)
    return (2 + eps - 2 * products).sqrt().sum() / (classes * size * (size - 1))


# ---- pytorch-metric-learning


def pml_contrastive(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    near, far = case.flags.get("pos_margin", 0), case.flags.get("neg_margin", 1)
    shared: dict[str, Any] = {"references": None, "labels": labels, "normalize": "unit"}
    if case.name.endswith("__cos"):  # margins of similarity: (near − s)₊ and (s − far)₊
        return F.contrastive(emb, **shared, distance="cosine", pos_margin=1 - near, neg_margin=far)
    if case.name.endswith("__power2"):  # d² = 2 − 2s between unit vectors
        return 2 * F.contrastive(
            emb, **shared, distance="cosine", pos_margin=near / 2, neg_margin=1 - far / 2
        )
    if case.name.endswith("__nonorm"):
        shared["normalize"] = None
    if case.name.endswith("__meanreducer"):  # each part over its pairs; a margin silences the other part
        same = labels[:, None] == labels
        positives = F.contrastive(emb, **shared, pos_margin=near, neg_margin=0, reduction="sum")
        negatives = F.contrastive(emb, **shared, pos_margin=4, neg_margin=far, reduction="sum")
        return positives / (same.sum() - len(labels)) + negatives / (~same).sum()
    return F.contrastive(emb, **shared, pos_margin=near, neg_margin=far)


def pml_triplet(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    reduction = "mean" if case.name.endswith("__meanreducer") else "active_mean"
    margin = case.flags.get("margin", 0.05)
    return F.triplet(emb, None, labels, margin=margin, normalize="unit", reduction=reduction)


def pml_multi_similarity(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    named = {key: case.flags[key] for key in ("alpha", "beta", "base") if key in case.flags}
    return F.multi_similarity(emb, None, labels, **named)


def pml_proxy_anchor(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    named = {key: case.flags[key] for key in ("alpha", "margin") if key in case.flags}
    assert weight is not None
    return F.proxy_anchor(emb, weight[:, None], labels, **named)


def pml_proxy_nca(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    """The mean is over the samples whose class has a proxy."""
    assert weight is not None
    classes = torch.arange(len(weight))
    temperature = 1 / case.flags.get("softmax_scale", 1)
    return F.proxy_nca(emb, weight, labels, classes, temperature=temperature, reduction="active_mean")


def pml_lifted(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    """Both margins are taken from distances, so only their difference counts where an anchor has positives."""
    far, near = case.flags.get("neg_margin", 1), case.flags.get("pos_margin", 0)
    shared: dict[str, Any] = {"references": None, "labels": labels, "normalize": "unit"}
    if case.meta["class"] == "LiftedStructureLoss":
        return F.lifted_structure(emb, **shared, margin=far - near)
    alone = (labels[:, None] == labels).sum(1) == 1
    with_positives, without = (
        F.lifted_structure(emb, **shared, variant="anchor", margin=margin, reduction="none")
        for margin in (far - near, far)
    )
    return torch.where(alone, without, with_positives).mean()


def pml_normalized_softmax(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    return _pml_softmax(F, case, emb, weight, labels, kind="none")


def pml_cosface(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    margin = case.flags.get("margin", 0.35)
    return _pml_softmax(F, case, emb, weight, labels, kind="cosface", margin=margin)


def pml_arcface(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    """Its margin is in degrees."""
    margin = math.radians(case.flags.get("margin", 28.6))
    return _pml_softmax(F, case, emb, weight, labels, kind="arcface", margin=margin)


def _pml_softmax(
    F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor, **named: Any
) -> Tensor:
    assert weight is not None
    centres = _columns(weight, case.flags["num_classes"])
    return F.margin_softmax(emb, centres, labels, scale=sharpness(case), **named)


PML_SCALES: dict[str, Callable[[Case], float]] = {
    "NormalizedSoftmaxLoss": lambda case: 1 / case.flags.get("temperature", 0.05),
    **dict.fromkeys(
        ("CosFaceLoss", "ArcFaceLoss", "SubCenterArcFaceLoss"),
        lambda case: float(case.flags.get("scale", 64)),
    ),
}


def pml_soft_triple(F: Any, case: Case, emb: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    """Without the regulariser."""
    assert weight is not None
    named = {
        name: case.flags[key]
        for name, key in (("scale", "la"), ("gamma", "gamma"), ("margin", "margin"))
        if key in case.flags
    }
    return F.soft_triple(emb, _columns(weight, case.flags["num_classes"]), labels, **named, tau=0.0)


RECIPES: dict[tuple[str, str], Recipe] = {
    ("ccp-dml", "OriginalContrastiveLoss"): tf_c1,
    ("ccp-dml", "ContrastiveLoss"): tf_c2,
    ("ccp-dml", "TripletLoss"): tf_triplet,
    ("ccp-dml", "MultiSimilarityLoss"): tf_multi_similarity,
    ("ccp-dml", "ProxyAnchorLoss"): tf_proxy_anchor,
    ("ccp-dml", "ProxyNCALoss"): tf_proxy_nca,
    ("ccp-dml", "SoftTripleLoss"): tf_soft_triple,
    ("ccp-dml", "CCPLoss/LossWithCCP"): tf_ccp,
    ("Proxy-Anchor-CVPR2020", "Proxy_Anchor"): official_proxy_anchor,
    ("proxynca_pp", "ProxyNCA_prob"): official_proxy_nca,
    ("proxynca_pp", "ProxyNCA_classic"): official_proxy_nca,
    ("SoftTriple", "SoftTriple"): official_soft_triple,
    ("pml", "ContrastiveLoss"): pml_contrastive,
    ("pml", "TripletMarginLoss"): pml_triplet,
    ("pml", "MultiSimilarityLoss"): pml_multi_similarity,
    ("pml", "ProxyAnchorLoss"): pml_proxy_anchor,
    ("pml", "ProxyNCALoss"): pml_proxy_nca,
    ("pml", "LiftedStructureLoss"): pml_lifted,
    ("pml", "GeneralizedLiftedStructureLoss"): pml_lifted,
    ("pml", "NormalizedSoftmaxLoss"): pml_normalized_softmax,
    ("pml", "CosFaceLoss"): pml_cosface,
    ("pml", "ArcFaceLoss"): pml_arcface,
    ("pml", "SubCenterArcFaceLoss"): pml_arcface,
    ("pml", "SoftTripleLoss"): pml_soft_triple,
}
