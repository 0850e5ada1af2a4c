"""Hand out, collect, grade: what a teacher needs around the course.

`release` packs what learners get. `grade` reads what came back, finds each answer by its exercise's id, runs the visible and
the hidden checks in a process that can harm nothing, and writes a table, a page for each learner, and a summary. Foreign
code is run: docs/teaching.md says what holds it, and what does not.
"""
