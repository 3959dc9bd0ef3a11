"""`python -m mega_transformers`: the `mega` command."""

from mega_launcher import main

main()
