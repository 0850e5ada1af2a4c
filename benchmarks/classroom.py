"""A class on one machine: a real JupyterHub, twenty learners who run notebook 12 at the same time.

    python -m benchmarks.classroom [learners]     (`make classroom`; a quarter of an hour on two cores)

Each learner has a server of their own behind the hub's proxy, a kernel in it, and runs every cell of the notebook over
the kernel's websocket, as a browser does. When all are done, and every kernel is still alive, memory is read from /proc:
private pages are a learner's own, shared ones (the weights, read from one file, and the libraries) count once for all.
The plain recipe, in which each kernel builds its own copy of the model, is measured beside it in the same hub, with as
few learners as fit.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchmarks.memory import memory

ROOT = Path(__file__).parents[1]
HUB = "jupyterhub==6.1.1"
PROXY = "configurable-http-proxy@5.3.0"
NOTEBOOK = "12"
PLAIN_LEARNERS = 4
PLAIN = """from transformer_lens.model_bridge import TransformerBridge
from mechlab.loading import checkpoints
model = TransformerBridge.boot_transformers(str(checkpoints.cache_dir() / "smollm2" / "raw"), device="cpu")
model.enable_compatibility_mode(disable_warnings=True)"""
CONFIG = """
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub_port}"
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie"
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{{"name": "bench", "api_token": "{token}"}}]
c.JupyterHub.load_roles = [
    {{"name": "bench", "services": ["bench"], "scopes": ["admin:users", "admin:servers", "access:servers"]}}
]
c.JupyterHub.concurrent_spawn_limit = 0
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.ConfigurableHTTPProxy.command = ["{proxy}"]
c.ConfigurableHTTPProxy.pid_file = "{folder}/proxy.pid"
c.SimpleLocalProcessSpawner.home_dir_template = "{folder}/home/{{username}}"
c.Spawner.cmd = ["{python}", "-m", "jupyterhub.singleuser", "--allow-root"]
c.Spawner.start_timeout = 300
c.Spawner.http_timeout = 300
c.Spawner.environment = {environment}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Hub:
    """A JupyterHub with local servers, for as long as the `with` block lasts."""

    def __init__(self, folder: Path):
        self.folder, self.token = folder, secrets.token_hex(16)
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        from mechlab.loading import checkpoints
        from mechlab_course.cli import KERNELS

        proxy = self.folder / "node_modules" / ".bin" / "configurable-http-proxy"
        subprocess.run(["npm", "install", "--silent", "--prefix", str(self.folder), PROXY], check=True)
        # One thread a kernel; the model's folder is shared, and may be read-only.
        environment = {
            **KERNELS,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "MECHLAB_CACHE": str(checkpoints.cache_dir()),
        }
        config = self.folder / "jupyterhub_config.py"
        config.write_text(
            CONFIG.format(
                port=self.port,
                hub_port=free_port(),
                proxy_port=free_port(),
                folder=self.folder,
                token=self.token,
                proxy=proxy,
                python=sys.executable,
                environment=environment,
            )
        )
        self.log = (self.folder / "hub.log").open("w")
        command = [sys.executable, "-m", "jupyterhub", "-f", str(config)]
        self.process = subprocess.Popen(
            command, cwd=self.folder, stdout=self.log, stderr=self.log, start_new_session=True
        )
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
        self.log.close()

    async def call(self, method: str, path: str, body: dict | None = None):
        from tornado.httpclient import AsyncHTTPClient, HTTPRequest

        request = HTTPRequest(
            self.address + path,
            method=method,
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
            body=json.dumps(body or {}) if method != "GET" else None,
            request_timeout=300,
        )
        answer = await AsyncHTTPClient().fetch(request)
        return json.loads(answer.body) if answer.body else {}

    async def ready(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                await self.call("GET", "/hub/api/")
                return
            except Exception:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "hub.log").read_text()[-3000:]) from None
                await asyncio.sleep(0.5)


