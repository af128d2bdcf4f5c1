"""Entry points: each parses its parameters and calls its stage."""
