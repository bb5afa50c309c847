"""`python -m training …` runs `protoserve train …`, so that `torchrun` can start it in several processes:

    torchrun --nproc-per-node 4 -m training -- CONFIG --data DATA --run RUN

The lone `--` stops torchrun from parsing `--run` as one of its own options.
"""

import sys

from protoserve.cli.root import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
