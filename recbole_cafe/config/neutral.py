"""Keys that change no number of a run: where files are, what is shown, which device."""

NEUTRAL = frozenset(
    ["data_path", "checkpoint_dir", "candidates_dir", "intents_dir", "show_progress", "state", "gpu_id", "use_gpu",
     "device", "worker", "log_wandb", "wandb_project", "save_dataset", "dataset_save_path", "save_dataloaders",
     "dataloaders_save_path", "resume", "resume_from", "save_every", "trust_checkpoint", "config_files",
     "config_file_list", "local_rank", "nproc", "ip", "port", "world_size", "offset", "group_offset", "single_spec",
     "shard_tables", "saved", "final_from"]
)  # fmt: skip
