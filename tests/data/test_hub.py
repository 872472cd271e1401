import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer

from lorakit.data.hub import HubSource, parse_source

ASK = """
import json, sys
from lorakit.data.hub import load_split, parse_source
from lorakit.errors import DataError
for text in sys.argv[1:]:
    try:
        read = load_split(parse_source(text, "train"))
        print(json.dumps({"rows": list(read.rows), "revision": read.revision}))
    except DataError as error:
        print(json.dumps({"error": str(error)}))
"""


def run(code: str, *arguments: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(env: dict[str, str], *sources: str) -> list[dict]:
    return [json.loads(line) for line in run(ASK, *sources, env=env).splitlines()]


def fill(root: Path) -> None:
    """One repository per situation."""
    data = root / "datasets/acme"
    for name in ("lines", "lines@refs%2Fconvert%2Fparquet/default/train", "configs/a", "configs/b", "script", "gated"):
        (data / name).mkdir(parents=True)
    (data / "lines/train.jsonl").write_text('{"text": "one", "label": 0}\n{"text": "two", "label": null}\n')
    (data / "lines/test.jsonl").write_text('{"text": "three", "label": 1}\n')
    branch = data / "lines@refs%2Fconvert%2Fparquet/default/train/0000.parquet"
    pq.write_table(pa.table({"text": ["from parquet"], "label": [5]}), branch)
    for name in "ab":
        pq.write_table(pa.table({"text": [name]}), data / f"configs/{name}/train.parquet")
    configs = [f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in "ab"]
    (data / "configs/README.md").write_text("---\nconfigs:\n" + "\n".join(configs) + "\n---\n")
    (data / "script/script.py").write_text("raise SystemExit('must not run')\n")
    (data / "gated/train.jsonl").write_text('{"text": "secret"}\n')
    (data / "gated/.gated").touch()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    fill(tmp_path / "root")
    with HubServer(tmp_path / "root") as server:
        yield server


ONLINE = {
    "hub:acme/lines": [{"text": "one", "label": 0}, {"text": "two", "label": None}],
    "hub:acme/lines#test": [{"text": "three", "label": 1}],
    "hub:acme/lines#train[50%:]": [{"text": "two", "label": None}],
    "hub:acme/lines@refs/convert/parquet": [{"text": "from parquet", "label": 5}],
    "hub:acme/configs:b": [{"text": "b"}],
}
FAILURES = {
    "hub:acme/none": "there is no such data set, or it is private: check the name, or log in",
    "hub:acme/lines@nobranch": "the repository has no revision `nobranch`",
    "hub:acme/lines#dev": "there is no split `dev`; splits there: train, test",
    "hub:acme/configs": "Config name is missing. Please pick one among the available configs: ['a', 'b']",
    "hub:acme/configs:c": "BuilderConfig 'c' not found. Available: ['a', 'b']",
    "hub:acme/script": "this repository is a loading script",
    "hub:acme/gated": "access must be granted: accept the terms",
}


def test_rows_and_commit(hub: HubServer, tmp_path: Path) -> None:
    answers = ask(hub.environment(tmp_path / "home"), *ONLINE)
    assert [answer.get("rows", answer) for answer in answers] == list(ONLINE.values())
    main, branch = hub.commit("datasets", "acme/lines"), hub.commit("datasets", "acme/lines", "refs/convert/parquet")
    assert [answer["revision"] for answer in answers[:4]] == [main, main, main, branch]
    assert main != branch


def test_failures_say_what_is_there(hub: HubServer, tmp_path: Path) -> None:
    answers = ask(hub.environment(tmp_path / "home"), *FAILURES)
    for (text, expected), answer in zip(FAILURES.items(), answers, strict=True):
        assert expected in answer.get("error", str(answer)), text
        assert answer["error"].startswith(f"{parse_source(text, 'train')}: ")


def test_offline_takes_the_cache_and_no_other_commit(hub: HubServer, tmp_path: Path) -> None:
    commit, other = hub.commit("datasets", "acme/lines"), "0" * 40
    ask(hub.environment(tmp_path / "home"), "hub:acme/lines")
    asked = len(hub.requests)
    offline = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="1")
    sources = ["hub:acme/lines#test", f"hub:acme/lines@{commit}", f"hub:acme/lines@{other}", "hub:acme/configs:a"]
    cached, pinned, stale, missing = ask(offline, *sources)
    assert len(hub.requests) == asked
    assert cached["rows"] == ONLINE["hub:acme/lines#test"] and cached["revision"] == commit
    assert pinned["revision"] == commit
    assert "cached copy is of another commit" in stale["error"]
    assert "HF_HUB_OFFLINE is set and the data set is not in the cache" in missing["error"]


def test_unreachable_hub(hub: HubServer, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    (answer,) = ask(environment, "hub:acme/lines")
    assert "the hub does not answer (" in answer["error"] and "HF_HUB_OFFLINE=1" in answer["error"]


def test_stand_in_serves_models(tmp_path: Path) -> None:
    model = tmp_path / "root/models/acme/tiny"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    (model / "model.safetensors").write_bytes(os.urandom(100_000))
    (model / "sub/tokenizer.json").write_text("{}")
    with HubServer(tmp_path / "root") as server:
        environment = server.environment(tmp_path / "home")
        code = "from huggingface_hub import snapshot_download; print(snapshot_download('acme/tiny'))"
        folder = Path(run(code, env=environment).strip())
        assert folder.name == server.commit("models", "acme/tiny")
    fetched = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert fetched == {path.relative_to(model): path.read_bytes() for path in model.rglob("*") if path.is_file()}


# --- the notation


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hub:a/b", HubSource("a/b", "validation")),
        ("hub:a/b:c", HubSource("a/b", "validation", "c")),
        ("hub:a/b@v1.0", HubSource("a/b", "validation", None, "v1.0")),
        ("hub:A.1/b-2:c@refs/convert/parquet#dev", HubSource("A.1/b-2", "dev", "c", "refs/convert/parquet")),
        ("hub:a/b#train[:90%]", HubSource("a/b", "train[:90%]")),
    ],
)
def test_notation(text: str, source: HubSource) -> None:
    assert parse_source(text, "validation") == source
    assert parse_source(str(source), "other") == source


@pytest.mark.parametrize(
    "text", ["hub:", "hub:squad", "hub:a/b/c", "hub:a/b:", "hub:a/b@", "hub:a/b#", "a/b", "hub:a/b c"]
)
def test_broken_notation(text: str) -> None:
    with pytest.raises(ValueError, match=r"write hub:OWNER/NAME\[:CONFIG\]\[@REVISION\]\[#SPLIT\]"):
        parse_source(text, "train")
