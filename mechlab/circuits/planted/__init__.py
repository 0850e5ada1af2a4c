"""Circuits of which the truth is known, since they were written down: what would a method find there?

plan        what a model does, as channels of the stream, heads that match and move, and truth tables
compiling   from a plan to a GPT-2, weights written down
gated       the same with gated MLPs and rotary positions: a Llama
tasks       three circuits and prompts for them
traps       changes of a plan that fool some method
models      a planted circuit with its prompts and its truth, and how scores are judged by it
trained     a circuit that training put there: three heads that hold three variables of a program
"""
