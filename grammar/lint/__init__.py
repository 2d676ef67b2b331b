"""Build checks: rules as values, the linter that collects findings, and the rules of syntax."""
