"""Plan, run, deliver: everything that decides, runs steps and talks to the world."""

VERSION = "0.1.0"
