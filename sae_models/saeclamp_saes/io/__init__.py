"""
What is on disk, read with care: shapes before numbers, limits before sizes, and no code of a file's ever run.

    source            a checkpoint: its weights, its configurations, and what the user says where they are silent
    tensors           a file's tensors, whatever holds them
    safetensors_file  npz_file  nested       ... and what does
    config_file       JSON and YAML
"""
