"""Says when pip knows a newer transformers than the pins. Never fails: a release of others does not break a change."""

import re
import subprocess
import sys
from pathlib import Path

pinned = re.search(r"^transformers==(.+)$", Path("constraints.txt").read_text(), re.MULTILINE)
command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
answer = subprocess.run(command, capture_output=True, text=True)
newest = re.search(r"transformers \((.+?)\)", answer.stdout)
if newest is None or pinned is None:
    print("pip does not say which release of transformers is the newest")
elif newest[1] == pinned[1]:
    print(f"transformers {pinned[1]}, the pin, is the newest release")
else:
    print(f"NOTE: transformers {newest[1]} is out, the pin is {pinned[1]}: run make test-versions, then raise the pin")
