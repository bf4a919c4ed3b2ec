"""A language model that is served elsewhere, asked through an OpenAI-compatible API.

Such an API gives the likeliest tokens at the place of the answer, not the whole distribution: a
label whose words are not among them gets what the least likely of these has, which is more than its
own. A label's word of several tokens goes by its first.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from peft_mrpc.data.examples import Example
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError, logger, one_line
from peft_mrpc.models.batched_inference import ScoreCache, run_batched
from peft_mrpc.prompting.calibration import Scores
from peft_mrpc.prompting.prompt_encoder import ANSWER_TOKENS, Questions
from peft_mrpc.prompting.templates import Demonstration, Template

NUM_LIKELIEST = 20  # the most that vLLM and OpenAI give
# To be reached, and to answer: a server on a CPU takes one prompt after the other.
CONNECT_TIMEOUT = 10
TIMEOUTS = (CONNECT_TIMEOUT, 600)
# Too many requests, or a server that has to be waited for.
PASSING = (429, 500, 502, 503, 504)
WAITS = (1, 4, 16)
# What an answer of another form makes of reading it.
UNREADABLE = (KeyError, TypeError, IndexError, AttributeError, ValueError)


@dataclass
class EndpointEngine:
    """Scores labels by the likeliest first tokens of the answer.

    Attributes:
        url: Of the API, up to `/v1`.
        model: The name it is served under.
        unseen: For each template, how many pairs had a label that was not among the likeliest.
        has_answered: Whether it ever did; one that did not is not waited for when it is gone.
    """

    url: str
    model: str
    unseen: dict[str, int] = field(default_factory=dict)
    has_answered: bool = False

    def identity(self) -> dict[str, Any]:
        """What of it a score depends on; the server may have another model under the same name."""
        return {"url": self.url, "model": self.model, "served": self._served}

    @cached_property
    def _served(self) -> Any:
        """What the server says of its models, but for the hour; nothing if it says nothing."""
        import requests

        with contextlib.suppress(requests.RequestException, *UNREADABLE):
            answer = requests.get(
                f"{self.url.rstrip('/')}/models", headers=_headers(), timeout=CONNECT_TIMEOUT
            )
            models = answer.json()["data"]
            return [{k: v for k, v in one.items() if k != "created"} for one in models]
        return None

    def score(self, asked: Questions, batch_size: int, kept: ScoreCache | None = None) -> Scores:
        """What a template says of the pairs; `batch_size` requests at a time."""
        requests = self._requests(asked)
        words, name = asked.template.words(asked.label_names), asked.template.name
        if long := [word for own in words for word in own if len(word.split()) > 1]:
            logger.warning("%s: of %r the first token alone is asked for", name, long[0])

        def score_batch(rows: list[int]) -> NDArray[np.float64]:
            with ThreadPoolExecutor(len(rows)) as pool:
                answers = pool.map(lambda row: self._likeliest(*requests[row]), rows)
                return np.stack([match_tokens(found, words) for found in answers])

        lengths = [len(pair.sentence1) + len(pair.sentence2) for pair in asked.pairs]
        found = run_batched(lengths, batch_size, score_batch, name, cache=kept)
        seen, scores = found[:, 0], found[:, 1:]
        if number := int((seen == 0).sum()):
            self.unseen[name] = number
            logger.warning(
                "%s: for %d of %d pairs a label was not among the %d likeliest tokens",
                *(name, number, len(asked.pairs), NUM_LIKELIEST),
            )
        return Scores.of_labels(scores)

    def generate(self, asked: Questions, batch_size: int) -> list[str]:
        """The likeliest words after each prompt, one after the other (temperature 0)."""
        requests, state = self._requests(asked), process_state()
        own = range(state.process_index, len(requests), state.num_processes)
        with ThreadPoolExecutor(batch_size) as pool:
            found = pool.map(lambda row: self._written(*requests[row]), own)
            title, silent = f"{asked.template.name}, generating", not state.is_main_process
            bar = tqdm(found, title, total=len(own), unit="pair", disable=silent)
            written = list(zip(own, bar, strict=True))
        if state.num_processes > 1:
            written = gather_object(written)
        return [text for _, text in sorted(written)]

    def _written(self, path: str, body: dict[str, Any]) -> str:
        """What the model writes; nothing where it ends at once."""
        choice = self._post(path, body | {"max_tokens": ANSWER_TOKENS})
        try:
            text = choice["text"] if "text" in choice else choice["message"]["content"]
        except UNREADABLE as error:
            raise self._unreadable(path, error) from error
        return "" if text is None else str(text)

    def _unreadable(self, path: str, error: Exception) -> UserError:
        return UserError(
            f"--endpoint: {self.url.rstrip('/')}/{path} gave no answer of an OpenAI-compatible "
            f"API: {type(error).__name__} {one_line(error)[:150]}"
        )

    def _requests(self, asked: Questions) -> list[tuple[str, dict[str, Any]]]:
        both = zip(asked.pairs, asked.shown, strict=True)
        return [self._request(asked.template, pair, shown) for pair, shown in both]

    def _request(
        self, template: Template, pair: Example, shown: Sequence[Demonstration]
    ) -> tuple[str, dict[str, Any]]:
        """Path and body: a chat, or text to be continued where the template says plain."""
        body = {"model": self.model, "max_tokens": 1, "temperature": 0}
        if template.style == "plain":
            prompt = template.plain(pair.sentence1, pair.sentence2, shown)
            return "completions", body | {"prompt": prompt, "logprobs": NUM_LIKELIEST}
        messages = template.messages(pair.sentence1, pair.sentence2, shown)
        likeliest = {"logprobs": True, "top_logprobs": NUM_LIKELIEST}
        return "chat/completions", body | {"messages": messages} | likeliest

    def _likeliest(self, path: str, body: dict[str, Any]) -> dict[str, float]:
        """The likeliest tokens of the answer's first place, with their log-probabilities."""
        choice = self._post(path, body)
        likeliest: dict[str, float] = {}
        try:
            found = choice.get("logprobs") or {}
            if content := found.get("content"):  # a chat's form, and llama.cpp's for both
                top = content[0]["top_logprobs"]
                likeliest = {one["token"]: float(one["logprob"]) for one in top}
            elif top := found.get("top_logprobs"):
                likeliest = {token: float(value) for token, value in top[0].items()}
        except UNREADABLE as error:
            raise self._unreadable(path, error) from error
        if not likeliest:
            raise UserError(
                f"--endpoint: got an answer of {self.url}/{path} without log-probabilities; "
                "expected a server that gives `logprobs`."
            )
        return likeliest

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of an answer; waits and asks again where that may help.

        Raises:
            UserError: If the server is not there, refuses, or answers something else.
        """
        import requests

        where = f"{self.url.rstrip('/')}/{path}"
        said = ""
        for wait in (*WAITS, None):
            try:
                answer = requests.post(where, json=body, headers=_headers(), timeout=TIMEOUTS)
                self.has_answered = True
                if answer.ok:
                    return dict(answer.json()["choices"][0])
                said = f"{answer.status_code} {' '.join(answer.text.split())[:200]}"
                if answer.status_code not in PASSING:
                    break
            except (requests.ConnectionError, requests.Timeout) as error:
                said = f"{unreachable(error)}; is it running there?"
                if isinstance(error, requests.ConnectionError) and not self.has_answered:
                    break
            except requests.RequestException as error:
                said = one_line(error)[:150]
                break
            except UNREADABLE as error:
                raise self._unreadable(path, error) from error
            if wait is not None:
                time.sleep(wait)
        raise UserError(f"--endpoint: {where} gave no answer: {said}")


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def unreachable(error: BaseException) -> str:
    """Why a server was not reached, by the innermost of the errors that wrap each other."""
    said = one_line(error)
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
        said = one_line(error) if error.args else said
    return said[:200]


def is_url(text: str) -> bool:
    """Whether a text is the address of a server."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def address_faults(endpoint: str | None) -> list[str]:
    """What is wrong with `--endpoint`, if it is given."""
    if endpoint is None or is_url(endpoint):
        return []
    return [f"--endpoint: got {endpoint!r}; expected http://HOST:PORT/v1."]


def match_tokens(
    likeliest: dict[str, float], words: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """Whether all labels were seen (1 or 0), and the log-probability of each, [1 + C].

    A token is a label's if it is the beginning of one of its words, or the whole of it, and of no
    other label's. Spaces around it do not count.
    """
    floor = min(likeliest.values())
    scores, seen = [], 1.0
    for number, own in enumerate(words):
        others = [word for other, more in enumerate(words) if other != number for word in more]
        found = [
            value
            for token, value in likeliest.items()
            if (said := token.strip())
            and any(word.strip().startswith(said) for word in own)
            and not any(word.strip().startswith(said) for word in others)
        ]
        if not found:
            found, seen = [floor], 0.0
        scores.append(np.logaddexp.reduce(found))
    return np.array([seen, *scores])
