"""Operations of T5 in few passes over the activations, equal to those of torch and peft in result and gradient.

Each file has one operation. Where the operation stands in for a module of torch, transformers, peft or bitsandbytes, the file
has a subclass of that module with the same parameters. ``t5peft.nn.fast`` puts them to use.
"""
