"""Kind `codex`: its app-server, or one `codex exec` a run."""
