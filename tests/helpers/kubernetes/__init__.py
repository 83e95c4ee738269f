"""What stands in for a cluster: real kustomize, and what API server, operator, Pod Security and we ourselves refuse."""
