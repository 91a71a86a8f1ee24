"""
Finding SAEs: a name or address that a user writes is resolved to files on this machine.

    resolve           an SAE that is served: its address, summary, hash and feature book
    reference         how a name is resolved: bundled, library, path, catalogue, hub
    catalogue         public releases, as literal data under releases/
    hub, hub_places   one SAE's files of a hub repository, at a commit
    listings          listings of the hub's repositories, kept on disk
    checkpoint_files  the files that make up one SAE
    add               adding to the library, for `saeclamp sae add`
    user_library      SAEs that the user has added
    feature_book      names and statistics of features, beside the weights

Import the modules; nothing is imported here, so that the command line starts without torch.
"""
