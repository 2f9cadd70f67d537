"""From a feature matrix to scores and decisions."""
