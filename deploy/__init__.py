"""Deploy a trained model to a device: tuned, compiled ahead of time, verified and measured against its budget."""