class Learner:
    """One user of the hub: a server, a kernel, a notebook run cell by cell."""

    def __init__(self, hub: Hub, name: str, recipe: str):
        from mechlab_course.build import workspace

        self.hub, self.name, self.failures, self.pid = hub, name, [], 0
        work = hub.folder / "home" / name / "work"
        workspace.refresh(ROOT / "notebooks", work)
        (self.path,) = (work / "notebooks").glob(f"{NOTEBOOK}_*.ipynb")
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        self.cells = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        if recipe == "plain":
            self.cells[0] = self.cells[0].replace("model = ml.load()", PLAIN)
        self.cells.append("import os; print('pid', os.getpid())")

    async def log_in(self) -> None:
        await self.hub.call("POST", f"/hub/api/users/{self.name}")
        await self.hub.call("POST", f"/hub/api/users/{self.name}/server")
        while (
            not (await self.hub.call("GET", f"/hub/api/users/{self.name}"))["servers"]
            .get("", {})
            .get("ready")
        ):
            await asyncio.sleep(0.5)

    async def run(self) -> float:
        """Seconds from opening the kernel to the last cell."""
        from tornado.httpclient import HTTPRequest
        from tornado.websocket import websocket_connect

        started, base = time.monotonic(), f"/user/{self.name}/api/kernels"
        folder = self.path.parent.relative_to(self.hub.folder / "home" / self.name)
        kernel = (await self.hub.call("POST", base, {"name": "python3", "path": f"{folder}/x.ipynb"}))["id"]
        url = f"{self.hub.address}{base}/{kernel}/channels".replace("http", "ws", 1)
        request = HTTPRequest(url, headers={"Authorization": f"token {self.hub.token}"}, request_timeout=600)
        self.socket = await websocket_connect(request, max_message_size=2**28)
        for number, code in enumerate(self.cells):
            await self.execute(number, code)
        return time.monotonic() - started

    async def execute(self, number: int, code: str) -> None:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": self.name,
                  "session": self.name, "date": "", "version": "5.3"}  # fmt: skip
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
        }
        message = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "channel": "shell",
        }
        await self.socket.write_message(json.dumps(message))
        while True:
            text = await asyncio.wait_for(self.socket.read_message(), 900)
            if text is None:
                self.failures.append(f"cell {number}: the kernel went away")
                return
            answer = json.loads(text)
            if answer["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            kind, what = answer["header"]["msg_type"], answer["content"]
            if kind == "stream" and (found := re.search(r"pid (\d+)", what["text"])):
                self.pid = int(found[1])
            if kind == "error":
                self.failures.append(f"cell {number}: {what['ename']}: {what['evalue']}"[:300])
            if kind == "execute_reply":
                return


def descendants(pid: int) -> list[int]:
    """A process and everything it has started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


async def lesson(folder: Path, recipe: str, count: int) -> dict:
    """`count` learners log in, and then all run the notebook at once."""
    with Hub(folder) as hub:
        await hub.ready()
        learners = [Learner(hub, f"learner{n:02}", recipe) for n in range(count)]
        started = time.monotonic()
        await asyncio.gather(*(each.log_in() for each in learners))
        logged_in = time.monotonic() - started
        results = await asyncio.gather(*(each.run() for each in learners), return_exceptions=True)
        seconds = [each for each in results if isinstance(each, float)]
        failures = [f"{each.name}: {failure}" for each in learners for failure in each.failures]
        failures += [repr(each) for each in results if not isinstance(each, float)]
        kernels = [memory(each.pid) for each in learners if each.pid]
        total = 0.0
        for pid in descendants(hub.process.pid):
            try:
                total += memory(pid)["proportional"]
            except OSError:
                continue
    return {"login": logged_in, "seconds": seconds, "failures": failures, "kernels": kernels, "total": total}


def main(count: int = 20) -> bool:
    if sys.platform != "linux" or shutil.which("npm") is None:
        print("This needs Linux (memory is read from /proc) and npm (for JupyterHub's proxy).")
        return False
    try:
        import jupyterhub  # noqa: F401
    except ImportError:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), HUB],
            check=True,
        )
    met = True
    for recipe, many in (("mechlab", count), ("plain", min(count, PLAIN_LEARNERS))):
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(lesson(Path(folder), recipe, many))
        private = [each["private"] for each in found["kernels"]] or [float("nan")]
        print(f"\n{recipe}: {many} learners, {os.cpu_count()} cores, notebook {NOTEBOOK}, all at once")
        print(f"  everybody logged in after        {found['login']:.0f} s")
        if found["seconds"]:
            print(
                f"  notebook run, median and slowest {statistics.median(found['seconds']):.0f} s, {max(found['seconds']):.0f} s"
            )
        print(
            f"  private memory of a kernel       {statistics.median(private):.2f} GB (largest {max(private):.2f})"
        )
        print(
            f"  resident, shared pages counted   {statistics.median(k['resident'] for k in found['kernels']):.2f} GB"
        )
        print(
            f"  hub, servers and kernels in all  {found['total']:.1f} GB, {found['total'] / many:.2f} GB a learner"
        )
        print(
            f"  failures                         {len(found['failures'])}",
            *found["failures"][:5],
            sep="\n    ",
        )
        if recipe == "mechlab":
            met = not found["failures"] and max(private) <= 0.6 and len(found["seconds"]) == many
    print("\ntarget: no failures, private memory at most 0.6 GB:", "met" if met else "MISSED")
    return met


if __name__ == "__main__":
    sys.exit(not main(*map(int, sys.argv[1:2])))
