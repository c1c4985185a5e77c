"""`ccp-bench gpu`: the cases of `cases.gpu` on a CUDA device.

`device`    all that is asked of torch.cuda: events, a cold cache, peak memory, graphs, the list of kernels
`timing`    samples between events, interleaved
`ceilings`  what this GPU can do at best: copied bytes per second, and products per second in each precision
`trace`     the kernels of a step, as torch.profiler saw them
`runner`    measures one case
`machine`   the GPU, its driver and its clocks
`report`    rows as tables
`command`   the subcommand
"""
