"""Notice an answer that works on the check instead of the exercise, by reading its code.

Such an answer is not wrong by that: it is marked for review, with the reason, and a person decides.
"""

import ast
import re

from mechlab_course.grading.slices import PROVIDED

FRAMES = "f_back f_globals f_locals f_builtins f_code tb_frame tb_next gi_frame cr_frame ag_frame _getframe"
FRAMES += " _current_frames currentframe getouterframes settrace setprofile addaudithook attrgetter"
INSIDES = "__globals__ __closure__ __code__ __builtins__ __subclasses__ __mro__ __bases__ __wrapped__"
INSIDES += " cell_contents __defaults__"
_ATTRIBUTES = dict.fromkeys(FRAMES.split(), "looks into Python's frames")
_ATTRIBUTES |= dict.fromkeys(INSIDES.split(), "looks into the inside of functions or classes")
_CALLS = {"exec", "eval", "compile", "__import__", "globals", "vars", "breakpoint"}
_MODULES = "gc ctypes _ctypes subprocess socket signal multiprocessing importlib unittest mock atexit"
_MODULES += " builtins pty resource __main__"
_METHODS = "__torch_function__ __torch_dispatch__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __bool__"
_METHODS += " __instancecheck__ __getattribute__ __class__ __array__ __array_ufunc__ __float__ __index__"
_FORMAT = re.compile(r"\{[^{}]*\.(__|f_|tb_)")
_COURSE = re.compile(r"mechlab(_course\.(check\w+|exercises|folders|grading)|\.course\.\w+)\b")


def suspicious(code: str) -> list[str]:
    """What the code of an answer does that no exercise asks for."""
    found = []
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    bound = {"torch", "ml", "sys", "math", "Tensor", *(PROVIDED & {"check", "exercise"})}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(a.asname or a.name.partition(".")[0]) for a in node.names}
    for _ in range(3):  # another name for a part of a module is the module's too
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, (ast.Name, ast.Attribute))
                and _root(node.value) in bound
            ):
                bound |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        why = _why(node, bound)
        if why:
            found.append(why)
    return list(dict.fromkeys(found))


def _why(node: ast.AST, bound: set[str]) -> str | None:
    if isinstance(node, ast.Attribute):
        if node.attr in _ATTRIBUTES:
            return f"{_ATTRIBUTES[node.attr]} (`{node.attr}`)"
        if node.attr == "modules" and getattr(node.value, "id", "") == "sys":
            return "looks through the loaded modules (`sys.modules`)"
        if isinstance(node.ctx, (ast.Store, ast.Del)) and _root(node) in bound:
            return f"changes `{ast.unparse(node)}`, which is not its own"
        if (
            node.attr in ("grading", "checks", "checking", "folders", "exercises", "_CHECKERS")
            and _root(node) in bound
        ):
            return f"reaches for the checks (`{ast.unparse(node)[:60]}`)"
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        inside = isinstance(node.value, (ast.Attribute, ast.Subscript)) and _root(node) in bound
        if inside or "__dict__" in ast.unparse(node.value):
            return f"changes `{ast.unparse(node)[:60]}`, which is not its own"
    elif isinstance(node, ast.MatchClass) and set(node.kwd_attrs) & set(_ATTRIBUTES):
        return "looks into the inside of functions or classes (`match`)"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _FORMAT.search(node.value):
        return "looks into the inside of functions or classes (a format string)"
    elif isinstance(node, ast.Call):
        return _why_call(node, bound)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
        for name in names:
            if name.partition(".")[0] in _MODULES.split() or _COURSE.match(name):
                return f"imports `{name}`"
    elif isinstance(node, ast.ClassDef):
        for method in node.body:
            if getattr(method, "name", "") in _METHODS.split():
                return f"makes a class that answers comparisons itself (`{method.name}`)"
    return None


def _why_call(node: ast.Call, bound: set[str]) -> str | None:
    name = getattr(node.func, "id", "")
    if name in _CALLS:
        return f"runs or reaches hidden code (`{name}`)"
    if name in ("setattr", "delattr") and node.args and _root(node.args[0]) in bound:
        return f"changes `{ast.unparse(node.args[0])[:60]}`, which is not its own"
    if name == "getattr" and len(node.args) > 1:
        asked = getattr(node.args[1], "value", None)
        if not isinstance(asked, str) or asked in _ATTRIBUTES or asked.startswith("__"):
            return "asks for an attribute by a name made at run time, or for a hidden one (`getattr`)"
    if name == "type" and len(node.args) == 3:
        return "makes a class at run time (`type`)"
    return None


def _root(node: ast.AST) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return getattr(node, "id", "")
