"""A store's pages for other processes of the same user.

share.py          Share: where a store can be read from; attach
wire.py           messages and descriptors between owner and readers
share_server.py   the owner's thread that serves all readers
answers.py        the owner's answer to each question of a reader
view.py           StoreView, GroupView: the reader's side
reach.py          the folder of a shared store's socket, and why a store cannot be reached
"""
