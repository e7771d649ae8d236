"""python -m mini.build"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m mini.build")

from mini.build.stages import main
from utils.errors import run

if __name__ == "__main__":
    run(main)
