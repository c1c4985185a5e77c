"""`ccp-bench`: how fast, small and exact the operators are, beside the best plain PyTorch and their peers.

`cases/`      what is measured: inputs, work, who competes, what is aimed at. A new case goes here
`baselines/`  the competitors: eager PyTorch (by autograd, and by hand), other libraries
`ceilings`    what this machine can do at best: copied bytes and fused multiply-adds per second
`timing`      interleaved rounds, medians
`memory`      peak extra memory, in a process of its own
`accuracy`    errors against float64
`runner`      measures one case: the four above together
`results`     rows: JSON, aims, comparison with an older run
`report`      rows as `tables`
`command`     the command line
`gpu/`        the same on a CUDA device, with ceilings, timing, memory and a runner of its own
"""
