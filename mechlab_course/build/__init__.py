"""From a notebook's one source to what learners get.

sources.py    read a source: cells and their kinds, exercises with their checks and wrong answers
folding.py    what of a cell is folded, so that no prediction is given away
notebooks.py  make the notebooks, and say what is stale
execute.py    run a solution and keep its outputs small
docs.py       the generated pages of docs/
links.py      the repository's address, and what lies there
workspace.py  working copies: refresh, update    place.py  the folder they lie in
copies.py     a learner's file: found, read, written
restoring.py  correct answers, put back into it
merging.py    the learner's cells in a new version of a notebook
package.py    the wheel and the sdist of a release
colab.py      what the setup cell runs in Colab
"""
