import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from peft_mrpc.training.activation_cache.plan import parse_bytes
from tiny_models import ARCHITECTURES as TINY
from tiny_models import tiny_config

from peft_mrpc import doctor
from peft_mrpc.doctor import main
from peft_mrpc.methods.compatibility import (
    MATRIX_ARCHITECTURES,
    default_options,
    validate_compatibility,
)
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.models.loading import load_config, load_tokenizer
from peft_mrpc.training.cost_estimate import Estimate, Pairs, rehearse
from peft_mrpc.training.request import parse_request


def test_the_table_shows_every_method_and_the_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([])
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert "torch 2" in said and "CPU:" in said and "found: bitsandbytes" in said
    header = next(number for number, line in enumerate(lines) if line.startswith("method"))
    rows = {line.split()[0]: line.split()[1:] for line in lines[header + 1 :] if line}
    columns = lines[header].split()[1:]
    assert set(METHODS) <= set(rows)
    assert rows["lora"] == ["yes"] * len(columns)
    prefix = dict(zip(columns, rows["prefix_tuning"], strict=True))
    assert prefix["bert"] == "yes" and prefix["modernbert"] == prefix["checkpointing"] == "-"
    assert dict(zip(columns, rows["prompt_tuning"], strict=True))["llama"] == "ours"


def test_one_method_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--method", "bitfit"])
    said = capsys.readouterr().out
    assert "bitfit, but llama here has no biases; use ln_tuning." in said
    assert "torch" not in said


def test_the_table_speaks_for_the_tiny_models_that_are_tested() -> None:
    from transformers import AutoConfig

    assert set(MATRIX_ARCHITECTURES) == set(TINY)
    for method in METHODS:
        for name in MATRIX_ARCHITECTURES:
            for pooling in ("last", "native"):
                options = default_options(method)
                of_table, of_tests = (
                    validate_compatibility(config, method, options, pooling=pooling)
                    for config in (AutoConfig.for_model(name), tiny_config(name))
                )
                assert of_table == of_tests


def test_a_method_on_a_model_says_what_train_would(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft_mrpc.train import main as train

    main(["--model", tiny_bert, "--method", "lora", "--r", "4"])
    said = capsys.readouterr().out
    flags = ["--model", tiny_bert, "--method", "lora", "--r", "4", "--num_train_epochs", "1"]
    train([*flags, *data_flags, "--output_dir", str(tmp_path / "run")])
    counts = json.loads((tmp_path / "run" / "run.json").read_text())["trainable"]
    assert f"lora: works; {counts['trained']:,} of {counts['total']:,} parameters train" in said


def test_every_method_is_counted_without_weights(
    tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for pooling in ("auto", "native"):
        main(["--model", tiny_bert, "--pooling", pooling])
        said = capsys.readouterr().out
        assert all(f"{method}: works; " in said for method in METHODS)


def test_what_does_not_work_ends_with_code_2(
    tiny_bert: str, tiny_llama: str, fails: Callable[..., str]
) -> None:
    assert "no biases" in fails(main, "--method", "bitfit", "--model", tiny_llama)
    flags = ["--method", "full", "--model", tiny_bert, "--quantization"]
    assert "full trains or saves" in fails(main, *flags, "nf4")
    assert "Did you mean 'nf4'?" in fails(main, *flags, "nf5")
    assert "Did you mean 'lora'?" in fails(main, "--method", "loar")
    assert "Did you mean 'method'?" in fails(main, "--methd", "lora")
    assert fails(main, "--bf16", "maybe").startswith("peft-mrpc: doctor: argument --bf16:")
    said = fails(main, "--model", tiny_bert, "--num_unfrozen_layers", "1")
    assert "--num_unfrozen_layers: got an option of some methods; name one by --method." in said


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"no_such_package": "nothing"})
    assert "missing: no_such_package (for nothing)" in doctor.describe_environment()


