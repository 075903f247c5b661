"""The data plane: predictor, gateway and the one-machine KServe; each its own process."""
