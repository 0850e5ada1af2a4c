"""Which few parts do the work, who reads whom, and is that all of it?

paths.py                 which head reads what another wrote? Patch only the path between the two
attribution_patching.py  what every patch would do, guessed from one gradient; heads and edges
circuits.py              a circuit: heads by role, at positions; how two of them agree
knockouts.py             the model with everything outside a circuit held still
criteria.py              is it faithful, complete, minimal?
curves.py                how faithful are circuits of every size, beside chance and the truth?
abstraction.py           does the model run this program? Exchange its variables, train their subspace
pruning.py               found by a search that leaves out whatever is not missed
ioi/                     the IOI task: prompts, the paper's circuit, the one found here, roles from evidence
planted/                 circuits written down, of which the truth is known: would a method find them?
"""
