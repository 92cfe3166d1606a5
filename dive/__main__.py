"""`python -m dive` is `dive`."""

from dive.cli import main

if __name__ == "__main__":
    main()
