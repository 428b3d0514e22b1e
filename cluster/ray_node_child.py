"""Ray's own command, ended with its parent: `python -m cluster.ray_node_child PARENT start …`."""

from __future__ import annotations

import sys

from router.main import die_with_parent


def main() -> None:
    die_with_parent(int(sys.argv.pop(1)))
    from ray.scripts.scripts import main as ray_command

    ray_command()


if __name__ == "__main__":
    main()
