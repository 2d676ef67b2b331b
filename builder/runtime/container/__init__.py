"""One container: its set-up, devices, seccomp filter and cgroup."""
