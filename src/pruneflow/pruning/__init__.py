"""Pruning itself: scores, selection, masks, schedules, costs. Pure: nothing here logs."""
