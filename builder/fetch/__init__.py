"""Sources that are fetched: URLs, git repositories, remote build contexts."""
