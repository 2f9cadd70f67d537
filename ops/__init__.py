"""For the people: command line, settings, embedded broker, metrics."""
