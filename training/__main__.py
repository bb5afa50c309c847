"""`python -m training …` is `protoserve train …`, in the form that `torchrun` starts in several processes:

    torchrun --nproc-per-node 4 -m training -- CONFIG --data DATA --run RUN

The lone `--` keeps torchrun from taking `--run` for one of its own options.
"""

import sys

from protoserve.cli.root import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
