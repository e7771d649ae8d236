"""Fine-tuning a cohort of identities."""
