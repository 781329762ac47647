"""Text elsewhere gives the bytes that it gives from the disk: S3, the web, the hub."""

import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from corpus import contents, prepare, text, write_jsonl
from hub_server import Repository

from llmshearing.data.tree import DataTree

fsspec = pytest.importorskip("fsspec")
PLANNED = 2  # requests of a file while planning: a byte, and its beginning
OF_THE_PLACE = {"manifest.json", "inputs.jsonl", "bad_documents.jsonl"}  # they name the files


class Web:
    """A web server of files, with ranges and ETags.

    Attributes:
        files: by path.
        asked: method and path of each request.
        status: by path, what is answered in place of the file.
        stall: a path of which only the plan's answers end.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.status: dict[str, int] = {}
        self.stall: str | None = None

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.asked.append((request.command, path))
        content = self.files.get(path)
        status = self.status.get(path, 404 if content is None else 200)
        if content is None or status != 200:
            request.send_response(status)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        first, last = 0, len(content) - 1
        if given := request.headers.get("Range"):
            first, last = (int(n) for n in given.removeprefix("bytes=").split("-"))
            last = min(last, len(content) - 1)
        request.send_response(206 if given else 200)
        request.send_header("ETag", f'"{hash(content)}"')
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(last + 1 - first))
        if given:
            request.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        request.end_headers()
        if request.command == "GET":
            stalls = self.stall == path and self.asked.count(("GET", path)) > PLANNED
            request.wfile.write(content[first : last // 2 if stalls else last + 1])
            while stalls and self.stall == path:
                time.sleep(0.05)


def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def web():
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            web.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server, web.address = serving(Handler)
    yield web
    web.stall = None
    server.shutdown()
    server.server_close()


@pytest.fixture
def raw(tmp_path) -> Path:
    """Two domains, one plain and one compressed, and Parquet."""
    import gzip

    import pyarrow
    import pyarrow.parquet

    root = tmp_path / "raw"
    write_jsonl(root / "web" / "a.jsonl", [text(i, 20 + i % 70) for i in range(200)])
    write_jsonl(root / "web" / "b.jsonl", [text(1000 + i, 30) for i in range(150)])
    path = write_jsonl(root / "code" / "c.jsonl", [text(2000 + i, 10 + i) for i in range(80)])
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    table = pyarrow.table({"text": [text(3000 + i, 40) for i in range(60)], "n": range(60)})
    pyarrow.parquet.write_table(table, root / "code" / "d.parquet", row_group_size=20)
    return root


@pytest.fixture
def recipe(tmp_path, model_file):
    """Writes a recipe of two domains with the given files, and gives its path and the tree's."""

    def write(name: str, domains: dict, **changes) -> tuple[Path, Path]:
        path, tree = tmp_path / f"{name}.yaml", tmp_path / name
        settings = {
            "source": str(tmp_path / "raw"),
            "output": str(tree),
            "tokenizer": str(model_file),
            "sequence_length": 32,
            "domains": domains,
            "splits": {"eval": {"tokens_per_domain": 300}, "prune": {"share": 1}},
            "unit_bytes": 20000,
            "processes": 1,
        }
        path.write_text(json.dumps(settings | changes))
        return path, tree

    return write


@pytest.fixture
def local(recipe, raw) -> dict[str, bytes]:
    """The tree from the disk."""
    path, tree = recipe("local", {"web": {}, "code": {}})
    assert prepare(path) == 0
    return rows(tree)


def rows(tree: Path) -> dict[str, bytes]:
    return {n: content for n, content in contents(tree).items() if n not in OF_THE_PLACE}


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.*")}


