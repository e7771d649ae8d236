"""python -m mini.build"""

from mini.build.stages import main
from utils.errors import run

if __name__ == "__main__":
    run(main)
