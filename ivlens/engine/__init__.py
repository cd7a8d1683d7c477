"""Independent jobs side by side: in this process, in processes of this machine, or on a Ray cluster that is there."""
