"""How to cite the course: CITATION.cff as BibTeX."""

import yaml

from mechlab_course.build.links import owned


def bibtex(cff: str) -> str:
    """An entry of a bibliography from a citation file; an address that nobody has filled in is left out."""
    given = yaml.safe_load(cff)
    fields = {
        "title": given["title"],
        "author": " and ".join(map(_named, given["authors"])),
        "year": str(given.get("date-released", ""))[:4],
        "version": given["version"],
        "url": owned(given["repository-code"]),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join(["@software{mechlab,", *lines, "}"])


def _named(author: dict) -> str:
    """A person by family name; a group in braces, so that it is not taken apart."""
    if "name" in author:
        return f"{{{author['name']}}}"
    return f"{author['family-names']}, {author['given-names']}"
