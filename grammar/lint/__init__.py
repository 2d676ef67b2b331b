"""Build checks: the rules, and the linter that applies them."""
