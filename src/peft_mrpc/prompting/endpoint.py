"""A model behind an OpenAI-compatible API.

Such an API returns the most likely tokens at the position of the answer, not the whole
distribution. A label whose words are not among them gets the value of the least likely token
returned, an upper bound of its own. Label words of several tokens are scored by their first token.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError, one_line
from peft_mrpc.formatting import format_bytes, format_duration, mask_credentials
from peft_mrpc.models.batched_inference import ScoreCache, run_batched
from peft_mrpc.prompting.calibration import TemplateScores
from peft_mrpc.prompting.templates import Demonstration, Template
from peft_mrpc.serialization import load_json

logger = logging.getLogger(__name__)

NUM_TOP_TOKENS = 20  # the most that vLLM and OpenAI return
CONNECT_TIMEOUT = 10
READ_TIMEOUT = 600  # a server on a CPU answers one prompt after the other
# Too many requests, or a server that is restarting.
RETRY_STATUSES = (429, 500, 502, 503, 504)
NUM_RETRIES = 4
BACKOFF_FACTOR = 1.0  # waits of 0, 2, 4 and 8 seconds
MAX_CONNECTIONS = 128
# Errors of reading a response of another form.
FORMAT_ERRORS = (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError)
MAX_RESPONSE_BYTES = 4_000_000


@dataclass(frozen=True)
class RequestBatch:
    """N examples as requests to a server, which tokenizes them itself.

    Attributes:
        template: The template.
        requests: Path and body of each request, [N].
        lengths: Characters of each example, [N].
    """

    template: Template
    requests: Sequence[tuple[str, dict[str, Any]]]
    lengths: Sequence[int]

    def __len__(self) -> int:
        return len(self.requests)

    def fingerprint(self) -> str:
        """SHA-256 over all requests."""
        return hashlib.sha256(json.dumps(self.requests).encode()).hexdigest()


@dataclass
class EndpointEngine:
    """Scores labels by the most likely first tokens of the answer. It is its own encoder.

    Attributes:
        url: Base URL of the API, up to `/v1`.
        model: Name of the model on the server.
        label_names: Names of the C labels.
    """

    url: str
    model: str
    label_names: Sequence[str]

    def fingerprint(self) -> dict[str, Any]:
        """Everything except the prompts that a score depends on, as far as it is known here."""
        return {"url": self.url, "model": self.model}

    def encode(
        self,
        template: Template,
        examples: Sequence[Example],
        demonstrations: Sequence[Demonstration],
    ) -> RequestBatch:
        """Chat requests of N examples, or text to continue for templates of style `plain`."""
        requests = []
        for example in examples:
            pair = (example.sentence1, str(example.sentence2))
            body: dict[str, Any] = {"model": self.model, "max_tokens": 1, "temperature": 0}
            if template.style == "plain":
                path = "completions"
                body |= {
                    "prompt": template.to_text(*pair, demonstrations),
                    "logprobs": NUM_TOP_TOKENS,
                }
            else:
                path = "chat/completions"
                body |= {"messages": template.to_messages(*pair, demonstrations)}
                body |= {"logprobs": True, "top_logprobs": NUM_TOP_TOKENS}
            requests.append((path, body))
        lengths = [len(example.sentence1) + len(str(example.sentence2)) for example in examples]
        return RequestBatch(template, requests, lengths)

    @cached_property
    def _session(self) -> Any:
        """Connections to the server, with retries for passing failures."""
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        retry = Retry(
            total=NUM_RETRIES,
            connect=0,  # a server that is not there is not waited for
            status_forcelist=RETRY_STATUSES,
            allowed_methods=None,
            backoff_factor=BACKOFF_FACTOR,
            raise_on_status=False,
        )
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS, max_retries=retry))
        session.headers["Accept-Encoding"] = "identity"  # a compressed response has no known size
        if key := api_key():
            session.headers["Authorization"] = f"Bearer {key}"
        return session

    def score(
        self, batch: RequestBatch, batch_size: int, cache: ScoreCache | None = None
    ) -> TemplateScores:
        """Label scores of the examples, `batch_size` requests at a time."""
        words, name = batch.template.verbalizer(self.label_names), batch.template.name
        if long := [word for texts in words for word in texts if len(word.split()) > 1]:
            logger.warning("%s: label word %r is scored by its first token only", name, long[0])

        def score_batch(rows: list[int]) -> NDArray[np.float64]:
            with ThreadPoolExecutor(min(len(rows), MAX_CONNECTIONS)) as pool:
                tokens = pool.map(lambda row: self._top_tokens(*batch.requests[row]), rows)
                return np.stack([match_tokens(top, words) for top in tokens])

        columns = run_batched(batch.lengths, batch_size, score_batch, name, None, cache)
        is_complete, scores = columns[:, 0], columns[:, 1:]
        if count := int((is_complete == 0).sum()):
            logger.warning(
                "%s: %d of %d examples have a label outside the %d most likely tokens",
                *(name, count, len(batch), NUM_TOP_TOKENS),
            )
        return TemplateScores.from_labels(scores)

    def _top_tokens(self, path: str, body: dict[str, Any]) -> dict[str, float]:
        """The most likely first tokens of the answer with their log-probabilities."""
        choice = self._post(path, body)
        tokens: dict[str, float] = {}
        try:
            logprobs = choice.get("logprobs") or {}
            if content := logprobs.get("content"):  # chats; llama.cpp uses it for both
                top = [(token["token"], token["logprob"]) for token in content[0]["top_logprobs"]]
                tokens = dict(check_token(*pair) for pair in top)
            elif positions := logprobs.get("top_logprobs"):
                tokens = dict(check_token(*pair) for pair in positions[0].items())
        except FORMAT_ERRORS as error:
            raise self._format_error(path, error) from error
        if not tokens:
            raise UserError(
                f"endpoint: got a response of {self._address(path)} without log-probabilities; "
                "expected a server that returns `logprobs`."
            )
        return tokens

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the response.

        Raises:
            UserError: If the server is unreachable, refuses, redirects, or returns something else.
        """
        import requests
        import urllib3

        where = self._address(path)
        try:
            with self._session.post(
                f"{self.url.rstrip('/')}/{path}",
                json=body,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                stream=True,
                allow_redirects=False,  # the texts and the key are for this server only
            ) as response:
                content = read_limited(response.raw, where)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise UserError(
                f"endpoint: got no response of {where}: {innermost_message(error)}; is the server "
                "running there?"
            ) from error
        if response.is_redirect:
            target = mask_credentials(response.headers["Location"])
            raise UserError(
                f"endpoint: got a redirect of {where} to {target[:200]}; expected an answer. Texts "
                "are not sent to another address: if you trust it, name it."
            )
        if not response.ok:
            text = " ".join(content.decode("utf-8", errors="replace").split())
            text = text.replace(key, "***") if (key := api_key()) else text
            raise UserError(f"endpoint: got status {response.status_code} of {where}: {text[:200]}")
        try:
            return dict(load_json(content.decode("utf-8"))["choices"][0])
        except FORMAT_ERRORS as error:
            raise self._format_error(path, error) from error

    def _address(self, path: str) -> str:
        """The address of a request, for messages."""
        return f"{mask_credentials(self.url).rstrip('/')}/{path}"

    def _format_error(self, path: str, error: Exception) -> UserError:
        return UserError(
            f"endpoint: got a response of {self._address(path)} in another format than an "
            f"OpenAI-compatible API's: {type(error).__name__} {one_line(error)[:150]}"
        )


