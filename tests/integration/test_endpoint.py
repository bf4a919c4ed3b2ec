"""Hard prompts that a served model answers."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROWS
from endpoint_server import EndpointServer

from peft_mrpc import DataConfig, PromptConfig, UserError, evaluate_prompt, load_classifier
from peft_mrpc.data.loading import load_data
from peft_mrpc.predict import main as predict
from peft_mrpc.prompting import endpoint
from peft_mrpc.prompting.endpoint import match_tokens
from peft_mrpc.prompting.run import preview_prompts
from peft_mrpc.prompting.templates import load_template

WORDS = [("No", "no"), ("Yes",)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setattr(endpoint, "BACKOFF_FACTOR", 0.01)
    with EndpointServer() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def config(server: EndpointServer, tmp_path: Path) -> PromptConfig:
    return PromptConfig(model="served", endpoint=server.url, output_dir=str(tmp_path / "run"))


@pytest.fixture
def data(pair_files: dict[str, str]) -> DataConfig:
    return DataConfig(validation_file=pair_files["validation"])


def test_chats_and_plain_texts_are_scored_by_the_first_token(
    config: PromptConfig, data: DataConfig, server: EndpointServer
) -> None:
    templates = [load_template("paraphrase"), load_template("paraphrase_rewrite")]
    config = replace(config, template="paraphrase,paraphrase_rewrite")
    run = evaluate_prompt(config, data)
    examples = load_data(data).splits["validation"]
    rows = run.predictions("validation").probabilities
    for example, probabilities in zip(examples, rows, strict=True):
        logits = np.zeros(2)
        pair = (example.sentence1, example.sentence2)
        chat, plain = templates[0].to_messages(*pair)[-1]["content"], templates[1].to_text(*pair)
        for text in (chat, plain):
            share = 0.2 + 0.6 * (len(text) % 100) / 100
            no = 0.9 - share + (0.05 if text == plain else 0)  # `no` is a word of one template
            logits += np.log([no, share]) / 2
        assert np.allclose(probabilities, np.exp(logits) / np.exp(logits).sum())
    paths = {body["path"] for body in server.received}
    assert paths == {"/v1/chat/completions", "/v1/completions"} and server.refused
    assert all(body["temperature"] == 0 and body["model"] == "served" for body in server.received)
    again = load_classifier(run, endpoint=server.url).predict_proba(examples, 4)
    assert np.allclose(again, rows)


def test_a_preview_sends_nothing(
    config: PromptConfig, data: DataConfig, server: EndpointServer
) -> None:
    lines = preview_prompts(config, data)
    assert f"model: served (served at {server.url})" in lines and "templates: paraphrase" in lines
    assert not server.received


def error_of(config: PromptConfig, data: DataConfig, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        evaluate_prompt(replace(config, **changes), data)
    assert not Path(str(config.output_dir)).exists()
    (fault,) = caught.value.faults
    return fault


def test_options_without_meaning_for_a_server_are_refused(
    config: PromptConfig, data: DataConfig
) -> None:
    message = error_of(config, data, template="channel_that_is", calibration="batch")
    assert "endpoint: channel_that_is has direction channel" in message
    message = error_of(config, data, quantization="none")
    assert "quantization: got none with an endpoint, where the server decides" in message
    for address in ("http://", "http:///v1", "http://host:port/v1", "localhost:8000"):
        message = error_of(config, data, endpoint=address)
        assert f"endpoint: got '{address}'; expected http://HOST:PORT/v1." in message


def test_failures_of_a_server_are_one_line(
    config: PromptConfig, data: DataConfig, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.is_broken = True
    message = error_of(config, data)
    assert "got status 400 of" in message and "no such model" in message
    monkeypatch.setattr(
        "time.sleep", lambda _: pytest.fail("waited for a server that is not there")
    )
    message = error_of(config, data, endpoint="http://127.0.0.1:9/v1")
    assert "endpoint: got no response of http://127.0.0.1:9/v1/chat/completions:" in message
    assert "Connection refused; is the server running there?" in message


def test_the_address_and_the_key_are_not_stored(
    config: PromptConfig,
    data: DataConfig,
    server: EndpointServer,
    pair_files: dict[str, str],
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = evaluate_prompt(config, data)
    artifact = run.path / "prompt" / "peft_mrpc.json"
    assert server.url not in artifact.read_text()
    # A published artifact could name a server; texts must not be sent there.
    artifact.write_text(json.dumps(json.loads(artifact.read_text()) | {"endpoint": server.url}))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.received.clear()
    arguments = [str(run.path), "--input", pair_files["unlabelled"]]
    message = fails(predict, *arguments)
    assert "--endpoint: got none, but" in message and "with served on a server" in message
    message = fails(predict, *arguments, "--endpoint", "localhost")
    assert "--endpoint: got 'localhost'; expected http://HOST:PORT/v1." in message
    assert not server.received
    predict([*arguments, "--endpoint", server.url])
    assert {body["key"] for body in server.received} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("choice", "message"),
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
def test_responses_in_another_format_are_one_line(
    choice: Any, message: str, config: PromptConfig, data: DataConfig, server: EndpointServer
) -> None:
    server.content = {"choices": None if choice is None else [choice]}
    assert message in error_of(config, data)


def top_tokens(*logprobs: str) -> bytes:
    """A response whose log-probabilities are these JSON values, as text."""
    tokens = ", ".join(
        f'{{"token": "{token}", "logprob": {value}}}'
        for token, value in zip(("Yes", "No"), logprobs, strict=True)
    )
    content = f'[{{"top_logprobs": [{tokens}]}}]'
    return f'{{"choices": [{{"logprobs": {{"content": {content}}}}}]}}'.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (top_tokens("NaN", "-1"), "ValueError token 'Yes' with log-probability nan"),
        (top_tokens("-1", "-Infinity"), "ValueError token 'No' with log-probability -inf"),
        (top_tokens("1e400", "-1"), "ValueError token 'Yes' with log-probability inf"),
        (top_tokens("5", "-1"), "ValueError token 'Yes' with log-probability 5"),
        (top_tokens("9" * 400, "-1"), "OverflowError"),
        (top_tokens("9" * 5000, "-1"), "ValueError a number with too many digits"),
        (top_tokens("-1", "[]"), "TypeError"),
        (top_tokens("-1", "-1").replace(b'"Yes"', b"null"), "ValueError token None"),
        (b"[" * 200_000, "nested more than 100 levels deep"),
        (b"\x00\xff<html>", "UnicodeDecodeError"),
        (b"<html>hi</html>", "ValueError not valid JSON"),
        (b"[1, 2]", "TypeError"),
        (b"", "ValueError not valid JSON"),
        (b" " * 4_000_001, "got a longer response of"),
    ],
)
def test_odd_responses_are_one_line_and_are_not_kept(
    content: bytes, message: str, config: PromptConfig, data: DataConfig, server: EndpointServer
) -> None:
    server.content = content
    assert message in error_of(config, data)
    server.content = None
    assert evaluate_prompt(config, data).metrics["validation"]["num_examples"] == len(ROWS)


def test_redirects_are_not_followed(
    config: PromptConfig,
    data: DataConfig,
    server: EndpointServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with EndpointServer() as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server.content = b""
        for status in (301, 302, 307, 308):
            server.status = status
            server.headers = {"Location": f"{other.url}/chat/completions?key=secret"}
            message = error_of(config, data)
            target = f"{other.url}/chat/completions?***"
            assert f"got a redirect of {server.url}/chat/completions to {target}" in message
        assert not other.received
        other.shutdown()


def test_keys_and_passwords_are_not_printed(
    config: PromptConfig,
    data: DataConfig,
    server: EndpointServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = server.url.replace("//", "//user:pass@word@")
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
    server.status, server.content = 401, {"error": "bad key sk-secret \x1b[2J"}
    message = error_of(config, data, endpoint=address)
    masked = server.url.replace("//", "//***@")
    assert f"got status 401 of {masked}/chat/completions" in message and "bad key ***" in message
    message = error_of(config, data, endpoint=f"{server.url}?key=sk-secret")
    assert f"endpoint: got '{server.url}?***'; expected http://HOST:PORT/v1." in message
    assert f"(served at {masked})" in "".join(
        preview_prompts(replace(config, endpoint=address), data)
    )
    server.status, server.content = 200, None
    record = evaluate_prompt(replace(config, endpoint=address), data).record
    assert record["config"]["endpoint"] == masked
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX: y")
    config = replace(config, output_dir=f"{config.output_dir}-2")
    message = error_of(config, data)
    assert message.startswith("OPENAI_API_KEY: got a key with a line break")
    assert "sk-secret" not in message


def test_a_poisoned_score_cache_is_ignored(
    config: PromptConfig, data: DataConfig, server: EndpointServer
) -> None:
    server.forbidden = ROWS[-1][0]  # the others are kept
    error_of(replace(config, batch_size=1), data)
    (file,) = Path(f"{Path(str(config.output_dir)).parent}/.run.scores").glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines() if line]
    damages: list[Any] = [float("nan"), "1", None]
    for record, damage in zip(records, damages, strict=False):
        record["scores"][0][1] = damage
    lines = [*map(json.dumps, records), "[]", "3", '{"key": "x"}', "\x00", '{"key']
    file.write_text("\n".join(lines))
    server.forbidden = None
    run = evaluate_prompt(config, data)
    assert np.isfinite(run.predictions("validation").probabilities).all()


def test_label_words_of_several_tokens_are_logged(
    config: PromptConfig, data: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "long.yaml"
    words = "{equivalent: The same thing, not_equivalent: 'No'}"
    template.write_text(f"text: '{{sentence1}} {{sentence2}}'\nlabel_words: {words}\n")
    evaluate_prompt(replace(config, template=str(template)), data)
    assert "label word 'The same thing' is scored by its first token only" in caplog.text


def test_a_token_counts_for_the_only_label_whose_words_begin_with_it() -> None:
    top = {" No": np.log(0.5), "no": np.log(0.1), "Y": np.log(0.2), "!": -9}
    assert np.allclose(match_tokens(top, WORDS), [1, np.log(0.6), np.log(0.2)])
    # Words of both labels begin with `same`; no token belongs to the second.
    words = [("same day",), ("same hour",)]
    top = {"same": np.log(0.5), " same day": np.log(0.2), "x": np.log(0.01)}
    assert np.allclose(match_tokens(top, words), [0, np.log(0.2), np.log(0.01)])
