"""`python -m rayzyme_serve.cli`: the `rayzyme` command."""

from rayzyme_serve.cli.main import main

if __name__ == "__main__":
    main()
