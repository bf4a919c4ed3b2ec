"""A language model that is served elsewhere, asked through an OpenAI-compatible API.

Such an API gives the likeliest tokens at the place of the answer, not the whole distribution: a
label whose words are not among them gets what the least likely of these has, which is more than its
own.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.calibration import Scores
from peft_mrpc.errors import UserError, logger, one_line
from peft_mrpc.pairs import Pair
from peft_mrpc.prompting import Questions
from peft_mrpc.prompts import Demonstration, Template
from peft_mrpc.scoring import KeptScores, score_rows

NUM_LIKELIEST = 20  # the most that vLLM and OpenAI give
TIMEOUT = 120
# Too many requests, or a server that has to be waited for.
PASSING = (429, 500, 502, 503, 504)
WAITS = (1, 4, 16)


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
        """What of it a score depends on."""
        return {"url": self.url, "model": self.model}

    def score(self, asked: Questions, batch_size: int, kept: KeptScores | None = None) -> Scores:
        """What a template says of the pairs; `batch_size` requests at a time."""
        requests = self._requests(asked)
        words, name = asked.template.words(asked.label_names), asked.template.name

        def score_batch(rows: list[int]) -> NDArray[np.float64]:
            with ThreadPoolExecutor(len(rows)) as pool:
                answers = pool.map(lambda row: self._likeliest(*requests[row]), rows)
                return np.stack([match_tokens(found, words) for found in answers])

        lengths = [len(pair.sentence1) + len(pair.sentence2) for pair in asked.pairs]
        found = score_rows(lengths, batch_size, score_batch, name, kept=kept)
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
        requests = self._requests(asked)
        with ThreadPoolExecutor(batch_size) as pool:
            found = pool.map(lambda one: self._post(one[0], one[1] | {"max_tokens": 8}), requests)
            return [str(choice.get("text") or choice["message"]["content"]) for choice in found]

    def _requests(self, asked: Questions) -> list[tuple[str, dict[str, Any]]]:
        both = zip(asked.pairs, asked.shown, strict=True)
        return [self._request(asked.template, pair, shown) for pair, shown in both]

    def _request(
        self, template: Template, pair: Pair, shown: Sequence[Demonstration]
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
        found = choice.get("logprobs") or {}
        if content := found.get("content"):  # a chat's form, and llama.cpp's for both
            return {one["token"]: float(one["logprob"]) for one in content[0]["top_logprobs"]}
        if top := found.get("top_logprobs"):
            return {token: float(value) for token, value in top[0].items()}
        raise UserError(
            f"--endpoint: got an answer of {self.url}/{path} without log-probabilities; expected "
            "a server that gives `logprobs`."
        )

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of an answer; waits and asks again where that may help.

        Raises:
            UserError: If the server is not there, refuses, or answers something else.
        """
        import requests

        where = f"{self.url.rstrip('/')}/{path}"
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        said = ""
        for wait in (*WAITS, None):
            try:
                answer = requests.post(where, json=body, headers=headers, timeout=TIMEOUT)
                self.has_answered = True
                if answer.ok:
                    choice: dict[str, Any] = answer.json()["choices"][0]
                    return choice
                said = f"{answer.status_code} {' '.join(answer.text.split())[:200]}"
                if answer.status_code not in PASSING:
                    break
            except (requests.ConnectionError, requests.Timeout) as error:
                said = f"{unreachable(error)}; is it running there?"
                if isinstance(error, requests.ConnectionError) and not self.has_answered:
                    break
            except (requests.RequestException, ValueError, KeyError, IndexError) as error:
                said = f"no answer of an OpenAI-compatible API: {one_line(error)[:150]}"
                break
            if wait is not None:
                time.sleep(wait)
        raise UserError(f"--endpoint: {where} gave no answer: {said}")


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
