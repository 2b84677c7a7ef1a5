"""From a thermal picture to 4M-21's inputs: ImageBind, the routes through it, and thermal synthesised from RGB."""
