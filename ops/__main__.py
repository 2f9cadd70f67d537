"""python -m ops is the command headrace."""

from ops.cli import main

main()
