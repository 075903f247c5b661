"""The safety chain: filters on what enters and leaves a predictor, and the policy they obey."""
