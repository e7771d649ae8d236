"""python -m mini.check"""

from mini.check.parts import main
from utils.errors import run

if __name__ == "__main__":
    run(main)
