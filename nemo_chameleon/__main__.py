"""`python -m nemo_chameleon` does what the command `nemo-chameleon` does."""

from nemo_chameleon.cli import main

if __name__ == "__main__":
    main()
