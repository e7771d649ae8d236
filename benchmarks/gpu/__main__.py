"""python -m benchmarks.gpu"""

from benchmarks.gpu.driver import main
from utils.errors import run

if __name__ == "__main__":
    run(main)
