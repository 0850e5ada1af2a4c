"""Hand out, collect, grade: what a teacher needs around the course.

`release` packs what learners get. `grade` reads what came back, finds each answer by its exercise's id, runs
the visible and the hidden checks in a process that can harm nothing, and writes a table, a page for each
learner, and a summary. Foreign code is run: docs/teaching.md says what holds it, and what does not.

commands.py     the two commands           release.py     the pack for learners
grader.py       from files to grades       report.py      the table, the pages, the summary
submissions.py  whose file it is, and reading it without trust
answers.py      the answers in a notebook  slices.py      what each needs of the rest of it
pieces.py       what a statement does to names
sandbox.py      a process for the answers, seen from outside
judge.py        the same from inside       supervisor.py  its time, its end, its verdict
confine.py      what the kernel forbids it
suspicion.py    what an answer says that no exercise asks for
watch.py        what an answer does that no exercise asks for
grades.py       from verdicts to the grade that counts
"""
