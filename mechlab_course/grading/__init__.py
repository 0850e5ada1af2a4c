"""Hand out, collect, grade: what a teacher needs around the course.

`release` packs what learners get, as it is, without answers, or as an exam. `grade` reads what came back,
finds each answer by its exercise's id, runs the visible and the hidden checks in a process that can harm
nothing, and writes a table, a page for each learner, and a summary. Foreign code is run: docs/teaching.md
says what holds it, and what does not.

commands.py     the two commands           release.py     the pack for learners
opened.py       the data it needs          withheld.py    what of it is kept back, and pack.md its README
grader.py       from files to grades       results.py     a result for each different answer
submissions.py  whose file it is, and reading it without trust
keys.py         what Moodle and Canvas write into names
answers.py      the answers in a notebook  slices.py      what each needs of the rest of it
pieces.py       what a statement does to names
report.py       the table, the pages       summary.py     the class in one page
items.py        figures of each exercise   similar.py     hints at answers that are alike
decisions.py    what a teacher decides     compare.py     what changed since an earlier table
sheets.py       the systems' own sheets    tables.py      tables that people edit
sandbox.py      a process for the answers, seen from outside
judge.py        the same from inside       supervisor.py  its time, its end, its verdict
confine.py      what the kernel forbids it
suspicion.py    what an answer says that no exercise asks for
watch.py        what an answer does that no exercise asks for
grades.py       from verdicts to the grade that counts
"""
