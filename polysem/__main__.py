"""``python -m polysem`` is the command ``polysem``: what ``accelerate launch -m`` starts."""

from polysem.cli import main

if __name__ == "__main__":
    main()
