"""fit, validate, test and predict: what LightningCLI does, and what differs here."""
