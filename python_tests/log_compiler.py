"""Runs a compile command and keeps what it prints beside the object, as OBJECT.log: a launcher for CMake.

cmake -DCMAKE_CUDA_COMPILER_LAUNCHER="python;log_compiler.py" ...
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

command = sys.argv[1:]
done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
sys.stdout.buffer.write(done.stdout)
if "-o" in command:
    Path(command[command.index("-o") + 1] + ".log").write_bytes(done.stdout)
sys.exit(done.returncode)
