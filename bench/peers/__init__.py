"""Systems to put beside headrace: each a program of its own that reads a topic and writes another, until SIGTERM."""
