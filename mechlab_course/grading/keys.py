"""What Moodle and Canvas write into the names of what they let a teacher download.

Moodle: `Anna Schmidt_1001_assignsubmission_file_`, a folder, or with the file's name behind it. The number is
the participant's, as in the column "Identifier" of a grading worksheet. Canvas:
`smithtom_LATE_54321_998877_answers.ipynb`, with the user's number and the file's.
"""

import re
from dataclasses import dataclass, replace

_MOODLE = re.compile(r"(?P<name>.+?)_(?P<id>\d+)_assignsubmission_[a-z]+(?:_(?P<rest>.*))?")
# Without LATE a file's number has three digits and more: `group_12_31_answers.ipynb` is nobody's number 12.
_CANVAS = re.compile(r"(?P<name>.+?)(?P<late>_LATE)?_(?P<id>\d+)_(?P<file>(?(late)\d+|\d{3,}))_(?P<rest>.+)")
_ANONYMOUS = re.compile(r"(?P<late>LATE_)?anon_(?P<id>[^\W_]{5})_(?P<file>\d{3,})_(?P<rest>.+)")


@dataclass(frozen=True)
class Key:
    """Whom a learning system means: `system` is "moodle" or "canvas", `id` its number for the learner.

    file: Canvas's number of the file that was handed in, without which it takes no feedback.
    """

    system: str
    id: str
    file: str = ""
    late: bool = False

    def joined(self, other: "Key | None") -> "Key":
        """The two of one learner's files: late if one was."""
        return replace(self, late=self.late or other.late) if other else self


def key_of(name: str) -> tuple[str, Key | None, str]:
    """(the learner's name, the key, what is left of the name), of the name of a folder or a file."""
    if found := _MOODLE.fullmatch(name):
        return found["name"], Key("moodle", found["id"]), found["rest"] or ""
    if found := _ANONYMOUS.fullmatch(name) or _CANVAS.fullmatch(name):
        key = Key("canvas", found["id"], found["file"], bool(found["late"]))
        return found.groupdict().get("name", f"anon_{key.id}"), key, found["rest"]
    return name, None, name
