"""Which test uses which golden case, and why some are left out.

`FAMILIES` claims every case once. `EXCLUDED` takes single cases out of a family; `DEFECTIVE` names those
whose published output is no number worth reproducing: there the tests ask for finite values, the same in
float32 and float64.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from golden import names

LOSSES, NORMS = "test_golden_losses.py", "test_golden_norms.py"
SELECTION, PROJECTION = "test_golden_selection.py", "test_golden_projection.py"
CCP, RETRIEVAL = "test_golden_ccp.py", "test_evaluation.py"
MEMORY, INTRA_BATCH = "test_cross_batch_memory.py", "test_intra_batch.py"


FAMILIES = {
    "Proxy-Anchor-CVPR2020/*": LOSSES,
    "proxynca_pp/*": LOSSES,
    "SoftTriple/*": LOSSES,
    "intra_batch/*": INTRA_BATCH,
    "ccp-dml/c1__*": LOSSES,
    "ccp-dml/c2__*": LOSSES,
    "ccp-dml/trip__*": LOSSES,
    "ccp-dml/ms__*": LOSSES,
    "ccp-dml/pa__*": LOSSES,
    "ccp-dml/pnca__*": LOSSES,
    "ccp-dml/st__*": LOSSES,
    "ccp-dml/ccp_*": LOSSES,
    "ccp-dml/hard__ccp_*": LOSSES,
    "ccp-dml/hard__contrastive_*": LOSSES,
    "ccp-dml/hard__original_contrastive_*": LOSSES,
    "ccp-dml/hard__triplet_*": LOSSES,
    "ccp-dml/hard__ms_*": LOSSES,
    "ccp-dml/hard__multi_similarity_*": LOSSES,
    "ccp-dml/hard__pa_*": LOSSES,
    "ccp-dml/hard__proxy_anchor_*": LOSSES,
    "ccp-dml/hard__pnca_*": LOSSES,
    "ccp-dml/hard__proxy_nca_*": LOSSES,
    "ccp-dml/hard__soft_triple_*": LOSSES,
    "ccp-dml/hard__st_*": LOSSES,
    "ccp-dml/kcenter_*": SELECTION,
    "ccp-dml/l2norm_*": NORMS,
    "ccp-dml/distance_regularizer_*": PROJECTION,
    "ccp-dml/cb_*": CCP,
    "ccp-dml/e2e_*": CCP,
    "ccp-dml/dmleval_*": RETRIEVAL,
    "pml/acc_*": RETRIEVAL,
    "pml/xbm_*": MEMORY,
    "pml/*ArcFaceLoss__*": LOSSES,
    "pml/*CosFaceLoss__*": LOSSES,
    "pml/*NormalizedSoftmaxLoss__*": LOSSES,
    "pml/*SoftTripleLoss__*": LOSSES,
    "pml/*LiftedStructureLoss__*": LOSSES,
    "pml/*ContrastiveLoss__*": LOSSES,
    "pml/*TripletMarginLoss__*": LOSSES,
    "pml/*MultiSimilarityLoss__*": LOSSES,
    "pml/*ProxyAnchorLoss__*": LOSSES,
    "pml/*ProxyNCALoss__*": LOSSES,
}

_SQUARED = "squared distances under a ball normalisation: an option this package does not have"
_MINER = "pairs picked by a miner: an option this package does not have"
_RAISED = "the published code raises: there is no output to compare with"
_DOT = (
    "its logits are dot products, ours −d²/T; they agree between unit vectors only, and a proxy here is none"
)
_NOMAT = "without any negative pair the published code takes all pairs for negatives"
_ABLATED = "an ablation of the published code, off in all its settings: an option this package does not have"
_NEGATIVE_DISTANCE = "its similarity is the negative distance: an option this package does not have"
_ONE_COLUMN = "two classes get one column of labels, which broadcasts over both proxies"

EXCLUDED = {
    "ccp-dml/c2__*_sq": _SQUARED,
    "ccp-dml/trip__*_sq": _SQUARED,
    "ccp-dml/hard__contrastive_dup_sq_proxy": _SQUARED,
    "ccp-dml/c2__*_hardneg": _MINER,
    "ccp-dml/ccp_*_hardneg": _MINER,
    "pml/MultiSimilarityLoss__*_miner0.1": _MINER,
    "pml/TripletMarginLoss__*_semihard": _MINER,
    "pml/xbm_*_miner": _MINER,
    "pml/TripletMarginLoss__*_swap": "anchor swap: an option this package does not have",
    "pml/TripletMarginLoss__*_smooth": "softplus in place of the hinge: an option this package does not have",
    "pml/TripletMarginLoss__*_cos": "triplets of cosines: an option this package does not have",
    "ccp-dml/trip__*_nomat_panchor_*": _RAISED,
    "ccp-dml/trip__b12c5k4d8unb__lip__batch__nomat_sanchor_m0.05": _RAISED,
    "ccp-dml/trip__b16c6k4d128__lip__batch__nomat_sanchor_m0.05_avgall": _RAISED,
    "ccp-dml/hard__triplet_nomat_ties_unb": _RAISED,
    "ccp-dml/st__*_proxy_anchor_False": _RAISED,
    "ccp-dml/st__*__l2__default": _NEGATIVE_DISTANCE,
    "ccp-dml/st__*__l2__la20_*": _NEGATIVE_DISTANCE,
    "ccp-dml/hard__soft_triple_*": _NEGATIVE_DISTANCE,
    "SoftTriple/hard_st_label_out_of_range": _RAISED,
    "pml/hard_ArcFaceLoss__label_out_of_range": _RAISED,
    "pml/hard_NormalizedSoftmaxLoss__label_out_of_range": _RAISED,
    "ccp-dml/hard__triplet_nomat_batch_all_same": _NOMAT,
    "pml/hard_ProxyAnchorLoss__label_out_of_range": _RAISED,
    "proxynca_pp/hard_pnca_classic_one_class": _RAISED,
    "intra_batch/hard_gnn_b1_train": _RAISED,
    "intra_batch/gnn_aggr_*": _ABLATED,
    "intra_batch/gnn_mult_attr_*": _ABLATED,
    "intra_batch/gnn_nomlp": _ABLATED,
    "intra_batch/gnn_nonorm_nores": _ABLATED,
    "ccp-dml/dmleval_batched_residual1": _RAISED,
    "ccp-dml/pnca__*_lip__*": _DOT,
    "ccp-dml/pnca__*_nonorm__*": _DOT,
    "ccp-dml/hard__proxy_nca_*_lip_proxy": _DOT,
    "ccp-dml/hard__proxy_nca_single_sample": _DOT,
    "ccp-dml/hard__proxy_nca_zero_l2n_proxy": _DOT,
    "ccp-dml/pnca__*_d0.2": "a margin on the positive logit: an option of margin_softmax, not of proxy_nca",
    "Proxy-Anchor-CVPR2020/hard_pa_two_classes": _ONE_COLUMN,
    "proxynca_pp/hard_pnca_prob_two_classes": _ONE_COLUMN,
}

_ACOS = "acos has no derivative where a sample equals its proxy: NaN gradient"

DEFECTIVE = {
    "Proxy-Anchor-CVPR2020/hard_pa_alpha100_masked_only_f32": "exp overflows at masked entries: NaN gradient",
    "Proxy-Anchor-CVPR2020/hard_pa_one_class": "one class makes the loss 0/0",
    "ccp-dml/hard__pnca_lambda0.005_opposed": "log(p + 1e-16) ends at 36.84 without a gradient",
    "pml/hard_ArcFaceLoss__opposed_scale1000_f32": _ACOS,
    "pml/hard_ArcFaceLoss__opposed_scale100_f64": _ACOS,
    "pml/hard_SubCenterArcFaceLoss__opposed_scale100_f32": _ACOS,
    "pml/hard_SubCenterArcFaceLoss__opposed_scale100_f64": _ACOS,
    "pml/hard_SubCenterArcFaceLoss__opposed_scale32_f32": _ACOS,
    "proxynca_pp/hard_pnca_classic_label_out_of_range": "a sample without a proxy makes the loss infinite",
    "proxynca_pp/hard_pnca_classic_opposed_s10_f32": "exp underflows: log 0",
    "proxynca_pp/hard_pnca_classic_two_classes": "one column of labels for two classes: NaN",
}


def matching(table: dict[str, str], name: str) -> list[str]:
    return [pattern for pattern in table if fnmatchcase(name, pattern)]


def cases_of(test: str) -> list[str]:
    """The cases a test file compares with."""
    claimed = names(*(pattern for pattern, where in FAMILIES.items() if where == test))
    return [n for n in claimed if not matching(EXCLUDED, n) and not matching(DEFECTIVE, n)]
