"""
Where SAEs come from: what a user writes becomes files on this machine.

    resolve           an SAE that is served: its address, its summary, its hash, what is known of its features
    reference         how a name is resolved: bundled, library, path, catalogue, hub
    catalogue         public releases, as literal data under releases/
    hub, hub_places   one SAE's files of a hub repository, at a commit
    listings          what was found on the hub, kept
    checkpoint_files  which files make up one SAE
    add               what `saeclamp sae add` does
    user_library      SAEs that the user has added
    feature_book      names and statistics of features, beside the weights

Import the modules; nothing is imported here, so that the command line starts without torch.
"""
