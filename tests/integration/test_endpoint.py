"""Against a server on this machine that answers in the forms of vLLM and of llama.cpp."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROWS, run_command

from peft_mrpc.api import load_classifier
from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.hard_prompt import main
from peft_mrpc.predict import main as predict
from peft_mrpc.prompting import endpoint
from peft_mrpc.prompting.endpoint import match_tokens
from peft_mrpc.prompting.prompt_encoder import Questions
from peft_mrpc.prompting.template_files import load_template
from peft_mrpc.runs.run import load_run

WORDS = [("No", "no"), ("Yes",)]
LABELS = ["not_equivalent", "equivalent"]


class Server(ThreadingHTTPServer):
    """Says Yes the likelier the longer the question; every third request is too many at first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.refused: set[str] = set()
        self.is_broken = False
        self.forbidden: str | None = None  # a sentence that it will not read
        self.choice: Any = None  # what every answer is, if not what is likely

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization")
        self.server.asked.append({"path": self.path, "key": key, **body})
        text = body.get("prompt") or body["messages"][-1]["content"]
        if self.server.choice is not None:
            return self.answer(200, self.server.choice)
        if self.server.is_broken or (self.server.forbidden or "\0") in text:
            return self.answer(400, {"error": "no such model"})
        if len(text) % 3 == 0 and text not in self.server.refused:
            self.server.refused.add(text)
            return self.answer(429, {"error": "too many"})
        share = 0.2 + 0.6 * (len(text) % 100) / 100
        likeliest = {" Yes": share, " No": 0.9 - share, "no": 0.05, "!": 0.01}
        logs = {token: float(np.log(value)) for token, value in likeliest.items()}
        if self.path.endswith("/chat/completions"):
            top = [{"token": token, "logprob": value} for token, value in logs.items()]
            choice: dict[str, Any] = {
                "message": {"content": "Yes, they do."},
                "logprobs": {"content": [{"top_logprobs": top}]},
            }
        else:
            choice = {"text": " maybe", "logprobs": {"top_logprobs": [logs]}}
        return self.answer(200, {"choices": [choice]})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "WAITS", (0.01, 0.01))
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def flags(server: Server, pair_files: dict[str, str], tmp_path: Path) -> list[str]:
    return [
        *("--endpoint", server.url, "--model", "served", "--output_dir", str(tmp_path / "run")),
        *("--validation_file", pair_files["validation"]),
    ]


def test_a_served_model_is_asked_in_chat_and_in_plain_text(
    server: Server, pair_files: dict[str, str], tmp_path: Path
) -> None:
    wordings = ["--template", "paraphrase,paraphrase_rewrite", "--scoring", "generate"]
    main([*flags(server, pair_files, tmp_path), *wordings])
    run = load_run(tmp_path / "run")
    data = load_data(DataConfig(validation_file=pair_files["validation"]))
    pairs = data.splits["validation"]
    for pair, found in zip(pairs, run.predictions("validation").probabilities, strict=True):
        logits = np.zeros(2)
        for text in (_chat(pair), _plain(pair)):
            share = 0.2 + 0.6 * (len(text) % 100) / 100
            no = 0.9 - share + (0.05 if text == _plain(pair) else 0)  # `no` is a word of one
            logits += np.log([no, share]) / 2
        assert np.allclose(found, np.exp(logits) / np.exp(logits).sum())
    paths = {one["path"] for one in server.asked}
    assert paths == {"/v1/chat/completions", "/v1/completions"} and server.refused
    assert all(one["temperature"] == 0 and one["model"] == "served" for one in server.asked)
    answers = [json.loads(line) for line in (run.path / "answers" / "validation.jsonl").open()]
    assert [one["answer"] for one in answers] == ["equivalent"] * len(ROWS) + [None] * len(ROWS)
    generated = run.record["templates"]["paraphrase_rewrite"]["validation"]["generated"]
    assert generated["unparsable"] == len(ROWS) and generated["accuracy_of_all"] == 0
    again = load_classifier(str(run.path), endpoint=server.url).predict_proba(pairs, 4)
    assert np.allclose(again, run.predictions("validation").probabilities)


def _chat(pair: Any) -> str:
    template = load_template("paraphrase")
    return template.messages(pair.sentence1, pair.sentence2)[-1]["content"]


def _plain(pair: Any) -> str:
    return load_template("paraphrase_rewrite").plain(pair.sentence1, pair.sentence2)


def test_dry_run_asks_a_served_model_nothing(
    server: Server, pair_files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*flags(server, pair_files, tmp_path), "--dry_run"])
    said = capsys.readouterr().out
    assert f"model: served, served at {server.url}" in said and "templates: paraphrase" in said
    assert not server.asked and not (tmp_path / "run").exists()


