"""`make gpu-check`: what only a machine with an accelerator can show, in one run of minutes.

    make gpu-wheels                      # where there is a network: what rin needs, into wheels/
    make gpu-check                       # where the accelerator is, Python 3.12 and PyTorch
    make gpu-check GPU="--device cpu --size tiny"    # tries the script itself, anywhere

`wheels` brings rin's requirements along, `watch` hands the steps of `steps` to a process of its
own (`work`), which a crash or a deadline may end, and `record` writes down what is known after
each of them.
"""
