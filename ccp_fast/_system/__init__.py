"""What the package asks of the machine it runs on, for data, trainer and benchmarks alike: it imports none of them.

`files`        writing so that nobody ever sees half of a file
`lock`         keeping other processes out of a folder
`environment`  versions, build and commit, memory
`errors`       what the user can put right
"""
