"""What is solved, answered and predicted, notebook by notebook: for notebook 00 and `mechlab progress`."""

from dataclasses import dataclass

from mechlab_course.exercises import all_ids
from mechlab_course.progress import best, entries
from mechlab_course.questions import Form, Quiz, declared

TITLES = {
    "00": "Start here",
    "01": "Tokens and embeddings",
    "02": "One forward pass by hand",
    "03": "Hooks and caching",
    "11": "Input attribution",
    "12": "Direct logit attribution",
    "13": "Neurons",
    "21": "Logit lens and tuned lens",
    "22": "Probing",
    "23": "Attention patterns",
    "24": "Ablation",
    "25": "Superposition",
    "26": "Sparse autoencoders",
    "31": "Activation patching and causal tracing",
    "32": "Steering",
    "33": "Matrix orthogonalization",
    "34": "ROME: editing a fact",
    "41": "The IOI circuit: finding it",
    "42": "The IOI circuit: proving it",
    "43": "The IOI circuit: automating it",
    "44": "Causal abstraction",
    "53": "Circuit tracing",
    "55": "Planted circuits",
    "56": "Explanations on trial",
    "57": "Two hops",
}


COLUMNS = ("exercises", "questions", "predictions")


@dataclass(frozen=True)
class Row:
    """One notebook: of each column how many are done, and how many there are."""

    number: str
    title: str
    done: tuple[int, ...]
    all: tuple[int, ...]
    begun: bool

    @property
    def finished(self) -> bool:
        """Nothing is left to solve; a prediction is no longer one when the answer is known."""
        return self.done[:2] == self.all[:2]

    @property
    def cells(self) -> list[str]:
        return [f"{done} of {all}" if all else "" for done, all in zip(self.done, self.all, strict=True)]


@dataclass(frozen=True)
class Table:
    """What is done, notebook by notebook, and what comes next."""

    rows: list[Row]
    last: str = ""  # the notebook that the last answer belongs to

    def __repr__(self) -> str:
        width = max(len(row.title) for row in self.rows)
        lines = [
            f"{number:<2}  {title:<{width}}" + "".join(f"{cell:>13}" for cell in cells)
            for number, title, cells in [
                ("", "", COLUMNS),
                *((r.number, r.title, r.cells) for r in self.rows),
            ]
        ]
        return "\n".join([*(line.rstrip() for line in lines), self.next_step()])

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        bar = '<progress value="{}" max="{}" aria-label="{}: {} exercises"></progress>'
        body = "".join(
            f"<tr><td>{row.number}</td><td {left}>{row.title}</td>"
            + "".join(f"<td>{cell}</td>" for cell in row.cells)
            + f"<td>{bar.format(row.done[0], row.all[0], row.title, row.cells[0])}</td></tr>"
            for row in self.rows
        )
        names = "".join(f"<th>{name}</th>" for name in COLUMNS)
        head = f"<tr><td></td><th {left}>notebook</th>{names}<td></td></tr>"
        return f"<table>{head}{body}</table><p>{self.next_step()}</p>"

    def next_step(self) -> str:
        """The notebook to open: the one worked on last, or the next one after it that is not finished."""
        left = [row for row in self.rows if not row.finished]
        if not left:
            return "Everything solved."
        row = next((row for row in left if row.number >= self.last), left[0])
        begun = [each.number for each in left if each.begun and each is not row]
        besides = f" Begun and not finished: {', '.join(begun)}." if begun else ""
        return f"Next: {'go on with ' * row.begun}notebook {row.number}, {row.title}.{besides}"


def table() -> Table:
    """Progress over all notebooks that have exercises."""
    recorded = entries()
    reached, exercises = best(recorded), all_ids()
    rows = []
    for number in sorted({id.partition(".")[0] for id in exercises}):
        own = [id for id in exercises if id.startswith(number + ".")]
        kinds = (own, list(declared(number, Quiz)), list(declared(number, Form)))
        wanted = ("correct", "correct", "predicted")
        done = tuple(
            sum(reached.get(id) in (status, "recorded") for id in ids)
            for ids, status in zip(kinds, wanted, strict=True)
        )
        begun = any(reached.get(id, "not attempted") != "not attempted" for ids in kinds for id in ids)
        rows.append(Row(number, TITLES.get(number, ""), done, tuple(map(len, kinds)), begun))
    answers = [each for each in recorded if each["status"] != "not attempted"]
    answers.sort(key=lambda each: str(each.get("time", "")))  # those of another machine were added below
    return Table(rows, answers[-1]["id"].partition(".")[0] if answers else "")


progress_table = table  # its name in notebooks: run the cell again to see it anew
