"""Where the setup cell of older copies of the notebooks looks for what it runs in Colab: the build has it."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[2] / "mechlab_course" / "build" / "colab.py"), run_name=__name__)
