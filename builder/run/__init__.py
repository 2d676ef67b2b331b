"""What the container of a RUN step is given: mounts, secrets, ssh agents."""
