"""Language modelling: FLA models with any mixer, trained with the Hugging Face Trainer on byte-level or tokenised text."""
