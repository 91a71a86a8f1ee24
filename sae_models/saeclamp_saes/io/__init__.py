"""
Files on disk, read with care: shapes before numbers, limits before sizes, and no code of a file's ever run.

    checkpoint                    a checkpoint: its weights, its configurations, and what the user says where they are silent
    tensors                       a file's tensors, whatever its container
    safetensors npz               the containers
    config contents hashes        JSON and YAML; the files of an SAE by name; sha256 of files and tensors
    atomic locks paths            files that replace others, locks between processes, the user's folders
    work_folder vector_files      folders that runs write and resume from, and vectors in them
    sanitize                      text of unknown origin, made safe to print
"""
