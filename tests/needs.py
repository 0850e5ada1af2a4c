"""Which names a cell binds and which it reads: what a cell builds upon can then be told without running anything."""

import symtable


def names(code: str) -> tuple[set[str], set[str]]:
    """(names that a cell binds, names that it reads, from other cells or from itself)."""
    whole = symtable.symtable(code, "cell", "exec")
    bound = {each.get_name() for each in whole.get_symbols() if each.is_assigned() or each.is_imported()}
    used, tables = set(), [whole]
    for table in tables:
        tables += table.get_children()
        used |= {
            each.get_name()
            for each in table.get_symbols()
            if each.is_referenced() and (table is whole or each.is_global())
        }
    return bound, used


def needed(cells: list[str | None], target: int) -> list[int]:
    """Numbers of the cells that one cell builds upon, itself last; `None` stands for a cell that is not code."""
    chosen, wanted = [target], set()
    for number in range(target, -1, -1):
        bound, used = names(cells[number] or "")
        if number == target or bound & wanted:
            chosen.append(number)
            wanted |= used
    return sorted({*chosen})
