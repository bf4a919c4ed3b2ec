"""Adapt one model by three methods, compare them on the same rows, and predict with the best.

Run it as a script, or cell by cell in an editor that understands `# %%`. It takes about two
minutes on two CPU cores and needs no network.
"""

# %% Train: every method with its shipped recipe, fewer epochs than usual
from peft_mrpc import DataConfig, TrainConfig, compare_runs, load_classifier, train_classifier

data = DataConfig("builtin:pairs")
runs = [
    train_classifier(
        TrainConfig(method=method, model="builtin:minilm"),
        data,
        output_dir=f"runs/example/{method}",
        num_train_epochs=2,
    )
    for method in ("linear_probe", "lora", "prompt_tuning")
]

# %% Compare: metrics, confidence intervals and significance tests on the test split
report = compare_runs(runs, split="test")
print(report.to_markdown())
report.write_html("runs/example/report.html")

# %% Predict with the most accurate one on the validation split
best = max(runs, key=lambda run: run.metrics["validation"]["accuracy"])
classifier = load_classifier(best)
pairs = [
    ("The company posted a loss.", "The company lost money."),
    ("The company posted a loss.", "The company posted a job."),
]
probabilities = classifier.predict_proba(pairs)
for pair, label, row in zip(pairs, classifier.predict(pairs), probabilities, strict=True):
    print(*pair, "->", label, row.round(3))
