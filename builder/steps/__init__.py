"""The kinds of steps, one module for each: how a step is keyed, and how its layer is made."""
