"""The one-machine KServe control plane: REST, revisions as processes, traffic and status."""
