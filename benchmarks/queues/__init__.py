"""Our rows beside task queues and streams that users would pick: `make bench-peers`.

`__main__` is run by Grape's interpreter, `run` and everything below it by that of `.cache/peers`, which has the peers.
"""