@pytest.fixture(scope="module")
def s3():
    """A client of an object store on this machine, which the environment names."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("text")
        yield store
    server.stop()


def upload(store, root: Path, bucket: str) -> None:
    for name, content in files_below(root).items():
        store.pipe_file(f"{bucket}/{name}", content)


@pytest.mark.filterwarnings("ignore")  # of the store's client
def test_s3_gives_the_bytes_of_the_disk(s3, raw, local, recipe):
    upload(s3, raw, "text")
    files = {"web": {"files": "s3://text/web"}, "code": {"files": "s3://text/code/*"}}
    for name, processes in (("one", 1), ("two", 2)):
        path, tree = recipe(name, files, processes=processes)
        assert prepare(path) == 0
        assert rows(tree) == local
    skipped = DataTree.open(tree).manifest["domains"]["web"]["skipped"]
    assert skipped == {}


@pytest.mark.filterwarnings("ignore")
def test_an_object_that_changes_is_tokenised_again_or_refused(s3, raw, local, recipe, capsys):
    upload(s3, raw, "text")
    files = {"web": {"files": "s3://text/web"}, "code": {"files": "s3://text/code"}}
    path, tree = recipe("s3", files)
    for task in range(3):
        assert prepare(path, "--shard", f"{task}/3") == 0
    changed = (raw / "web/b.jsonl").read_bytes().replace(b"import", b"export")
    assert changed != (raw / "web/b.jsonl").read_bytes()
    s3.pipe_file("text/web/b.jsonl", changed)
    assert prepare(path) == 0  # resumes, and reads b.jsonl once more
    (raw / "web/b.jsonl").write_bytes(changed)
    again, other = recipe("again", {"web": {}, "code": {}})
    assert prepare(again) == 0
    assert rows(tree) == rows(other) != local
    s3.pipe_file("text/web/b.jsonl", changed.replace(b"export", b"import"))
    capsys.readouterr()
    assert prepare(path) == 2
    assert "was made before s3://text/web/b.jsonl changed" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pattern", ["s3://text/none.jsonl", "s3://text/none/*", "s3://absent/x"])
def test_a_missing_object_is_one_message(s3, recipe, capsys, pattern):
    path, _ = recipe("missing", {"web": {"files": pattern}})
    assert prepare(path) == 2
    message = capsys.readouterr().err
    assert f"found no file for {pattern}" in message or f"found no {pattern}" in message


@pytest.mark.filterwarnings("ignore")
def test_a_killed_preparation_from_s3_resumes(s3, raw, local, recipe):
    upload(s3, raw, "text")
    files = {"web": {"files": "s3://text/web"}, "code": {"files": "s3://text/code"}}
    path, tree = recipe("killed", files, unit_bytes=3000)
    words = [sys.executable, "-m", "llmshearing.cli", "prepare", str(path)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    units = tree / ".prepare" / "units"
    wait_until(lambda: len([*units.glob("*.unit")] if units.is_dir() else []) >= 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {unit.name: unit.stat().st_mtime_ns for unit in units.glob("*.unit")}
    assert not (tree / "manifest.json").exists()
    assert prepare(path, "--shard", "0/1") == 0
    assert {n: (units / n).stat().st_mtime_ns for n in done} == done, "finished units stay"
    assert prepare(path) == 0
    assert rows(tree) == local


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def addresses(web, raw) -> dict[str, dict]:
    web.files = {f"/{name}": content for name, content in files_below(raw).items()}
    return {
        domain: {"files": [f"{web.address}/{p.relative_to(raw)}" for p in (raw / domain).iterdir()]}
        for domain in ("web", "code")
    }


def test_the_web_gives_the_bytes_of_the_disk_and_each_unit_reads_its_part_once(
    web, raw, local, recipe
):
    path, tree = recipe("http", addresses(web, raw), unit_bytes="32MiB")
    assert prepare(path) == 0
    assert rows(tree) == local
    # While planning, a byte, the beginning and for the estimate; then once for its unit.
    assert web.asked.count(("GET", "/web/a.jsonl")) == 4


def test_a_server_without_ranges_is_read_too(raw, local, recipe):
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server, address = serving(lambda *given: handler(*given, directory=str(raw)))
    files = {
        domain: {"files": [f"{address}/{p.relative_to(raw)}" for p in (raw / domain).iterdir()]}
        for domain in ("web", "code")
    }
    path, tree = recipe("plain", files)
    assert prepare(path) == 0
    assert rows(tree) == local
    server.shutdown()
    server.server_close()


def test_an_answer_that_stalls_and_a_kill_are_resumed(web, raw, local, recipe):
    path, tree = recipe("stalled", addresses(web, raw), unit_bytes="32MiB", splits={
        "eval": {"share": 0.1}, "prune": {"share": 1}})  # fmt: skip
    words = [sys.executable, "-m", "llmshearing.cli", "prepare", str(path)]
    web.stall = "/web/b.jsonl"
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_until(lambda: web.asked.count(("GET", "/web/b.jsonl")) > PLANNED)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    web.stall = None
    web.asked.clear()
    assert prepare(path) == 0
    assert web.asked.count(("GET", "/web/b.jsonl")) == 3
    other, same = recipe("same", {"web": {}, "code": {}}, splits={
        "eval": {"share": 0.1}, "prune": {"share": 1}})  # fmt: skip
    assert prepare(other) == 0
    assert rows(tree) == rows(same)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, "found no http"), (403, "which may not be read"), (500, "run the same command again")],
)
def test_what_a_server_refuses_is_one_message(web, raw, recipe, capsys, status, expected):
    files = addresses(web, raw)
    web.status["/web/b.jsonl"] = status
    path, tree = recipe("refused", files)
    assert prepare(path) == 2
    message = capsys.readouterr().err
    assert f"{web.address}/web/b.jsonl" in message
    assert expected in message
    assert not tree.exists()


def test_a_glob_of_the_web_is_refused(web, recipe, capsys):
    path, _ = recipe("glob", {"web": {"files": f"{web.address}/*.jsonl"}})
    assert prepare(path) == 2
    assert "files on the web cannot be listed" in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_extra(recipe, capsys):
    path, _ = recipe("package", {"web": {"files": "oss://bucket/x.jsonl"}})
    assert prepare(path) == 2
    message = capsys.readouterr().err
    assert "found oss://bucket/x.jsonl, which cannot be read here" in message
    assert "pip install 'llmshearing[remote]'" in message


def test_the_hub_gives_the_bytes_of_the_disk(hub, raw, local, recipe):
    hub.datasets["org/text"] = Repository()
    hub.datasets["org/text"].commit(files_below(raw))
    files = {
        "web": {"files": "hf://datasets/org/text/web/*.jsonl"},
        "code": {"files": ["hf://datasets/org/text/code"]},
    }
    path, tree = recipe("hub", files)
    assert prepare(path) == 0
    assert rows(tree) == local


def test_the_tokenizer_may_be_a_model_of_the_hub(hub, raw, recipe, model_file):
    hub.model("org/tokens", {"tokenizer.model": model_file.read_bytes(), "config.json": b"{}"})
    path, tree = recipe("named", {"web": {}, "code": {}}, tokenizer="org/tokens")
    assert prepare(path) == 0
    here, same = recipe("here", {"web": {}, "code": {}})
    assert prepare(here) == 0
    assert rows(tree) == rows(same)
