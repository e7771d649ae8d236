"""python -m benchmarks.gpu"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.gpu")

from benchmarks.gpu.driver import main
from utils.errors import run

if __name__ == "__main__":
    run(main)
