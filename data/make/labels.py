"""Make data/sae/smollm2_layer12/labels.csv: for each feature of that dictionary a program, found by search, with its scores.

    python data/make/labels.py        about 2 minutes on one core

Of the 400 texts of activity.safetensors, the programs are searched on the first 280 and scored on the other 120. At most
five terms, so that a label can be read. A feature that is never active on the first 280 gets no row.
"""

import sys

import numpy as np

import mechlab as ml
from mechlab.discovery.labels import Label, write_labels
from mechlab.reference import data_dir

TRAIN, TERMS = 280, 5


def label(values, train, test) -> Label:
    one, other = (ml.explain(values[:TRAIN], train, terms=TERMS, on_table=table) for table in (False, True))
    if np.ptp(test.flat(values[TRAIN:])) == 0:
        return Label(str(one), *[None] * 5)
    found = one.score(values[TRAIN:], test)
    both = other.score(values[TRAIN:], test).correlation
    return Label(str(one), found.correlation, found.lookup, both, found.f1, found.lookup_f1)


if __name__ == "__main__":
    folder = data_dir() / "sae" / "smollm2_layer12"
    activity = ml.Activity.load(folder / "activity.safetensors")
    train, test = ml.read_predicates(ml.load("smollm2"), activity.texts[:TRAIN], activity.texts[TRAIN:])
    labels = {}
    for feature in range(activity.d_sae):
        values = activity.values(feature)
        if values[:TRAIN].any():
            labels[feature] = label(values, train, test)
        if feature % 200 == 0:
            print(feature, file=sys.stderr, flush=True)
    write_labels(folder / "labels.csv", labels)
    scored = [each for each in labels.values() if each.correlation is not None]
    for name in ("correlation", "lookup", "both", "f1", "lookup_f1"):
        found = np.array([getattr(each, name) for each in scored])
        print(f"{name}: mean {found.mean():.2f}, above .5: {(found > 0.5).mean():.2f}")
