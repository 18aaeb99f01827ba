"""`rlhf-pg push`: what is sent and what is not, and faults of login, network and folder said in a paragraph."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from rlhf_pg import cli
from rlhf_pg.commands import run_push

CARD = "---\nlicense: mit\nbase_model: some/base\ntags: [rlhf_pg]\n---\n# It\n"


@pytest.fixture
def run(tmp_path):
    """A run's folder, as train leaves it."""
    folder = tmp_path / "r"
    files = {
        "model/config.json": "{}",
        "model/model.safetensors": "w" * 3000,
        "model/tokenizer.json": "{}",
        "model/README.md": CARD,
        "model/curves.png": "png",
        "model/additional_chat_templates/tool_use.jinja": "{{ tools }}",
        "model/source.json": '{"file": "/home/somebody/a.gguf"}',
        "model/optimizer.pt": "pickle",
        "model/.tmp-x": "",
        "checkpoints/step_00000001/model.safetensors": "c",
        "rollouts/step_00000001.jsonl": "{}",
        "metrics.jsonl": "",
        "adapter/adapter_config.json": "{}",
        "adapter/adapter_model.safetensors": "a",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


SENT = [
    "README.md",
    "additional_chat_templates/tool_use.jinja",
    "config.json",
    "curves.png",
    "model.safetensors",
    "tokenizer.json",
]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs. `asked`: what it was asked; `status`: of whoami."""

    asked: list
    status = 200
    is_private = True

    def do_GET(self):
        if self.path == "/api/whoami-v2":
            self._answer({"name": "me"} if self.status == 200 else {"error": "Invalid user token."}, self.status)
        else:
            self._answer({"id": "me/it", "modelId": "me/it", "private": self.is_private, "tags": [], "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/me/it"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            self._answer(
                {"commitUrl": f"http://{self.headers['Host']}/me/it/commit/1", "commitOid": "1", "success": True}
            )
        else:
            self._answer({})

    def _answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *unused):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub on loopback, and a login to it."""
    handler = type("Handler", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()


def at(monkeypatch, address: str) -> None:
    from huggingface_hub import hf_api

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(hf_api.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_dry_run_says_what_would_be_sent_and_asks_nobody(run, monkeypatch, capsys):
    def refused(*unused, **named):
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refused)
    assert cli.main(["push", str(run), "me/it", "--dry-run"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == f"{run / 'model'}: 6 files, 3 kB"
    assert [line.split()[-1] for line in lines[1:7]] == SENT
    assert f"left out of {run}: adapter/, checkpoints/, metrics.jsonl, rollouts/" in said
    assert "source.json (names a path on this machine)" in said and "optimizer.pt (a pickle)" in said
    assert "card: base_model some/base; license mit; tags rlhf_pg" in said
    assert lines[-1] == "dry run: nothing was sent to me/it (public)"


def test_what_is_sent_is_the_model_and_the_token_is_in_no_output(run, hub, capsys):
    assert cli.main(["push", str(run), "me/it", "--private"]) == 0
    (created,) = (json.loads(body) for path, _, body in hub.asked if path == "/api/repos/create")
    assert (created["name"], created["organization"]) == ("it", "me")
    assert created.get("private", created.get("visibility") == "private")
    (commit,) = (body for path, _, body in hub.asked if "/commit/" in path)
    entries = [json.loads(line) for line in commit.splitlines()]
    assert sorted(entry["value"]["path"] for entry in entries if entry["key"] == "file") == SENT
    assert {token for _, token, _ in hub.asked} == {"Bearer hf_secretsecretsecret"}
    shown = capsys.readouterr()
    assert "sent: http://127.0.0.1" in shown.out and "/me/it" in shown.out
    assert "hf_secret" not in shown.out + shown.err
    assert not [file for file in run.rglob("*") if file.is_file() and b"hf_secret" in file.read_bytes()]


def test_a_public_repository_gets_nothing_that_was_to_be_private(run, hub, capsys):
    hub.is_private = False
    assert cli.main(["push", str(run), "me/it", "--private"]) == 1
    assert "me/it is there already and public: nothing was sent" in capsys.readouterr().err.replace("\n", " ")
    assert not [path for path, _, _ in hub.asked if "/commit/" in path]


def test_without_a_login_or_with_a_wrong_one_it_is_said_how_to_log_in(run, hub, monkeypatch, capsys):
    hub.status = 401
    assert cli.main(["push", str(run), "me/it"]) == 1
    assert "hf auth login" in capsys.readouterr().err
    monkeypatch.setattr(run_push, "get_token", lambda: None)
    assert cli.main(["push", str(run), "me/it"]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "no login to the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN" in said and "Traceback" not in said


def test_without_a_network_it_ends_in_seconds_with_a_paragraph(run, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        at(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert cli.main(["push", str(run), "me/it"]) == 1
    assert "cannot be reached (ConnectError" in capsys.readouterr().err.replace("\n", " ")


def test_offline_mode_is_named(run, monkeypatch, capsys):
    at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli.main(["push", str(run), "me/it"]) == 1
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


def test_a_hub_that_never_answers_is_not_waited_for(run, monkeypatch, capsys):
    monkeypatch.setattr(run_push, "ANSWER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert cli.main(["push", str(run), "me/it"]) == 1
    assert "cannot be reached (ReadTimeout" in capsys.readouterr().err.replace("\n", " ")


def test_a_model_folder_and_an_adapters_may_be_named_themselves(run, capsys):
    assert cli.main(["push", str(run / "model"), "me/it", "--dry-run"]) == 0
    assert "checkpoints" not in capsys.readouterr().out
    config = {"base_model_name_or_path": "/home/me/base"}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert cli.main(["push", str(run / "adapter"), "me/it", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "adapter_model.safetensors" in said and "card: none" in said
    assert "warning: adapter_config.json names the base model by a path on this machine, /home/me/base" in said


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: (run / "model" / "config.json").unlink(), "no model in it"),
        (lambda run: (run / "model" / "model.safetensors").unlink(), "its weights are not all there"),
        (
            lambda run: (run / "model" / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "b.safetensors"}}'
            ),
            r"its weights are not all there \(b\.safetensors\)",
        ),
        (lambda run: (run / "model" / "model.safetensors.index.json").write_text("{"), "not a readable index"),
        (lambda run: (run / "model" / "README.md").write_text("---\nlicense: [\n---\n"), "its metadata cannot be used"),
        (
            lambda run: (run / "model" / "README.md").write_text("---\nbase_model: /home/me/x\n---\n"),
            "its metadata cannot be used",
        ),
        (lambda run: (run / "model" / "README.md").write_text("---\nlicense: {a: 1}\n---\n"), "license must be text"),
    ],
)
def test_what_is_no_whole_model_is_refused_before_anything_is_sent(run, spoil, told):
    spoil(run)
    with pytest.raises(ValueError, match=told):
        run_push.push(run, "me/it", dry_run=True)


@pytest.mark.parametrize(
    "repo", ["it", "/it", "me/", "me/it/more", "me/i t", "me/--", "", "https://huggingface.co/me/it"]
)
def test_a_name_that_the_hub_does_not_take_is_refused(run, repo):
    with pytest.raises(ValueError, match="must be owner/name"):
        run_push.push(run, repo, dry_run=True)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        run_push.push(tmp_path / "nowhere", "me/it", dry_run=True)
