"""From token ids to label probabilities, on any number of processes. No tokenizer here."""

from collections.abc import Callable, Sequence
from operator import itemgetter

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from peft_mrpc.processes import process_state

ScoreBatch = Callable[[list[int]], NDArray[np.float64]]


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of like length, longest first: memory runs short at once or never."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def score_rows(
    lengths: Sequence[int], batch_size: int, score_batch: ScoreBatch, description: str
) -> NDArray[np.float64]:
    """Score every row once, spread over the processes of the job.

    The batches are formed once for all processes, and handed out whole: what a row is padded to,
    and so its score, does not depend on how many processes there are.

    Args:
        lengths: Tokens of each row, [N].
        batch_size: Rows in a forward pass.
        score_batch: Scores the rows of one batch, [B] -> [B, K].
        description: Stands before the progress bar.
    Returns:
        The scores in row order, [N, K], on every process.
    """
    state = process_state()
    batches = length_sorted_batches(lengths, batch_size)
    scored: list[tuple[int, NDArray[np.float64]]] = []
    with tqdm(
        total=len(lengths),
        desc=description,
        unit="pair",
        disable=not state.is_main_process,
        mininterval=0.5,
    ) as bar:
        for number, batch in enumerate(batches):
            if number % state.num_processes == state.process_index:
                scored += zip(batch, score_batch(batch), strict=True)
            bar.update(len(batch))
    if state.num_processes > 1:
        # Gathered as objects, uneven as they are: padding to even shards would reorder rows.
        scored = gather_object(scored)
    scored.sort(key=itemgetter(0))
    assert [row for row, _ in scored] == list(range(len(lengths))), "a row was lost or doubled"
    return np.stack([scores for _, scores in scored])


def classifier_probabilities(logits: torch.Tensor) -> NDArray[np.float64]:
    """Softmax of classifier logits in float64, [B, C]."""
    probabilities: NDArray[np.float64] = logits.double().softmax(dim=-1).cpu().numpy()
    return probabilities


@torch.inference_mode()
def score_label_tokens(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    label_tokens: Sequence[int],
    pad_token_id: int,
) -> NDArray[np.float64]:
    """Log-probability of each label's token after each prompt (arXiv:2005.14165, section 2.4).

    One forward pass, nothing sampled. Prompts are padded on the right, where a causal model cannot
    see: no row's score depends on another's length but by rounding.

    Args:
        model: A causal LM in eval mode.
        prompt_ids: B prompts of differing lengths, in token ids.
        label_tokens: One token id for each label, [C].
        pad_token_id: Any id; pads are masked.
    Returns:
        Log-probabilities in nats, softmax taken in float32 over the vocabulary, [B, C].
    """
    lengths = torch.tensor([len(ids) for ids in prompt_ids])
    width = int(lengths.max())
    input_ids = torch.full((len(prompt_ids), width), pad_token_id)
    for row, ids in enumerate(prompt_ids):
        input_ids[row, : len(ids)] = torch.tensor(ids)
    attention_mask = (torch.arange(width)[None, :] < lengths[:, None]).long()
    # Only the positions that end some prompt go through the output layer: [B, U, V], not [B, T, V].
    ends, which = torch.unique(lengths - 1, return_inverse=True)
    device = model.device
    logits = model(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        use_cache=False,
        logits_to_keep=ends.to(device),
    ).logits
    # A few models do not know logits_to_keep and give every position.
    column = which if logits.shape[1] == len(ends) else lengths - 1
    last = logits[torch.arange(len(prompt_ids), device=device), column.to(device)]  # [B, V]
    log_probabilities = last.float().log_softmax(dim=-1)
    chosen = log_probabilities[:, torch.tensor(label_tokens, device=device)]
    result: NDArray[np.float64] = chosen.double().cpu().numpy()
    return result
