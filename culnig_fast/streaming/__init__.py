"""Attribution of models larger than the device: weights stay on disk, one layer at a time comes in.

shards ──► names ──► weights ──► skeleton ──► calls ──► attributor ──► attribution
"""
