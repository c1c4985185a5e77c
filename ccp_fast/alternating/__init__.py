"""Parts of the CCP algorithm (`ccp_fast.ccp` puts them together).

`pool`     embeds the candidates for the proxies
`choice`   picks the proxies among them, and measures how well proxies cover a pool
`record`   what a run keeps of each sub-problem
`weights`  copies of a network and its proxies, to go back to
"""
