"""What plain libraries make of saved folders, as the table in docs/loading.md says it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROWS
from tiny_models import TINY_OPTIONS

from peft_mrpc import TrainConfig, train_classifier
from peft_mrpc.runs.run import Run

PAGE = Path(__file__).parents[2] / "docs" / "loading.md"
# The folders of the table: method and pooling.
FOLDERS = {
    "`model/`, native head": ("full", "native"),
    "`model/`, our head": ("layer_freeze", "aligned"),
    "`adapter/`, native head: LoRA and others": ("lora", "native"),
    "`adapter/`, native head: virtual tokens": ("prompt_tuning", "native"),
    "`adapter/`, our head": ("lora", "weighted"),
    "`adapter/`, our head: virtual tokens": ("prompt_tuning", "aligned"),
}
# Each library, in a process that cannot import this package. Prints a list of probabilities by
# label name or number, or the name of an exception, for each job.
SCRIPT = """
import json, sys
sys.modules["peft_mrpc"] = None  # importing it would fail

import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


def classify(model, folder, texts, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    with torch.no_grad():
        logits = model.eval()(**tokenizer(*texts, return_tensors="pt")).logits
    return logits.softmax(-1)[0].tolist()


def by_pipeline(folder, base, texts, **options):
    classifier = pipeline("text-classification", model=folder, top_k=None, **options)
    inputs = dict(zip(("text", "text_pair"), texts))
    return {label["label"]: label["score"] for label in classifier(inputs)}


def by_auto_model(folder, base, texts, **options):
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    return classify(model, folder, texts, **options)


def by_auto_peft(folder, base, texts, **options):
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, **options)
    return classify(model, folder, texts, **options)


def by_peft_model(folder, base, texts, **options):
    model = AutoModelForSequenceClassification.from_pretrained(base)
    return classify(PeftModel.from_pretrained(model, folder), folder, texts)


def by_cross_encoder(folder, base, texts, **options):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(folder, **options).predict([texts], apply_softmax=True)[0].tolist()


def by_card(folder, base, code, **options):
    names = {}
    *lines, call = code
    exec("\\n".join(lines), names)
    return {label["label"]: label["score"] for label in eval(call, names)}


LIBRARIES = {
    "card": by_card,
    "pipeline": by_pipeline,
    "AutoModel": by_auto_model,
    "AutoPeft": by_auto_peft,
    "PeftModel": by_peft_model,
    "CrossEncoder": by_cross_encoder,
}
results = []
for library, folder, base, texts, options in json.load(open(sys.argv[1])):
    try:
        results.append(LIBRARIES[library](folder, base, texts, **options))
    except Exception as error:
        results.append(f"{type(error).__name__}: {error}"[:300])
json.dump(results, open(sys.argv[2], "w"))
"""


def run_plainly(jobs: list[tuple[str, Path, str, list[str], bool]], folder: Path) -> list[Any]:
    """Run jobs of a library, a folder, its base model, texts, and whether its code is trusted."""
    script, inputs, outputs = (folder / name for name in ("script.py", "in.json", "out.json"))
    script.write_text(SCRIPT)
    rows = [
        (*map(str, job[:3]), list(job[3]), {"trust_remote_code": True} if job[4] else {})
        for job in jobs
    ]
    inputs.write_text(json.dumps(rows))
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(inputs), str(outputs)],
        env={**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: list[Any] = json.loads(outputs.read_text())
    return results


def table() -> dict[str, dict[str, str]]:
    """The first table of the page: folder -> library -> yes, with code or error."""
    text = next(part for part in PAGE.read_text("utf-8").split("\n\n") if part.startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    libraries = [name.strip("`") for name in rows[0][1:]]
    return {row[0]: dict(zip(libraries, row[1:], strict=True)) for row in rows[2:]}


def train(model: str, data: Any, folder: Path, method: str, pooling: str) -> Run:
    return train_classifier(
        TrainConfig(method=method, model=model, pooling=pooling, max_length=32),
        data,
        output_dir=folder,
        max_steps=6,
        learning_rate=1e-2,
        disable_tqdm=True,
        **TINY_OPTIONS[method],
    )


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, tiny_data: Any
) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("plain")
    return {
        name: train(tiny_bert, tiny_data, folder / f"{number}", *options)
        for number, (name, options) in enumerate(FOLDERS.items())
    }


def test_the_table_of_what_loads_where(
    runs: dict[str, Run], tiny_bert: str, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    claims = table()
    claims["`adapter/`, our head: virtual tokens"] = claims["`adapter/`, our head"]
    assert claims.keys() == FOLDERS.keys()
    cases = [
        (name, library, trusted)
        for name, row in claims.items()
        for library in row
        for trusted in (False, True)
    ]
    jobs = [
        (library, runs[name].artifact, tiny_bert, list(ROWS[0][:2]), trusted)
        for name, library, trusted in cases
    ]
    failures = []
    for (name, library, trusted), result in zip(cases, run_plainly(jobs, tmp_path), strict=True):
        claim, run = claims[name][library], runs[name]
        loads = claim == "yes" or (claim == "with code" and trusted)
        if not loads and isinstance(result, str):
            continue
        expected = run.predictions("validation").probabilities[0].tolist()
        if isinstance(result, dict):
            labels = run.label_names
            if name.startswith("`adapter/`, native"):
                labels = ["LABEL_0", "LABEL_1"]
            result = [result.get(label) for label in labels]
        if not loads or isinstance(result, str) or result != pytest.approx(expected, abs=1e-5):
            failures.append((name, library, trusted, claim, expected, result))
    assert failures == []


def card_code(run: Run, base: str) -> list[str]:
    """The lines of the card's example for other libraries, for all labels of the first row."""
    text = (run.path / "README.md").read_text("utf-8").split(" only:\n\n```python\n")[1]
    places = {
        "path/to/this/run": str(run.path),
        "path/to/the/base/model": base,
        "The first sentence.": ROWS[0][0],
        "The second sentence.": ROWS[0][1],
        "truncation=True": "truncation=True, top_k=None",
    }
    for place, value in places.items():
        text = text.replace(place, value)
    return text.split("\n```")[0].splitlines()


def test_the_example_of_the_card_gives_the_runs_probabilities(
    runs: dict[str, Run], tiny_bert: str, tiny_llama: str, tiny_data: Any, tmp_path: Path
) -> None:
    decoder = train(tiny_llama, tiny_data, tmp_path / "decoder", "lora", "last")
    tried = [(run, tiny_bert) for run in runs.values()] + [(decoder, tiny_llama)]
    jobs = [("card", run.artifact, base, card_code(run, base), False) for run, base in tried]
    for (run, _), result in zip(tried, run_plainly(jobs, tmp_path), strict=True):
        expected = run.predictions("validation").probabilities[0]
        assert [result[label] for label in run.label_names] == pytest.approx(expected, abs=1e-5)
