"""What a run is, without Ray: driver, workers, run folder, predictions, scores, resume, messages, the local pool."""
