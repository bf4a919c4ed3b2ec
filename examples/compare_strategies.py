"""Train three methods, compare their Runs, and predict with the most accurate one.

Run this file as a script, or cell by cell in an editor that supports `# %%`. It takes about two
minutes on two CPU cores and needs no network.
"""

# %% Train each method with its recipe, for two epochs
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

# %% Compare metrics, confidence intervals and significance tests on the test split
report = compare_runs(runs, split="test")
print(report.to_markdown())
report.write_html("runs/example/report.html")

# %% Select the Run with the highest validation accuracy, and predict labels
best = max(runs, key=lambda run: run.metrics["validation"]["accuracy"])
classifier = load_classifier(best)
pairs = [
    ("The company posted a loss.", "The company lost money."),
    ("The company posted a loss.", "The company posted a job."),
]
labels, probabilities = classifier.predict(pairs), classifier.predict_proba(pairs)
for (sentence1, sentence2), label, row in zip(pairs, labels, probabilities, strict=True):
    print(f"{sentence1} | {sentence2} -> {label} {row.round(3)}")
