"""Operations of T5 in few passes over the activations, equal to torch's and peft's in result and gradient.

Each file has one operation and, where it stands in for a module of torch, transformers or peft, a subclass of that module with the
same parameters. `t5peft.nn.fast` puts them to use.
"""
