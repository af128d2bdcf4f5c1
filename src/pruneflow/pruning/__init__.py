"""Pruning itself: scores, selection, masks, schedules, costs. Pure: nothing here logs."""

# What channels can be removed from; named here so that help and names need no torch.
TARGETS = {
    "conv": "filters of convolutions",
    "linear": "neurons of linear layers that see one vector a sample",
    "heads": "attention heads",
    "ffn": "hidden units of feed-forward layers that see every position of a sequence",
}
