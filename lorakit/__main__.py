"""`python -m lorakit`, for launchers that start modules: `accelerate launch -m lorakit train recipe.yaml`."""

from lorakit.cli import main

main()
