"""What EnvLogger puts into its Riegeli logs: specs, steps and episodes, as a source."""
