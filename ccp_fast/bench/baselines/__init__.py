"""The competitors.

`pairs`    the losses in eager PyTorch as anyone would write them who knows their references: matrix of similarities,
           autograd. Also what float64 truth and `torch.compile` are taken from
`by_hand`  the same losses with forward and gradients by hand: in place, in as few passes as there can be, sparse
           where hinges leave little
`peers`    pytorch-metric-learning's classes, set to the same loss
`lists`    projections, k-center and retrieval in eager PyTorch
"""
