"""`python -m rlhf_pg` is `rlhf-pg`; `accelerate launch -m rlhf_pg` starts one process per device with it."""

import sys

from rlhf_pg.cli import main

if __name__ == "__main__":
    sys.exit(main())
