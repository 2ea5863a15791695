"""`python -m distill` and `torchrun -m distill`."""

import sys
from pathlib import Path

# With -m the current folder comes first in the search path, and a folder of the user's named
# teachers/ or students/ would be taken for ours. It stays where it is what holds this package.
_HOME = Path(__file__).resolve().parent.parent
if not sys.flags.safe_path and Path(sys.path[0]).resolve() == Path.cwd() != _HOME:
    del sys.path[0]

from distill.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