def test_the_documented_table_is_the_printed_one(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out.splitlines()
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text().splitlines()
    documented = [line.strip("| ").split(" | ") for line in text if line.startswith("| ")]
    header = next(number for number, line in enumerate(printed) if line.startswith("method"))
    for line in printed[header : header + 1 + len(METHODS)]:
        assert line.split() in documented
    assert all(any(row[0] == f"`{method}`" for row in documented) for method in METHODS)


@pytest.mark.parametrize("method", ["layer_freeze", "full", "lora", "prompt_tuning"])
def test_what_it_will_take_is_tried_and_leaves_nothing(
    method: str,
    tiny_bert: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFT_MRPC_TRUNKS", str(tmp_path / "trunks"))
    flags = ["--num_unfrozen_layers", "1"] if method == "layer_freeze" else []
    flags += ["--num_virtual_tokens", "5"] if method == "prompt_tuning" else []
    few, many = (
        _estimate(["--model", tiny_bert, "--method", method, *flags, "--num_pairs", count], capsys)
        for count in ("1000", "100000")
    )
    pattern = r"1,000 pairs of 53 tokens: about [\d.]+ (s|min|h) an epoch"
    kept = r", after [\d.]+ s to start and [\d.]+ (s|min|h) for the frozen layers, once \(%s kept\)"
    # Both orders of a pair, 16 numbers of 4 bytes a token.
    sizes = ("6.78 MB", "678 MB") if method == "layer_freeze" else ("", "")
    for said, size in zip((few, many), sizes, strict=True):
        assert re.search(r"; peak memory about [\d.]+ [MG]B$", said)
        assert bool(re.search(kept % re.escape(size), said)) is (method == "layer_freeze")
    assert re.match(pattern, few) and many.startswith("100,000 pairs")
    assert list(tmp_path.iterdir()) == []


def test_the_forecast_is_of_the_run_that_will_be_made(
    tiny_bert: str,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PEFT_MRPC_TRUNKS", str(tmp_path / "trunks"))
    base = ["--model", tiny_bert, "--method", "layer_freeze", "--num_unfrozen_layers", "1"]
    base += ["--num_pairs", "1000"]

    def said(*flags: str) -> str:
        return _estimate([*base, *flags], capsys)

    once = "for the frozen layers, once"
    assert once not in said("--activation_cache", "off")
    assert "training reads 1,000 pairs, fewer than" in said("--num_train_epochs", "1")
    assert "(3.39 MB kept)" in said("--trunk_cache_dtype", "float16")
    assert "(6.78 MB kept in memory)" in said("--trunk_cache_limit", "1KB")
    small = ["--trunk_cache_limit", "1KB", "--trunk_cache_memory", "1MB"]
    text = said(*small)
    assert once not in text and "; frozen layers run every time: it takes 6.78 MB, 0 KB" in text
    # Each of them as train says it.
    refused = fails(main, *base, "--activation_cache", "on", *small)
    assert refused.endswith("got 'memory', but it takes 6.78 MB, --trunk_cache_memory is 1 MB.")
    refused = fails(main, *base, "--activation_cache", "on", *small)
    assert "--trunk_cache: got 'disk', but it takes 6.78 MB" in refused
    assert "Did you mean 'disk'?" in fails(main, *base, "--trunk_cache", "disc")
    flags = ["--trunk_cache_limit", "much", "--estimate", "false"]
    assert "--trunk_cache_limit: got 'much'; expected a size" in fails(main, *base, *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_and_every_flag_of_train_are_foretold(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"method: lora\nmodel: {tiny_bert}\nr: 2\nearly_stopping_patience: 2\noptim: sgd\n"
        "report_to: tensorboard\n"
    )
    main(["--config", str(recipe), "--gradient_accumulation_steps", "2"])
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("lora: works; ") and " to start; peak memory about" in said[2]
    main(["--config", str(recipe), "--r", "4", "--estimate", "false"])
    more = capsys.readouterr().out.splitlines()
    assert len(more) == 2 and more[1] != said[1]
    assert list(tmp_path.iterdir()) == [recipe]


def test_the_forecast_weighs_a_fill_as_train_does(tiny_bert: str) -> None:
    def seen(*flags: str) -> Estimate:
        request = parse_request(
            ["--model", tiny_bert, "--method", "layer_freeze", "--num_unfrozen_layers", "1"]
            + [*flags, "--pooling", "mean", "--num_train_epochs", "1"]
            + ["--report_to", "none", "--save_strategy", "no"]
        )
        source = resolve_model(tiny_bert)
        tokenizer = load_tokenizer(source)
        found = rehearse(request, load_config(source), tokenizer, Pairs(100, 20))
        assert isinstance(found, Estimate)
        return found

    both = seen()
    assert both.trunk_pairs == 0
    assert both.note == "training reads 100 pairs, fewer than the 200 to run"
    one = seen("--swap_sentences", "false")
    assert one.trunk_pairs == 100 and one.note == ""
    assert seen("--activation_cache", "on").trunk_pairs == 200


def test_what_will_be_held_counts_as_memory(
    tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_bert, "--method", "layer_freeze", "--num_unfrozen_layers", "1"]
    flags += ["--num_pairs", "1000000"]  # 6.78 GB
    peaks = []
    for limit in ("1KB", "9GB"):
        said = _estimate([*flags, "--trunk_cache_memory", limit], capsys)
        peak, *files = said.split("peak memory about ")[1].split(", and ")
        assert [re.fullmatch(r"6\.\d+ GB of files", text) is not None for text in files] == (
            [True] if limit == "1KB" else []
        )
        peaks.append(parse_bytes(peak))
    assert peaks[0] is not None and peaks[1] is not None
    assert 5e9 < peaks[1] - peaks[0] < 8e9


def _estimate(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(argv)
    printed = capsys.readouterr()
    assert "frozen layers:" not in printed.err and "{" not in printed.out
    return printed.out.splitlines()[-1]


def test_what_cannot_be_tried_is_said(
    tiny_bert: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    flags = ["--model", tiny_bert, "--method", "lora", "--r", "4"]
    assert "weights that are not quantized" in _estimate([*flags, "--quantization", "nf4"], capsys)
    monkeypatch.setattr("peft_mrpc.training.cost_estimate.available_memory", lambda on_gpu: 1000)
    assert "and more, and 1 KB are free" in _estimate(flags, capsys)
    main([*flags, "--estimate", "false"])
    assert "epoch" not in capsys.readouterr().out
    assert "--num_pairs: got 0; expected at least 1." in fails(main, *flags, "--num_pairs", "0")


def test_tokens_that_will_be_cut_cost_nothing(
    tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_bert, "--method", "layer_freeze", "--num_unfrozen_layers", "1"]
    flags += ["--num_pairs", "1000", "--max_length", "32"]
    (few, many) = (_estimate([*flags, "--mean_tokens", one], capsys) for one in ("32", "400"))
    assert "of 400 tokens (cut to 32, see --max_length)" in many and "cut to" not in few
    kept = re.compile(r"once \(([\d.]+ MB) kept\)")
    assert kept.findall(few) == kept.findall(many) == ["4.1 MB"]


def test_pairs_that_are_named_are_read(
    tiny_bert: str, pair_files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_bert, "--method", "linear_probe", "--activation_cache", "on"]
    named = _estimate([*flags, "--train_file", pair_files["train"]], capsys)
    count = int(re.findall(r"^(\d+) pairs of", named, re.MULTILINE)[0])
    assert count == 18
    assert "1,000 pairs of" in _estimate(
        [*flags, "--train_file", pair_files["train"], "--num_pairs", "1000"], capsys
    )


def test_what_named_pairs_cannot_give_is_refused_as_train_does(
    tiny_bert: str, pair_files: dict[str, str], fails: Callable[..., str]
) -> None:
    flags = ["--model", tiny_bert, "--method", "full", "--train_file", pair_files["train"]]
    assert "got 3 numbers" in fails(main, *flags, "--class_weights", "1,2,3")


def test_labels_say_whether_either_order_is_kept(
    tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_bert, "--method", "linear_probe", "--num_pairs", "1000"]
    kept = re.compile(r"once \(([\d.]+) MB kept\)")
    both, one = (
        float(kept.findall(_estimate([*flags, "--class_names", names], capsys))[0])
        for names in ("different,same", "no,yes")
    )
    assert both == pytest.approx(2 * one, rel=0.01)


def test_several_processes_are_not_foretold(
    tiny_bert: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.world_size", 2)
    main(["--model", tiny_bert, "--method", "layer_freeze"])
    assert "no estimate: doctor says what one process takes" in capsys.readouterr().out


def test_a_recipe_stands_for_one_training(
    tiny_bert: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[..., str],
    data_flags: list[str],
) -> None:
    from peft_mrpc.train import main as train

    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {tiny_bert}\nnum_unfrozen_layers: 1\n")
    main(["--config", str(recipe), "--estimate", "false"])
    assert capsys.readouterr().out.splitlines()[1].startswith("layer_freeze: works; ")
    # What a null takes out of the method's recipe is out of it here, too.
    recipe.write_text(f"method: linear_probe\nmodel: {tiny_bert}\nhead_layer: null\n")
    main(["--config", str(recipe), "--estimate", "false"])
    counted = capsys.readouterr().out.splitlines()[1]
    train(["--config", str(recipe), *data_flags, "--dry_run"])
    assert "last layer" in capsys.readouterr().out and "last layer" in counted
    assert "--num_pairs: is for an estimate; add --method" in fails(main, "--num_pairs", "5")


@pytest.mark.parametrize(
    "flags",
    [
        "--eval_strategy epoch --eval_on_start",
        "--early_stopping_patience 2 --metric_for_best_model f1",
        "--class_weights 1,2,3",
        "--gradient_accumulation_steps 300",
        "--seeds 1,2,3",
        "--threshold auto",
    ],
)
def test_flags_of_train_leave_an_estimate(
    flags: str, tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _estimate(["--model", tiny_bert, "--method", "lora", "--r", "2", *flags.split()], capsys)
    assert re.search(r"an epoch, after [\d.]+ s to start; peak memory about [\d.]+ [MG]B$", said)


def test_what_serves_several_seeds_is_weighed_so(
    tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_bert, "--method", "layer_freeze", "--num_unfrozen_layers", "1"]
    flags += ["--num_train_epochs", "1"]
    assert "fewer than the 7,336 to run" in _estimate(flags, capsys)
    assert "for the frozen layers, once" in _estimate([*flags, "--seeds", "1,2,3"], capsys)
