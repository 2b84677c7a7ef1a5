"""From a thermal picture to 4M-21's inputs, with or without ImageBind; and thermal synthesised from RGB."""
