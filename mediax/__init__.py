"""mediax: one command for any medical-image dataset, task and model, in JAX."""
