"""What any process of a run tells the outside: figures for Prometheus by way of Ray, and log lines in JSON. It imports
no other room but common's storage, and Ray only once there is something to tell."""
