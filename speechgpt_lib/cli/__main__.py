"""`python -m speechgpt_lib.cli` is `speechgpt`."""

from speechgpt_lib.cli.main import main

if __name__ == "__main__":
    main()