def api_key() -> str | None:
    """The key in OPENAI_API_KEY.

    Raises:
        UserError: If it cannot be sent; the message does not contain it.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            "OPENAI_API_KEY: got a key with a line break or another character that cannot be sent; "
            "expected one word."
        )
    return key or None


def read_limited(raw: Any, where: str) -> bytes:
    """Read the body of a response, without decompression.

    Args:
        raw: The response of urllib3.
        where: The address, for messages.
    Raises:
        UserError: If it is too large, or takes longer than READ_TIMEOUT.
    """
    content, end = b"", time.monotonic() + READ_TIMEOUT
    while part := raw.read1(MAX_RESPONSE_BYTES, decode_content=False):
        content += part
        if len(content) > MAX_RESPONSE_BYTES or time.monotonic() > end:
            limits = f"{format_bytes(MAX_RESPONSE_BYTES)} within {format_duration(READ_TIMEOUT)}"
            raise UserError(f"endpoint: got a longer response of {where}; expected {limits}.")
    return content


def check_token(token: Any, value: Any) -> tuple[str, float]:
    """A token and its log-probability, as a server returns them.

    Raises:
        ValueError: If they are not a text and a finite number up to 0, or up to rounding errors.
    """
    if not isinstance(token, str) or not -math.inf < float(value) < 1e-2:
        raise ValueError(f"token {token!r:.20} with log-probability {value!r:.20}")
    return token, float(value)


def innermost_message(error: BaseException) -> str:
    """The message of the innermost of the errors that wrap each other."""
    message = one_line(error)
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
        message = one_line(error) if error.args else message
    return message[:200]


def is_url(text: str) -> bool:
    """Whether a text is the address of a server."""
    try:
        parts = urlsplit(text)
        is_base = not (parts.query or parts.fragment)  # the path of a request follows
        is_http = parts.scheme in ("http", "https")
        return is_http and bool(parts.hostname) and parts.port != 0 and is_base
    except ValueError:  # a port that is not a number
        return False


def endpoint_faults(endpoint: str | None) -> list[str]:
    """The fault of an endpoint that is not an address."""
    if endpoint is None or is_url(endpoint):
        return []
    return [f"endpoint: got {mask_credentials(endpoint)!r}; expected http://HOST:PORT/v1."]


def match_tokens(top: dict[str, float], words: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Whether all labels are among the tokens (1 or 0), and the log-probability of each, [1 + C].

    A token belongs to a label if one of its words begins with the token and no other label's word
    does. Spaces around tokens and words are ignored.
    """
    minimum = min(top.values())
    scores, is_complete = [], 1.0
    for label, texts in enumerate(words):
        others = [word for other, more in enumerate(words) if other != label for word in more]
        values = [
            value
            for token, value in top.items()
            if (text := token.strip())
            and any(word.strip().startswith(text) for word in texts)
            and not any(word.strip().startswith(text) for word in others)
        ]
        if not values:
            values, is_complete = [minimum], 0.0
        scores.append(np.logaddexp.reduce(values))
    return np.array([is_complete, *scores])