def test_what_keeps_a_served_model_from_answering_is_one_line(
    server: Server,
    pair_files: dict[str, str],
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = flags(server, pair_files, tmp_path)
    said = fails(main, *given, "--template", "channel_that_is")
    assert "--endpoint: channel_that_is reads the probabilities of the pair itself" in said
    server.is_broken = True
    said = fails(main, *given)
    assert "chat/completions gave no answer: 400" in said and "no such model" in said
    monkeypatch.setattr(
        "time.sleep", lambda _: pytest.fail("waited for a server that is not there")
    )
    said = fails(main, *given, "--endpoint", "http://127.0.0.1:9/v1")
    assert "--endpoint: http://127.0.0.1:9/v1/chat/completions gave no answer:" in said
    assert "Connection refused; is it running there?" in said
    for wrong in ("http://", "http:///v1", "http://host:port/v1"):
        said = fails(main, *given, "--endpoint", wrong)
        assert f"--endpoint: got '{wrong}'; expected http://HOST:PORT/v1." in said
    said = fails(main, *given, "--quantization", "none")
    assert "--quantization: got none, but --endpoint leaves to the server" in said
    said = fails(main, *given, "--endpoint", "localhost:8000")
    assert "--endpoint: got 'localhost:8000'; expected http://HOST:PORT/v1." in said
    assert not (tmp_path / "run").exists()


def test_texts_and_key_go_where_the_user_says_and_nowhere_else(
    server: Server,
    pair_files: dict[str, str],
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main(flags(server, pair_files, tmp_path))
    artifact = tmp_path / "run" / "prompt" / "peft_mrpc.json"
    assert server.url not in artifact.read_text()
    # As somebody might publish it.
    artifact.write_text(json.dumps(json.loads(artifact.read_text()) | {"endpoint": server.url}))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.asked.clear()
    given = [str(tmp_path / "run"), "--input", pair_files["unlabelled"]]
    said = fails(predict, *given)
    assert "--endpoint: got none, but" in said and "with served on a server" in said
    said = fails(predict, *given, "--endpoint", "localhost")
    assert "--endpoint: got 'localhost'; expected http://HOST:PORT/v1." in said
    assert not server.asked
    predict([*given, "--endpoint", server.url])
    assert {one["key"] for one in server.asked} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"message": {}, "logprobs": {"content": [{}]}}, "KeyError 'top_logprobs'"),
        ({"message": {}, "logprobs": {"content": [{"top_logprobs": []}]}}, "without log-prob"),
        ({"message": {}, "logprobs": {"top_logprobs": [None]}}, "AttributeError"),
        ({"message": {}, "logprobs": {"top_logprobs": [{"Yes": None}]}}, "TypeError"),
        ({"message": {}, "logprobs": None}, "without log-probabilities"),
        ({"message": {}, "logprobs": [1]}, "AttributeError"),
        (None, "TypeError"),
    ],
)
def test_an_answer_of_another_form_is_one_line(
    choice: Any,
    said: str,
    server: Server,
    pair_files: dict[str, str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    server.choice = {"choices": None if choice is None else [choice]}
    assert said in fails(main, *flags(server, pair_files, tmp_path))


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"text": ""}, ""),
        ({"message": {"content": None}}, ""),
        ({"message": {"content": "No"}}, "No"),
    ],
)
def test_a_model_that_says_nothing_answers_nothing(choice: Any, text: str, server: Server) -> None:
    server.choice = {"choices": [choice]}
    engine = endpoint.EndpointEngine(server.url, "served")
    asked = Questions(load_template("paraphrase"), LABELS, [Example(0, "a", "b")], [[]])
    assert engine.generate(asked, 1) == [text]


def test_what_one_process_alone_meets_is_said_by_it(
    server: Server, pair_files: dict[str, str], tmp_path: Path
) -> None:
    _, second, *_ = sorted(ROWS, key=lambda row: -len(row[0] + row[1]))
    server.forbidden = second[0]
    given = [*flags(server, pair_files, tmp_path), "--batch_size", "1"]
    done = run_command("hard_prompt", *given, processes=2)
    assert done.returncode != 0
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("peft-mrpc: rank 1: --")]
    assert "chat/completions gave no answer: 400" in line and "no such model" in line
    assert not (tmp_path / "run").exists()


def test_words_that_no_token_ends_are_said(
    server: Server, pair_files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "long.yaml"
    words = "{equivalent: The same thing, not_equivalent: 'No'}"
    template.write_text(f"text: '{{sentence1}} {{sentence2}}'\nlabel_words: {words}\n")
    main([*flags(server, pair_files, tmp_path), "--template", str(template)])
    assert "of 'The same thing' the first token alone is asked for" in caplog.text


def test_tokens_are_a_labels_that_begin_its_words_and_no_others() -> None:
    found = match_tokens({" No": np.log(0.5), "no": np.log(0.1), "Y": np.log(0.2), "!": -9}, WORDS)
    assert np.allclose(found, [1, np.log(0.6), np.log(0.2)])
    # Both begin with `same`, which tells nothing; the second is not there at all.
    words = [("same day",), ("same hour",)]
    found = match_tokens({"same": np.log(0.5), " same day": np.log(0.2), "x": np.log(0.01)}, words)
    assert np.allclose(found, [0, np.log(0.2), np.log(0.01)])
