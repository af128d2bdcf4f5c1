"""The 2020 study (Ou Yang and Xu, "Pruning in Deep Neural Network"), and what a report adds for it.

Its claims, its own curves, and the study files that repeat it; and what others have published since
(`published`). Nothing but the stages knows of it.
"""

from __future__ import annotations

from pruneflow.paper.claims import CLAIMS, judge
from pruneflow.paper.curves import OVERLAY
from pruneflow.paper.published import section
from pruneflow.report.evidence import Evidence
from pruneflow.report.page import Addition, Section

_NOTE = (
    "Grey lines marked “the paper's” are the 2020 study's own numbers, measured on other machines "
    "from other weights."
)
_ABOUT = (
    "Each is a test over the runs of this report, decided by 95 % intervals over three seeds or "
    "more; the edges are in pruneflow.paper."
)
# figure or table -> what the study calls it
_LABELS = {
    "masks_and_removal": "the study's Figure 2",
    "accuracy_weights": "the study's Figures 3 and 8",
    "criteria": "the study's Figure 4",
    "accuracy_channels": "the study's Figure 5",
    "latency_by_batch_size": "the study's Figures 6 and 10",
    "latency_by_params_left": "the study's Figures 7 and 11",
    "fractions": "the study's Figure 9",
    "models": "the study's Figure 12",
    "layer_sparsity": "the study's Table I",
    "iterative_against_direct": "the study's Table II",
}


def addition(evidence: Evidence, *, reference: bool) -> Addition:
    """What others have published of the same models, where there is something, for a report.

    With `reference`, also the study's claims judged by runs, its curves, its numbers of figures.
    """
    published = section(evidence)
    sections = [] if published is None else [published]
    if not reference:
        return Addition(sections)
    claims = [judge(evidence, number) for number in CLAIMS]
    of_study = Section("claims", "Claims of the 2020 study", _ABOUT, claims)
    return Addition([of_study, *sections], OVERLAY, _NOTE, _LABELS)
