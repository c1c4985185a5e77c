"""`ccp-bench gpu`: the cases of `cases.gpu` on a CUDA device.

`device`    all that is asked of torch.cuda: events, a cold cache, peak memory, graphs, the list of kernels
`timing`    samples between events, interleaved
`ceilings`  what this GPU can do at best: copied bytes per second, and products per second in each precision
`trace`     what torch.profiler saw the device do
`occupancy` how many blocks of a kernel a multiprocessor can have
`kernels`   the kernels of a pass, each beside its floor (`cases.kernel_work` says what each must do)
`runner`    measures one case
`machine`   the GPU, its driver and its clocks
`report`    rows as tables
`command`   the subcommand
"""
