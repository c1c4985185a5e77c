"""The competitors; a loss has the same name in each of the first three.

`pairs`    the losses in eager PyTorch by autograd, as anyone would write them who knows which references are
           positives. float64 truth and `torch.compile` are taken from these
`by_hand`  the same with gradients by hand: in place, in as few passes as there can be, sparse where hinges
           leave little
`peers`    pytorch-metric-learning's classes, set to the same loss
`cross_entropy`  fused linear cross-entropies, set to Proxy-NCA++ (GPU)
`lists`    k-center, projections and retrieval in eager PyTorch
`farthest` farthest-point sampling of other libraries (GPU)
"""
