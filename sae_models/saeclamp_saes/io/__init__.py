"""
What is on disk, read with care: shapes before numbers, limits before sizes, and no code of a file's ever run.

    checkpoint                    a checkpoint: its weights, its configurations, and what the user says where they are silent
    tensors                       a file's tensors, whatever holds them
    safetensors npz nested        ... and what does
    config contents hashes        JSON and YAML; which files there are; what they are known by
    work_folder vector_files      folders that runs write and go on with, and vectors in them
    sanitize                      text of others, fit to be printed
"""
