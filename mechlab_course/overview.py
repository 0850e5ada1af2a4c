"""Which exercises are solved, notebook by notebook: the table of notebook 00 and of `mechlab progress`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechlab_course.exercises import all_ids
from mechlab_course.progress import best, entries

if TYPE_CHECKING:
    import ipywidgets

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
}


@dataclass(frozen=True)
class Table:
    """Exercises done, notebook by notebook."""

    rows: list[tuple[str, str, int, int]]  # number, title, done, all

    def __repr__(self) -> str:
        lines = [f"{number}  {title:<28} {done} of {total}" for number, title, done, total in self.rows]
        return "\n".join(["Exercises solved", *lines, self.next_step()])

    def to_html(self) -> str:
        bar = '<progress value="{}" max="{}" aria-label="{}: {} of {}"></progress>'
        body = "".join(
            f'<tr><td>{number}</td><td style="text-align:left">{title}</td><td>{done} of {total}</td>'
            f"<td>{bar.format(done, total, title, done, total)}</td></tr>"
            for number, title, done, total in self.rows
        )
        head = '<tr><th></th><th style="text-align:left">notebook</th><th>solved</th><th></th></tr>'
        return f"<table>{head}{body}</table><p>{self.next_step()}</p>"

    _repr_html_ = to_html

    def next_step(self) -> str:
        for number, title, done, total in self.rows:
            if done < total:
                return f"Next: notebook {number}, {title.lower()}."
        return "Everything solved."


def table() -> Table:
    """Progress over all notebooks that have exercises."""
    reached = best(entries())
    rows = []
    for number in sorted({id.partition(".")[0] for id in all_ids()}):
        ids = [id for id in all_ids() if id.startswith(number + ".")]
        done = sum(reached.get(id) == "correct" for id in ids)
        rows.append((number, TITLES.get(number, ""), done, len(ids)))
    return Table(rows)


def progress_table() -> "ipywidgets.VBox":
    """The learner's progress, with a button that reads it again."""
    import ipywidgets as w

    button, shown = w.Button(description="Refresh", tooltip="Read the progress file again"), w.HTML()
    update = lambda _=None: setattr(shown, "value", table().to_html())
    button.on_click(update)
    update()
    return w.VBox([button, shown])
