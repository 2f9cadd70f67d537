"""What the model sees: schemas, stored features, streaming features, training frames."""
