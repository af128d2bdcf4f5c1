"""The 2020 study's eleven claims, each a test over runs: confirmed, refuted, undecided, or open.

Every claim comes down to comparisons of a mean over seeds with an edge; a claim of several is
confirmed by all of them and refuted by one (see `verdicts`).
"""

from __future__ import annotations

from collections.abc import Callable

from pruneflow.paper import accuracy, removal
from pruneflow.paper.verdicts import Answer
from pruneflow.report.evidence import Evidence
from pruneflow.report.page import Statement

# number -> the claim, and its test
CLAIMS: dict[int, tuple[str, Callable[[Evidence], Answer]]] = {
    1: ("AlexNet keeps its accuracy (within 2 points) with 12.5 % of its connections",
        accuracy.keeps_accuracy),
    2: ("L1 beats random by far at every sparsity", accuracy.beats_random),
    3: ("Iterative beats direct: slightly after fine-tuning, clearly before",
        accuracy.iterative_beats_direct),
    4: ("Most pruned weights are in the first two linear layers of AlexNet", removal.first_linears),
    5: ("Pruning regularises: the train-test gap narrows as sparsity grows", accuracy.regularises),
    6: ("Structured accuracy falls faster than unstructured and is erratic before fine-tuning",
        accuracy.structured_falls_faster),
    7: ("Structured masks overstate the parameters left, against physical removal",
        removal.masks_overstate),
    8: ("Latency grows linearly with batch size; masked equals original; compact is faster, and "
        "more so as parameters go", removal.latency_behaves),
    9: ("BERT loses accuracy faster than the CNNs; a smaller fraction is slightly better",
        accuracy.bert_is_fragile),
    10: ("VGG16 holds best at high sparsity among the CNNs", accuracy.vgg_holds_best),
    11: ("Removal through skip connections takes far more of a ResNet than the masks say",
         removal.skips_cost_more),
}  # fmt: skip


def judge(evidence: Evidence, number: int) -> Statement:
    """A claim by its number, and what the runs say of it."""
    claim, test = CLAIMS[number]
    answer = test(evidence)
    holds = {"confirmed": True, "refuted": False}.get(answer.outcome)
    return Statement(
        str(number), claim, answer.outcome, holds, answer.reason, answer.command, answer.rows
    )
